"""Every command of ours on a stdout that takes nothing or cannot print everything, and stopped by its user."""

from __future__ import annotations

import importlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import pytest
from commands import AVERAGE, PRUNE, ROOT, Result, Running, assert_refused
from test_faults import BENCH, EXPORT, MEASURE, REPORT, SCORE

SCRIPTS = ROOT / "examples/translation"
sys.path.append(str(SCRIPTS))

import demo  # noqa: E402
import multilingual  # noqa: E402
import reproduce  # noqa: E402
import sample_corpus  # noqa: E402

# a character that ascii lacks, a byte that is no UTF-8, and what rich takes for a style and an emoji
NAME = "é\udcff[/b]:smile:"


@pytest.fixture
def commands(trained: Path, data: Path, tmp_path: Path) -> dict[str, tuple[Callable[[], Any], list[Any], Path | None]]:
    """Every command of ours, with its arguments and its output, all named oddly."""
    place = tmp_path / NAME
    (place / "out").mkdir(parents=True)
    path, out = (
        shutil.copy(trained, tmp_path / "in.pt"),
        place / "out/result",
    )  # torch reads no file whose name is not UTF-8
    results = made_up.write(tmp_path / "results.jsonl", [made_up.run("dense", 36), made_up.run()])
    score = [data, "--path", path, "--scorer", "magnitude", "--output", out, "--cpu"]
    found: dict[str, tuple[Any, list[Any], Path | None]] = {
        "prune": (PRUNE, [path, out], out),
        "average": (AVERAGE, [out, path, path], out),
        "score": (SCORE, score, out),
        "export": (EXPORT, [path, out, "--format", "dense"], out),
        "report": (REPORT, [results, "--output", out], out),
        "bench": (BENCH, [*MEASURE, "--json", out, "--force"], None),
        "reproduce": (reproduce.cli_main, ["--preset", "smoke", "--data", data, "--output", out, "--dry-run"], None),
        "demo": (demo.main, ["--help"], None),
        "multilingual": (multilingual.cli_main, ["--help"], None),
        "merge": ("fairseq_dsp.cli.merge", ["--help"], None),
        "sample_corpus": (sample_corpus.main, ["--help"], None),
    }
    return {
        name: (importlib.import_module(act).cli_main if isinstance(act, str) else act, words, written)
        for name, (act, words, written) in found.items()
    }


NAMES = (
    "prune",
    "average",
    "score",
    "export",
    "report",
    "bench",
    "reproduce",
    "demo",
    "multilingual",
    "merge",
    "sample_corpus",
)


def run_onto(act: Callable[[], Any], words: list[Any], folder: Path, stdout: Any, encoding: str = "utf-8") -> Result:
    """Runs a command in a child whose stdout is this file."""

    def child() -> None:
        os.dup2(stdout.fileno(), 1)
        sys.stdout = open(1, "w", encoding=encoding, closefd=False)
        act()

    return Running(child, words, folder).wait()


def wrong(out: Path | None) -> list[str]:
    """What lies beside the output, or that it is missing."""
    if out is None:
        return []
    return [name for name in os.listdir(out.parent) if name != out.name] + ([] if out.exists() else ["no output"])


@pytest.mark.parametrize("name", NAMES)
def test_a_full_stdout_and_one_that_nobody_reads_are_one_sentence(name: str, commands, tmp_path: Path):
    act, words, out = commands[name]
    begin, finish = os.pipe()
    os.close(begin)
    with open("/dev/full", "w") as full, open(finish, "w") as pipe:
        ways = ((full, 2), (pipe, 1))
        for stdout, code in ways if name in ("prune", "reproduce", "demo") else ways[:1]:
            done = run_onto(act, [*words, *(["--force"] if out else [])], tmp_path, stdout)
            assert done.code == code, done.err
            assert [
                line for line in done.refusals if line.startswith("stdout must take what is printed")
            ] == done.refusals
            assert len(done.refusals) == 1
            assert "Traceback" not in done.err
            assert not wrong(out)


@pytest.mark.parametrize("name", NAMES)
def test_what_stdout_cannot_print_is_no_reason_to_fail(name: str, commands, tmp_path: Path):
    act, words, out = commands[name]
    for encoding in ("ascii", "utf-8") if name == "prune" else ("ascii",):
        with open(tmp_path / "said", "w") as said:
            done = run_onto(act, [*words, *(["--force"] if out else [])], tmp_path, said, encoding)
        text = (tmp_path / "said").read_text(encoding=encoding)
        assert done.code == 0, done.err
        assert not wrong(out)
        if name in ("prune", "average", "score", "export", "report"):
            named = NAME if name != "report" else "out/result"
            printed = NAME.encode(encoding, "backslashreplace").decode(encoding)
            assert "".join(printed.split()) in "".join(text.split()), (named, text)


def test_a_command_that_is_stopped_leaves_nothing(trained: Path, tmp_path: Path):
    """With the real torch.save; each of the signals is in tests/unit/test_errors.py."""
    (tmp_path / "out").mkdir()
    program = "import time, torch, fairseq_dsp.cli.prune as command; save = torch.save\n"
    program += "torch.save = lambda *given: (save(*given), print('go', flush=True), time.sleep(60))\n"
    program += "import sys; sys.exit(command.cli_main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(trained), str(tmp_path / "out/pruned.pt")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert select.select([process.stdout], [], [], 120)[0]
    assert process.stdout.readline() == "go\n"
    assert len(os.listdir(tmp_path / "out")) == 1
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGINT, "fairseq_dsp: error: stopped by SIGINT.\n")
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["demo", "reproduce", "sample_corpus"])
def test_an_empty_output_is_not_the_working_folder(name: str, data: Path, tmp_path: Path, monkeypatch):
    """An unset variable of a shell. The folder is one that an earlier run of demo or reproduce has made."""
    (tmp_path / ".fairseq_dsp_demo").mkdir()
    (tmp_path / "reproduce.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    act = {"demo": demo.main, "reproduce": reproduce.cli_main, "sample_corpus": sample_corpus.main}[name]
    words = ["--output", "", *(["--preset", "smoke", "--data", data] if name == "reproduce" else [])]
    assert_refused(Running(act, words, tmp_path).wait(), "the output must")
    if name == "demo":
        for folder, reasons in ((".", 1), (tmp_path.parent, 2)):
            done = Running(act, ["--output", folder], tmp_path).wait()
            assert_refused(done, "the working folder or one above it", reasons=reasons)
    assert sorted(os.listdir(tmp_path)) == [".fairseq_dsp_demo", "reproduce.json"]


def test_the_sample_corpus_is_written_whole_and_through_links(tmp_path: Path):
    def write(seed: int) -> Result:
        words = ["--output", tmp_path / "out", "--pairs", 3, "--seed", seed]
        return Running(sample_corpus.main, words, tmp_path).wait()

    assert write(1).code == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(first) == 6
    (tmp_path / "out/train.qar").rename(tmp_path / "elsewhere")
    (tmp_path / "out/train.qar").symlink_to("../elsewhere")
    assert write(2).code == 0
    assert (tmp_path / "out/train.qar").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() != first["train.qar"]
    (tmp_path / "out/valid.qte").unlink()
    (tmp_path / "out/valid.qte").mkdir()
    before = (tmp_path / "elsewhere").read_bytes()
    assert_refused(write(1), "must be a file", "valid.qte")
    assert (tmp_path / "elsewhere").read_bytes() == before  # all files are checked before the first is written
    (tmp_path / "file").touch()
    assert_refused(Running(sample_corpus.main, ["--output", tmp_path / "file"], tmp_path).wait(), "File exists")
