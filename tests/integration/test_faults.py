"""Faults of disk and files: a sentence, exit code 2, nothing left behind. Kills are in tests/campaigns/kills.py."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import made_up
import pytest
from commands import AVERAGE, PRUNE, QUIET, Result, Running, assert_refused, budget, run, train

EXPORT, SCORE, BENCH, REPORT = (f"fairseq_dsp.cli.{name}" for name in ("export", "score", "bench", "report"))
WRITERS = ("prune", "average", "score", "export dense", "export ctranslate2", "report", "bench")
MEASURE = ["--random", "dsp_transformer_tiny:spread=2,words=9/9", "--cpu", "--workloads", "encoder", "--pairs", 1]
MEASURE += ["--warmup", 0, "--batch-size", 1, "--length", 2, "--no-memory"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any user of the machine can look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def writers(place: Path, trained: Path, data: Path) -> dict[str, tuple[str, list[Any]]]:
    """Every command of ours that writes, with its arguments; OUT stands for the output."""
    path = shutil.copy(trained, place / "in.pt")
    shutil.copytree(data, place / "data")
    results = made_up.write(place / "results.jsonl", [made_up.run("dense", 36), made_up.run()])
    return {
        "prune": (PRUNE, [path, "OUT"]),
        "average": (AVERAGE, ["OUT", path, path]),
        "score": (SCORE, [place / "data", "--path", path, "--scorer", "magnitude", "--output", "OUT", "--cpu"]),
        "export dense": (EXPORT, [path, "OUT", "--format", "dense"]),
        "export ctranslate2": (EXPORT, [path, "OUT", "--format", "ctranslate2", "--data", place / "data"]),
        "report": (REPORT, [results, "--output", "OUT"]),
        "bench": (BENCH, [*MEASURE, "--json", "OUT"]),
    }


def call(writer: tuple[str, list[Any]], out: Path, folder: Path, first: Callable[[], Any] = lambda: None) -> Result:
    """Runs a command in a child that does something `first`. What it says goes through pipes: no disk can refuse it."""
    if "ctranslate2" in writer[1]:
        pytest.importorskip("ctranslate2")
    module, arguments = writer
    pipes = os.pipe(), os.pipe()

    def act() -> None:
        command = importlib.import_module(module)
        importlib.import_module("fairseq_dsp.analysis.plots")
        for number, (_, end) in enumerate(pipes, 1):
            os.dup2(end, number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        first()
        command.cli_main()

    words = [out if word == "OUT" else word for word in arguments]
    code = Running(act, words, folder).wait().code
    for _, end in pipes:
        os.close(end)
    said = []
    for start, _ in pipes:
        with open(start, encoding="utf-8") as pipe:
            said.append(pipe.read())
    return Result(code, *said)


@pytest.mark.parametrize("room", [0, 300, 9000])
@pytest.mark.parametrize("name", WRITERS)
def test_no_room_on_the_disk(name, room, writers, place, tmp_path):
    """No file may get more than so many bytes, as on a disk that is full or fills: a limit that any user can set."""
    if name in ("score", "bench") and room == 9000:
        pytest.skip("writes less")
    (place / "out").mkdir()
    limit = (room, room)
    done = call(writers[name], place / "out/result", tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert_refused(done, "could not be written to", str(place / "out/result"), "File too large")
    assert os.listdir(place / "out") == []


@pytest.mark.parametrize("name", WRITERS)
def test_no_room_on_a_disk_that_is_really_full(name, writers, place, tmp_path):
    disk = place / "disk"
    disk.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=4k tmpfs {disk} 2>/dev/null"):
        pytest.skip("needs root who may mount")
    try:
        (disk / "ballast").write_bytes(bytes(4096))  # the whole of it
        done = call(writers[name], disk / "result", tmp_path)
        assert_refused(done, "could not be written to", "No space left on device")
        assert os.listdir(disk) == ["ballast"]
    finally:
        os.system(f"umount {disk}")


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_may_not_be_written_to_is_refused_before_any_work(name, writers, place, tmp_path):
    (place / "out").mkdir()
    (place / "out").chmod(0o555)
    writer = writers[name]
    if name not in ("report", "bench"):  # what is read is not there, and nobody gets as far as noticing
        (place / "in.pt").unlink()
    done = call(writer, place / "out/result", tmp_path, nobody)
    assert_refused(done, "one that you may write to", str(place / "out"))
    assert os.listdir(place / "out") == []


@pytest.mark.parametrize("name", WRITERS[:-1])  # bench imports as it goes, which nobody may where root has installed
def test_a_folder_that_became_read_only_meanwhile(name, writers, place, tmp_path, monkeypatch):
    (place / "out").mkdir()
    (place / "out").chmod(0o555)
    monkeypatch.setattr(os, "access", lambda *_: True)
    done = call(writers[name], place / "out/result", tmp_path, nobody)
    assert_refused(done, "could not be written to", "Permission denied")
    assert os.listdir(place / "out") == []


@pytest.mark.parametrize("name", ["prune", "average", "score", "export dense", "export ctranslate2"])
def test_a_checkpoint_that_vanishes_between_check_and_reading(name, writers, place, tmp_path):
    def vanish() -> None:
        there = os.path.isfile

        def and_gone(path: Any) -> bool:
            found = there(path)
            if str(path).endswith("in.pt"):
                os.unlink(path)
            return found

        os.path.isfile = and_gone

    (place / "out").mkdir()
    done = call(writers[name], place / "out/result", tmp_path, vanish)
    assert_refused(done, "No such file", str(place / "in.pt"))
    assert os.listdir(place / "out") == []


@pytest.mark.parametrize("name", ["prune", "export dense", "export ctranslate2"])
def test_a_checkpoint_that_vanishes_after_it_was_read(name, writers, place, tmp_path):
    def vanish() -> None:
        sync, rename = os.fsync, os.rename
        os.fsync = lambda file: (sync(file), (place / "in.pt").unlink())[0]
        os.rename = lambda *names: (rename(*names), (place / "in.pt").unlink())[0]

    done = call(writers[name], place / "result", tmp_path, vanish)
    assert done.code == 0, done.err
    assert (place / "result").exists()


def nobody() -> None:
    """Root may write everywhere; whoever else runs the tests may not."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def test_nan_in_the_loss_stops_training_with_the_reason_as_in_stock_fairseq(data, tmp_path):
    arguments = [*QUIET, "--max-update", 6, "--lr", "1e30", "--warmup-updates", 1, "--warmup-init-lr", "1e30"]
    stock = train(data, tmp_path / "stock", *arguments, stock=True, ok=False)
    ours = train(data, tmp_path / "ours", *arguments, *budget(5, cooldown=3), ok=False)
    for done, folder in ((stock, "stock"), (ours, "ours")):
        assert done.code == 1
        assert "FloatingPointError" in done.err
        assert "gradients are Nan/Inf" in done.err or "NaN" in done.err or "Inf" in done.err
        assert {path.name for path in (tmp_path / folder).glob("*.pt")} <= {"crash.pt"}  # fairseq's own, for inspection
    assert ours.err.splitlines()[-1] == stock.err.splitlines()[-1]


