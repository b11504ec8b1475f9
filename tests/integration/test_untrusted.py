"""Files from strangers: no command of ours, and none of fairseq's with the plug-in, runs code that a file holds."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    AVERAGE,
    GENERATE,
    INTERACTIVE,
    PLUGIN,
    PRUNE,
    QUIET,
    TRAIN,
    VALIDATE,
    Result,
    Running,
    load,
    run,
    training,
)

from fairseq_dsp.config import set_option

EXPORT, SCORE, BENCH, REPORT = (f"fairseq_dsp.cli.{name}" for name in ("export", "score", "bench", "report"))
ALL = "enc:11.11/dec:11.11/cross:11.11"
KINDS = ["a checkpoint with code in it", "a plain pickle", "fairseq's old format", "TorchScript", "a tar of torch 0.1"]


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


class Scripted(torch.nn.Module):
    """Saved as TorchScript, it makes a file when it is loaded: torch before 2.6 loads such archives without any care."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state
        self.path += str(torch.from_file(self.path, True, 64).numel())  # used, or the compiler would leave it out

    def forward(self) -> str:
        return self.path


def write_crafted(kind: str, path: Path, trained: Path, marker: Path) -> None:
    """See `crafted`."""
    state = load(trained)
    state["extra_state"]["surprise"] = Payload(marker)
    if kind == "a plain pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    elif kind == "TorchScript":
        torch.jit.script(Scripted(str(marker))).save(str(path))
    elif kind == "a tar of torch 0.1":
        with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as tar:
            for name, content in (("storages", Payload(marker)), ("tensors", 0), ("pickle", {})):
                data = pickle.dumps(content)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "a checkpoint with code in it")


@pytest.fixture(params=KINDS)
def crafted(request, trained: Path, tmp_path: Path, marker: Path) -> Path:
    """A file that runs code where it is loaded without care."""
    path = tmp_path / "crafted.pt"
    write_crafted(request.param, path, trained, marker)
    return path


def with_option(trained: Path, path: Path, name: str, value: str) -> Path:
    """The checkpoint with an option of its model changed."""
    state = load(trained)
    options = state["cfg"]["model"]
    if isinstance(options, dict):
        options[name] = value
    else:
        set_option(options, name, value)
    torch.save(state, path)
    return path


@pytest.fixture
def evaluated(trained: Path, tmp_path: Path, marker: Path) -> Path:
    """A checkpoint without code in its pickle, in whose options is some that fairseq evaluates."""
    text = f"__import__('os').mkdir({str(marker)!r}) or [5]"
    return with_option(trained, tmp_path / "evaluated.pt", "adaptive_softmax_cutoff", text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_payload_runs_where_a_file_is_loaded_without_care(kind: str, trained: Path, marker: Path, tmp_path: Path):
    write_crafted(kind, tmp_path / "crafted.pt", trained, marker)
    careless = "import sys, torch; torch.load(sys.argv[1], weights_only=False)"  # without the plug-in
    alone = {name: value for name, value in os.environ.items() if not name.startswith("TORCH_FORCE")}
    subprocess.run(
        [sys.executable, "-c", careless, tmp_path / "crafted.pt"], capture_output=True, check=False, env=alone
    )
    assert marker.exists()


def test_the_option_runs_where_fairseq_evaluates_it(evaluated: Path, marker: Path):
    options = load(evaluated)["cfg"]["model"]
    text = options["adaptive_softmax_cutoff"] if isinstance(options, dict) else options.adaptive_softmax_cutoff
    code = "import sys; from fairseq import utils; utils.eval_str_list(sys.argv[1], int)"  # without the plug-in
    subprocess.run([sys.executable, "-c", code, text], capture_output=True, check=False)
    assert marker.exists()


def test_expressions_of_the_command_line_are_evaluated_as_without_the_plug_in(data: Path, tmp_path: Path):
    """Where fairseq evaluates, and at once (list of an architecture's layers) or later (sizes that a model is built with)."""
    later = ["--pipeline-balance", "[1]*2+[4]"]

    def cli_main() -> None:
        from fairseq import options, utils

        kernels = ["--arch", "lightconv", "--encoder-kernel-size-list", "[3] * 7", "--weight-softmax", "not 0"]
        parsed = options.parse_args_and_arch(options.get_training_parser(), [str(data), *kernels])
        assert parsed.encoder_kernel_size_list == [3] * 7
        assert parsed.weight_softmax is True
        sys.argv = ["fairseq-train", *later, "--ratios={'a': 1 / 4}"]
        assert utils.eval_str_list("[1]*2+[4]", int) == [1, 1, 4]
        assert utils.eval_str_dict("{'a': 1 / 4}") == {"a": 0.25}
        for text in ("[1]*3", "__import__('os').getpid()"):  # nobody has typed them
            with pytest.raises(ValueError, match="malformed"):
                utils.eval_str_list(text, int)

    done = Running(cli_main, [], tmp_path).wait()
    assert done.code == 0, done.err


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


@pytest.mark.parametrize("name", commands_of_ours(Path(), Path(), Path()))
def test_nor_what_its_options_say(name: str, evaluated, data, marker, tmp_path):
    arguments = commands_of_ours(evaluated, data, tmp_path / "out")[name]
    refused(run(name.split()[0], *arguments, folder=tmp_path), marker, tmp_path, "`--adaptive-softmax-cutoff`")


@pytest.mark.parametrize("command", [PRUNE, AVERAGE])
def test_options_do_not_carry_the_reader_s_environment_away(command: str, trained, marker, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    path = with_option(trained, tmp_path / "curious.pt", "activation_fn", "${oc.env:SECRET_TOKEN}")
    arguments = [path, tmp_path / "out"] if command == PRUNE else [tmp_path / "out", path, path]
    refused(run(command, *arguments, folder=tmp_path), marker, tmp_path, str(path), "model.activation_fn")


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
    assert re.search("(?i)weights.only", done.err + done.out) or done.refusals
    assert not list(tmp_path.glob("save/*.pt"))


@pytest.mark.parametrize("name", commands_of_fairseq(Path(), Path(), Path()))
def test_nor_what_its_options_say_in_a_command_of_fairseq(name: str, evaluated, data, marker, tmp_path):
    arguments = commands_of_fairseq(evaluated, data, tmp_path / "save")[name]
    run(name.split()[0], *arguments, folder=tmp_path, stdin="a1 a2\n")  # training reads only weights, and may go on
    assert not marker.exists()


@pytest.mark.parametrize("command", [GENERATE, INTERACTIVE])
def test_nor_those_of_a_stock_architecture(command: str, dense, data, marker, tmp_path):
    text = f"__import__('os').mkdir({str(marker)!r}) or [5]"
    path = with_option(dense, tmp_path / "evaluated.pt", "adaptive_softmax_cutoff", text)
    done = run(command, data, *PLUGIN, "--path", path, "--cpu", "--num-workers", 0, folder=tmp_path, stdin="a1 a2\n")
    assert done.code != 0
    assert not marker.exists()


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
