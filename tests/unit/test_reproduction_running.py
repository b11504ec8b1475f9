"""How reproduce.py runs what it has planned: on which device, what counts as done, what it shows. Commands are shell one-liners."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from fairseq_dsp.errors import Refusal

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/translation"))

import reproduce
from reproduction import experiment, measure
from reproduction.experiment import Experiment
from reproduction.plan import Run, Step
from reproduction.presets import PRESETS
from reproduction.running import Job, Place


class Shell(Place):
    """Runs the second word of a step as a shell command."""

    def command(self, step: Step) -> list[str]:
        return ["sh", "-c", step.words[1]]


def step(command: str = "true", output: str | None = None, name: str = "score") -> Step:
    return Step(name, ("fairseq-dsp-score", command), output)


def run(name: str = "a", *steps: Step, needs: tuple[str, ...] = (), deployed: str = "") -> Run:
    """One without a line in the results: nothing is measured at its end."""
    return Run(name, "gradient", None, 1, steps or (step(),), needs, deployed)


def an_experiment(*runs: Run, gpus: tuple[str, ...] = (), jobs: int = 1) -> Experiment:
    return Experiment(runs, None, list(gpus), jobs, {}, False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, tmp_path, 1, print)
    with shell.locked():
        yield shell


def finish(job: Job) -> None:
    until = time.monotonic() + 30
    while not job.advance():
        assert time.monotonic() < until
        time.sleep(0.01)


def finish_one(job: Job) -> None:
    """Runs the job's next step to its end, and starts the one after it."""
    current = job.step
    while job.step is current:
        job.advance()
        time.sleep(0.005)
    assert job.failed is None


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"made-up GPU {device}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("three_gpus")
class TestGpus:
    @pytest.mark.parametrize(
        ("visible", "asked", "found"),
        [
            (None, None, []),
            (None, "all", ["0", "1", "2"]),
            (None, "2,0", ["2", "0"]),
            ("4,6,GPU-1a2b", "all", ["4", "6", "GPU-1a2b"]),
            ("4,6,GPU-1a2b", "6", ["6"]),
            ("4,6,7,99", "all", ["4", "6", "7"]),  # CUDA stops at the first that is not there
        ],
    )
    def test_are_all_or_those_named(self, visible: str | None, asked: str | None, found: list[str], monkeypatch: Any):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert reproduce.find_gpus(asked) == found

    @pytest.mark.parametrize(
        ("count", "visible", "asked", "there"),
        [
            (0, None, "all", "none"),
            (0, "", "all", "none"),
            (0, "4", "all", "none"),  # a variable of another machine
            (3, None, "3", "0, 1, 2"),
            (3, None, "0,x", "0, 1, 2"),
            (3, None, ",", "0, 1, 2"),
            (2, "4,6", "0", "4, 6"),
            (3, "4,6,7,99", "99", "4, 6, 7"),
        ],
    )
    def test_that_are_not_there_are_refused(self, count: int, visible: Any, asked: str, there: str, monkeypatch: Any):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(Refusal) as refusal:
            reproduce.find_gpus(asked)
        assert f"`--gpus` must name GPUs that are there ({there}), but is {asked}." in str(refusal.value)

    @pytest.mark.parametrize(("visible", "gpus"), [(None, ["1", "2"]), ("7,4,6", ["4", "6"])])
    def test_are_named_in_the_results(self, visible: str | None, gpus: list[str], monkeypatch: pytest.MonkeyPatch):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)  # torch counts from 0 among these
        found = measure.hardware(gpus, 4)
        assert (found["gpu"], found["gpus"], found["runs at once"]) == ("made-up GPU 1, made-up GPU 2", 2, 4)
        assert not {"gpu", "gpus"} & measure.hardware([], 1).keys()

    @pytest.mark.parametrize(
        ("options", "gpu", "max_tokens", "rate"),
        [
            (["--preset", "paper"], True, 16384, 1e-3),
            (["--preset", "paper"], False, 4096, 5e-4),
            (["--preset", "paper", "--max-tokens", "1024"], True, 1024, 2.5e-4),
            (["--preset", "small"], True, 1024, PRESETS["small"].learning_rate),
        ],
    )
    def test_get_larger_batches_of_the_paper(self, options: list[str], gpu: bool, max_tokens: int, rate: float):
        args = reproduce.get_parser().parse_args([*options, "--output", "out"])
        preset = reproduce.choose_preset(args, gpu)
        assert (preset.max_tokens, preset.learning_rate) == (max_tokens, rate)

    @pytest.mark.parametrize("gpu", ["6", None])
    def test_are_what_the_command_sees(self, gpu: str | None, place: Shell, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
        job = Job(run("a", step('echo "sees $CUDA_VISIBLE_DEVICES"')), place, gpu)
        finish(job)
        assert job.log(job.run.steps[0]).read_text() == f"sees {gpu or '4,6'}\n"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"

    def test_share_the_runs(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(experiment, "Job", lambda run, place, gpu: SimpleNamespace(run=run, gpu=gpu))
        made = an_experiment(*map(run, "abcdef"), gpus=("4", "6"), jobs=4)
        waiting = list(made.runs)
        made._start(waiting, None)
        assert [(job.run.name, job.gpu) for job in made.active] == [("a", "4"), ("b", "6"), ("c", "4"), ("d", "6")]
        assert [waits.name for waits in waiting] == ["e", "f"]
        del made.active[3], made.active[1]
        made._start(waiting, None)
        assert [(job.run.name, job.gpu) for job in made.active[2:]] == [("e", "6"), ("f", "6")]
        assert waiting == []

    def test_are_none_on_a_cpu(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(experiment, "Job", lambda run, place, gpu: SimpleNamespace(run=run, gpu=gpu))
        made = an_experiment(*map(run, "abc"), jobs=2)
        made._start(list(made.runs), None)
        assert [(job.run.name, job.gpu) for job in made.active] == [("a", None), ("b", None)]


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