@pytest.mark.parametrize("where", ["given data", "sample corpus", "begun before"])
def test_a_reproduction_into_a_folder_that_may_not_be_written_to(where, place, data, tmp_path):
    from commands import ROOT

    sys.path.append(str(ROOT / "examples/translation"))
    import reproduce

    shutil.copytree(data, place / "data")
    (place / "out").mkdir()
    if where == "begun before":
        (place / "out/reproduce.json").write_text("{}")
    (place / "out").chmod(0o555)
    arguments = ["--preset", "smoke", "--output", place / "out", "--methods", "dense"]
    arguments += [] if where == "sample corpus" else ["--data", place / "data"]

    def act() -> None:
        nobody()
        reproduce.cli_main()

    tmp_path.chmod(0o777)
    done = Running(act, arguments, tmp_path).wait()
    assert_refused(done, str(place / "out"))
    assert os.listdir(place / "out") == (["reproduce.json"] if where == "begun before" else [])


def test_data_that_is_not_there_is_said(trained, tmp_path):
    for module, arguments in (
        (SCORE, [tmp_path / "none", "--path", trained, "--scorer", "gradient", "--output", tmp_path / "out"]),
        (EXPORT, [trained, tmp_path / "out", "--format", "ctranslate2", "--data", tmp_path / "none"]),
    ):
        if module == EXPORT:
            pytest.importorskip("ctranslate2")
        assert_refused(run(module, *arguments, folder=tmp_path), str(tmp_path / "none"))
