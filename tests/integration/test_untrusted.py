"""Files from strangers: no command of ours, and none of fairseq's with the plug-in, runs code that a file holds."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import AVERAGE, GENERATE, INTERACTIVE, PLUGIN, PRUNE, QUIET, TRAIN, VALIDATE, Result, load, run, training

EXPORT, SCORE, BENCH, REPORT = (f"fairseq_dsp.cli.{name}" for name in ("export", "score", "bench", "report"))
ALL = "enc:11.11/dec:11.11/cross:11.11"


class Payload:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The folder that a payload makes."""
    return tmp_path / "executed"


@pytest.fixture(params=["a checkpoint with code in it", "a plain pickle", "fairseq's old format"])
def crafted(request, trained: Path, tmp_path: Path, marker: Path) -> Path:
    """A file that runs code where it is loaded without care."""
    path = tmp_path / "crafted.pt"
    state = load(trained)
    state["extra_state"]["surprise"] = Payload(marker)
    if request.param == "a plain pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=request.param == "a checkpoint with code in it")
    return path


def test_the_payload_runs_where_a_file_is_loaded_without_care(crafted: Path, marker: Path, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    with contextlib.suppress(RuntimeError):  # a plain pickle is no checkpoint, but that is found out too late
        torch.load(crafted, weights_only=False)
    assert marker.is_dir()


def refused(done: Result, marker: Path, tmp_path: Path, *names: str) -> None:
    """Exit code 2, a sentence, no code run, nothing written."""
    assert not marker.exists()
    assert done.code == 2, done.out[-1000:] + done.err[-2000:]
    assert "Traceback" not in done.out + done.err
    assert done.refusals
    for name in names:
        assert name in done.err
    assert not [name for name in os.listdir(tmp_path) if name.startswith(("out", ".out"))]


def commands_of_ours(path: Path, data: Path, out: Path) -> dict[str, list[Any]]:
    return {
        f"{PRUNE} ": [path, out],
        f"{PRUNE} --layout": [path, out, "--layout", ALL],
        f"{AVERAGE} ": [out, path, path],
        f"{SCORE} gradient": [data, "--path", path, "--scorer", "gradient", "--output", out, "--cpu"],
        f"{SCORE} magnitude": [data, "--path", path, "--scorer", "magnitude", "--output", out, "--cpu"],
        f"{EXPORT} dense": [path, out, "--format", "dense"],
        f"{BENCH} ": ["--path", path, "--cpu", "--json", out],
        f"{BENCH} second": ["--random", "dsp_transformer_tiny:spread=2", "--path", path, "--cpu", "--json", out],
    }


@pytest.mark.parametrize("name", commands_of_ours(Path(), Path(), Path()))
def test_no_command_of_ours_runs_the_code_of_a_checkpoint(name: str, crafted, data, marker, tmp_path):
    arguments = commands_of_ours(crafted, data, tmp_path / "out")[name]
    refused(run(name.split()[0], *arguments, folder=tmp_path), marker, tmp_path, str(crafted), "hold no code")


def test_nor_does_the_export_to_ctranslate2(crafted, data, marker, tmp_path):
    pytest.importorskip("ctranslate2")
    done = run(EXPORT, crafted, tmp_path / "out", "--format", "ctranslate2", "--data", data, folder=tmp_path)
    refused(done, marker, tmp_path, str(crafted), "hold no code")


def test_scores_layouts_and_results_hold_no_code(crafted, trained, data, marker, tmp_path):
    for option in ("--scores", "--layout"):
        done = run(PRUNE, trained, tmp_path / "out", option, crafted, "--unpruned-heads", 3, folder=tmp_path)
        refused(done, marker, tmp_path, f"`{option}`")
    refused(run(REPORT, crafted, "--output", tmp_path / "out", folder=tmp_path), marker, tmp_path, str(crafted))
    random = ["--random", f"dsp_transformer_tiny:layout={crafted}", "--cpu"]
    refused(run(BENCH, *random, "--json", tmp_path / "out", folder=tmp_path), marker, tmp_path, str(crafted))


def test_nor_do_files_that_results_name(crafted, marker, tmp_path):
    from made_up import run as made_up_run
    from made_up import write

    lines = [made_up_run("dense", 36, hypotheses=crafted.name), made_up_run(hypotheses=crafted.name, log=crafted.name)]
    results = write(tmp_path / "results.jsonl", lines)
    done = run(REPORT, results, "--output", tmp_path / "out", "--references", crafted, folder=tmp_path)
    refused(done, marker, tmp_path)


def commands_of_fairseq(path: Path, data: Path, save: Path) -> dict[str, list[Any]]:
    common = [data, *PLUGIN, "--path", path, "--cpu"]
    budget = ["--unpruned-heads", 5, *QUIET, "--max-update", 1]
    return {
        GENERATE: [*common, "--num-workers", 0],
        f"{INTERACTIVE} ": common,
        f"{VALIDATE} ": [*common, "--task", "translation", "--valid-subset", "valid", "--batch-size", 8],
        f"{TRAIN} --restore-file": training(data, save, *budget, "--restore-file", path),
        f"{TRAIN} --finetune-from-model": training(data, save, *budget, "--finetune-from-model", path),
        f"{TRAIN} --head-layout": training(data, save, *QUIET, "--max-update", 1, "--head-layout", path, "--head-selection", "fixed"),
        f"{TRAIN} --head-layout stock task": training(
            data, save, *QUIET, "--max-update", 1, "--head-layout", path, task="translation", optimizer="adam",
            criterion="label_smoothed_cross_entropy",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", commands_of_fairseq(Path(), Path(), Path()))
def test_no_command_of_fairseq_with_the_plug_in_runs_it(name: str, crafted, data, marker, tmp_path):
    arguments = commands_of_fairseq(crafted, data, tmp_path / "save")[name]
    done = run(name.split()[0], *arguments, folder=tmp_path, stdin="a1 a2\n")
    assert not marker.exists()
    assert done.code != 0
    # torch's own error in stock loading, our sentence where the file is read for its heads
    assert "Weights only load failed" in done.err + done.out or done.refusals
    assert not list(tmp_path.glob("save/*.pt"))


def test_a_last_checkpoint_that_someone_put_there_is_not_run_either(crafted, data, marker, tmp_path):
    (tmp_path / "save").mkdir()
    shutil.copy(crafted, tmp_path / "save/checkpoint_last.pt")
    arguments = training(data, tmp_path / "save", "--unpruned-heads", 5, *QUIET, "--max-update", 1)
    assert run(TRAIN, *arguments, folder=tmp_path).code != 0
    assert not marker.exists()


def test_results_with_text_that_looks_like_markup_stay_text(marker, tmp_path):
    from made_up import run as made_up_run
    from made_up import write

    evil = "<script>alert(1)</script>"
    lines = [made_up_run("dense", 36, data=evil), made_up_run(evil, data=evil, command=evil, hardware={evil: evil})]
    done = run(REPORT, write(tmp_path / "r.jsonl", lines), "--output", tmp_path / "page", folder=tmp_path)
    assert done.code == 0, done.err
    assert "<script" not in (tmp_path / "page/report.html").read_text()
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[1])["method"] == evil
