"""Outputs are whole or not there, and nothing of a killed writer stays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fairseq_dsp import output
from fairseq_dsp.errors import Refusal
from fairseq_dsp.output import write_atomically, written_beside


def killed(act: Callable[[Path], None], folder: Path) -> None:
    """Runs `act`, which says by a file named `go` that it shall be killed, in a child, and kills it."""
    child = os.fork()
    if child == 0:
        act(folder)
        os._exit(0)
    until = time.monotonic() + 20
    while not (folder / "go").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (folder / "go").unlink()


def stop(folder: Path) -> None:
    (folder / "go").touch()
    time.sleep(20)


def write_and_stop(folder: Path) -> None:
    write_atomically(str(folder / "out"), lambda file: (file.write(b"half"), file.flush(), stop(folder)), "it")


def fill(folder: Path, text: str) -> None:
    with written_beside(str(folder / "out"), "it") as new:
        Path(new, "content").write_text(text)


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_removes_what_it_left(tmp_path: Path):
    (tmp_path / "out").write_text("old")
    (tmp_path / ".out.mine").write_text("a user's")
    for _ in range(2):
        killed(write_and_stop, tmp_path)
        assert (tmp_path / "out").read_text() == "old"
        assert len(os.listdir(tmp_path)) == 3  # one partial one, not two
    write_atomically(str(tmp_path / "out"), lambda file: file.write(b"new"), "it")
    assert (tmp_path / "out").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == [".out.mine", "out"]


def test_what_another_one_is_writing_is_left_alone(tmp_path: Path):
    with written_beside(str(tmp_path / "out"), "it") as first:
        Path(first, "content").write_text("slow")
        fill(tmp_path, "fast")
        assert (tmp_path / "out/content").read_text() == "fast"
    assert (tmp_path / "out/content").read_text() == "slow"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_and_kept_where_the_new_one_fails(swaps: bool, monkeypatch, tmp_path: Path):
    if not swaps:
        monkeypatch.setattr(output, "_LIBC", None)
    fill(tmp_path, "old")
    with pytest.raises(Refusal, match="it could not be written"), written_beside(str(tmp_path / "out"), "it"):
        raise OSError("no room")
    assert (tmp_path / "out/content").read_text() == "old"
    fill(tmp_path, "new")
    assert (tmp_path / "out/content").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_an_old_folder_comes_back_where_its_replacement_was_killed_between_two_renames(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(output, "_LIBC", None)
    fill(tmp_path, "old")
    rename = os.rename

    def first_rename_only(source: str, target: str) -> None:
        rename(source, target)
        stop(tmp_path)

    def replace(folder: Path) -> None:
        output.os.rename = first_rename_only  # type: ignore[misc]
        fill(folder, "new")

    killed(replace, tmp_path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(Refusal), written_beside(str(tmp_path / "out"), "it"):
        raise OSError
    assert (tmp_path / "out/content").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_folder_is_replaced_with_force_and_only_by_its_kind(tmp_path: Path):
    def check(name: str, force: bool) -> None:
        output.refuse_to_overwrite_folder(
            str(tmp_path / name), force, "albums", lambda folder: os.listdir(folder) == ["album"]
        )

    for name in ("album", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("empty", "new"):
        check(name, force=False)
    check("album", force=True)
    for name in ("album", "other", "file"):
        with pytest.raises(Refusal, match=f"must not exist without `--force`, but .*{name} does"):
            check(name, force=False)
    for name in ("other", "file"):
        with pytest.raises(Refusal, match="`--force` replaces albums and empty folders only"):
            check(name, force=True)
    with pytest.raises(Refusal, match="must exist"):
        check("none/out", force=True)


def test_an_output_without_a_place_is_refused(tmp_path: Path):
    with pytest.raises(Refusal, match="must exist"):
        output.refuse_to_overwrite(str(tmp_path / "none/out"), force=True)
    with pytest.raises(Refusal, match="the score could not be written to .*none/out"):
        write_atomically(str(tmp_path / "none/out"), lambda file: file.write(b""), "the score")
