"""Which GPUs reproduce.py uses, how runs share them, what the results say of them. None is needed: they are made up."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shell_runs import Shell, an_experiment, finish, run, step

from fairseq_dsp.errors import Refusal

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/translation"))

import reproduce
from reproduction import experiment, measure
from reproduction.presets import PRESETS
from reproduction.running import Job


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
