"""How reproduce.py runs what it has planned: on which device, what counts as done, what it shows. Commands are shell one-liners."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from shell_runs import Shell, an_experiment, finish, finish_one, run, step

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/translation"))

import reproduce
from reproduction import experiment
from reproduction.presets import PRESETS
from reproduction.results import KEYS
from reproduction.running import Job, Place
from reproduction.steps import Run, Step


class TestAStep:
    def done(self, place: Place, *steps: Step) -> list[str]:
        """Names of the steps that a new job leaves out."""
        left = []
        job = Job(run("a", *steps), place, None)
        while job.step is not None:
            left.append(job.step.name)
            finish_one(job)
        return [step.name for step in steps if step.name not in left]

    def test_with_its_marker_and_output_is_done(self, place: Shell):
        steps = (step("echo 1 >> made", "made"), step("echo 2 >> log", name="generate"))
        assert self.done(place, *steps) == []
        assert self.done(place, *steps) == ["score", "generate"]
        assert (place.out / "log").read_text() == "2\n"

    @pytest.mark.parametrize("content", [b"", b'{"command": ["fairseq-dsp-sc', b"\xff", b"{}", b'{"command": null}'])
    def test_with_a_cut_marker_is_not_done(self, content: bytes, place: Shell):
        steps = (step("echo 1 > made", "made"), step(name="generate"))
        self.done(place, *steps)
        marker = place.out / "runs/a/score.done"
        assert json.loads(marker.read_text())["command"] == list(steps[0].words)
        marker.write_bytes(content)
        assert self.done(place, *steps) == ["generate"]
        assert self.done(place, *steps) == ["score", "generate"]

    def test_with_the_marker_of_another_command_is_not_done(self, place: Shell):
        self.done(place, step("echo 1 > made", "made"))
        assert self.done(place, step("echo 2 > made", "made")) == []
        assert (place.out / "made").read_text() == "2\n"

    def test_without_its_output_is_not_done(self, place: Shell):
        only = step("echo 1 > made", "made")
        self.done(place, only)
        (place.out / "made").unlink()
        assert self.done(place, only) == []
        assert (place.out / "made").is_file()

    def test_that_failed_is_not_done_and_leaves_no_marker(self, place: Shell):
        job = Job(run("a", step("echo 'no such thing'; exit 3"), step("touch after", name="generate")), place, None)
        finish(job)
        assert "fairseq-dsp-score of a ended with code 3" in job.failed
        assert job.failed.endswith("no such thing")
        assert not list(place.out.rglob("*.done"))
        assert not (place.out / "after").exists()

    def test_that_fails_on_a_full_disk_says_so(self, place: Shell, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000))
        job = Job(run("a", step("exit 1")), place, None)  # its log has no room either
        finish(job)
        assert job.failed.endswith(f"it printed nothing; the disk of {place.out} has 0.3 MB left")


class TestAFinishedRun:
    """Whose scores another run reads."""

    makes = run("a", step("echo 1 > runs/a/s.json; echo 1 >> count", "runs/a/s.json"))

    @pytest.fixture
    def finished(self, place: Shell) -> Shell:
        """With `a` finished and `b` not begun; `b` reads what `a` made."""
        assert an_experiment(self.makes).run(place) == 0
        return place

    def later(self, place: Shell) -> int:
        reads = Step("score", ("fairseq-dsp-score", "true", "runs/a/s.json"))
        return an_experiment(self.makes, run("b", reads, needs=("a",))).run(place)

    @pytest.mark.parametrize("content", [None, b"", b'{"scores": [1'])
    def test_is_done_again_where_what_others_need_of_it_is_lost(self, content, finished: Shell, capsys: Any):
        scores = finished.out / "runs/a/s.json"
        scores.unlink() if content is None else scores.write_bytes(content)
        assert self.later(finished) == 0
        assert "a is done again" in capsys.readouterr().out
        assert scores.read_text() == "1\n"
        assert (finished.out / "count").read_text() == "1\n1\n"

    def test_is_not_where_it_is_there_or_nobody_needs_it_any_more(self, finished: Shell, capsys: Any):
        assert self.later(finished) == 0
        (finished.out / "runs/a/s.json").unlink()
        assert self.later(finished) == 0
        assert "again" not in capsys.readouterr().out
        assert (finished.out / "count").read_text() == "1\n"


def test_a_run_starts_once_those_that_it_needs_are_finished(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(experiment, "Job", lambda run, place, gpu: SimpleNamespace(run=run, gpu=gpu))
    made = an_experiment(run("a"), run("b"), run("c", needs=("a", "b")), run("d"), jobs=4)
    waiting = list(made.runs)
    for finished, active in (([], "abd"), (["a"], "abd"), (["b"], "abdc")):
        made.finished.update(finished)
        made._start(waiting, None)
        assert [job.run.name for job in made.active] == list(active)


class TestTheUser:
    def test_sees_what_runs_and_how_much_waits(self, place: Shell):
        runs = [run("dense-s1", step("true")), run("dsp-k4-s1"), run("ste-k4-s1"), run("fixed-k4-s1")]
        made = an_experiment(*runs, jobs=2)
        made.finished.add("dense-s1")
        waiting = runs[1:]
        made._start(waiting, place)
        made.active[0].log(runs[1].steps[0]).write_text("early\n2026-01-31 12:00:00 | INFO | train_inner | loss=3\n")
        finish(made.active[1])
        console = Console(file=io.StringIO(), width=100)
        console.print(made._table(waiting))
        shown = console.file.getvalue()
        assert "1 of 4 runs finished, 1 wait" in shown
        (row,) = [line.split() for line in shown.splitlines() if "dsp-k4-s1" in line]
        assert {"fairseq-dsp-score", "0.0", "loss=3"} <= set(row)
        assert "early" not in shown
        assert "INFO" not in shown
        (row,) = [line.split() for line in shown.splitlines() if "ste-k4-s1" in line]
        assert "measuring" in row  # its commands have ended
        assert "fixed-k4-s1" not in shown

    def test_is_told_what_remains_when_a_run_ends(self, place: Shell, capsys: pytest.CaptureFixture[str]):
        made = an_experiment(run("a"), run("b"), run("c", needs=("a",)))
        assert made.run(place) == 0
        printed = capsys.readouterr().out
        assert [line for line in printed.splitlines() if line.startswith("finished: ")] == [
            "finished: a, 2 remain",
            "finished: b, 1 remain",
            "finished: c, 0 remain",
        ]
        assert "3 of 3 runs are finished" in printed
        again = an_experiment(*made.runs)
        assert again.run(place) == 0
        assert "finished before: 3 of 3" in capsys.readouterr().out

    def test_is_told_how_many_lines_a_report_will_find(
        self, place: Shell, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ):
        """A scoring, or a training, that several runs need is a run too, and has no line; a failed run has none either."""
        monkeypatch.setattr(experiment, "measure", lambda run, *_: dict.fromkeys(KEYS, run.name) | {"bleu_tok": 1.0})
        made = an_experiment(run("scores"), *(replace(run(name, needs=("scores",)), budget=4) for name in "abc"))
        made.runs = [*made.runs, replace(run("d", step("exit 1")), budget=4)]
        assert made.run(place) == 1
        lines = (place.out / "results.jsonl").read_text().splitlines()
        assert len(lines) == 3
        printed = capsys.readouterr().out
        assert f"4 of 5 runs are finished, 3 of them with a line in {place.out / 'results.jsonl'}" in printed
        assert "scorings and trainings that others need" in printed
        only = an_experiment(*(each for each in made.runs if each.name in "ab"))
        assert only.run(place) == 0
        assert f"2 of 2 runs are finished: {place.out / 'results.jsonl'}" in capsys.readouterr().out

    def test_is_told_what_failed_and_what_could_not_start_therefore(self, place: Shell, capsys: Any):
        made = an_experiment(run("a", step("exit 1")), run("b", needs=("a",)), run("c"))
        assert made.run(place) == 1
        printed = capsys.readouterr().out
        assert "b needs a, which failed" in printed
        assert "1 of 3 runs are finished" in printed
        assert not (place.out / "runs/b").exists()


def test_the_room_that_is_asked_for_grows_with_runs_and_jobs_and_sizes():
    preset = PRESETS["smoke"]
    small, large = SimpleNamespace(words=(50, 50)), SimpleNamespace(words=(5000, 5000))
    runs = [run("dense", deployed="runs/dense/checkpoints/checkpoint_best.pt"), run("b", deployed="runs/b/pruned.pt")]
    runs.append(run("c", deployed="runs/c/pruned.pt"))

    def needed(*, runs: list[Run] = runs, preset: Any = preset, data: Any = small, jobs: int = 1) -> int:
        return reproduce.bytes_needed(runs, preset, data, jobs)

    assert needed(jobs=1) < needed(jobs=2) < needed(jobs=3) == needed(jobs=9)  # there are no more runs
    assert needed(runs=runs[:1]) < needed(runs=runs[:2])
    assert needed(runs=runs[1:2]) < needed(runs=runs[:1])  # whole checkpoints stay of what is deployed unpruned
    assert needed() < needed(data=large)
    assert needed() < needed(preset=PRESETS["small"]) < needed(preset=PRESETS["paper"])
