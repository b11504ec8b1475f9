"""Outputs: what is checked is what is written, whole or not there, and never over what somebody else has made."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files import hidden_folder, output
from fairseq_dsp.files.output import OutputFolder, checked_file, checked_folder


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


def write(path: Path | str, text: str = "new", force: bool = True, meanwhile: Callable[[], object] = bool) -> None:
    """A file that is checked, and written when something has happened."""
    checked_file(path, force).write(lambda file: (file.write(text.encode()), meanwhile()), "it")


def album(folder: Path | str, force: bool = True) -> OutputFolder:
    return checked_folder(folder, force, "albums", lambda path: os.listdir(path) == ["content"])


def fill(folder: Path | str, text: str = "new", force: bool = True, meanwhile: Callable[[], object] = bool) -> None:
    with album(folder, force).written("it") as new:
        Path(new, "content").write_text(text)
        meanwhile()


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_removes_what_it_left(tmp_path: Path):
    (tmp_path / "out").write_text("old")
    (tmp_path / ".out.mine").write_text("a user's")
    for _ in range(2):
        killed(lambda folder: write(folder / "out", "half", meanwhile=lambda: stop(folder)), tmp_path)
        assert (tmp_path / "out").read_text() == "old"
        assert len(os.listdir(tmp_path)) == 3  # one partial one, not two
    write(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == [".out.mine", "out"]


@pytest.mark.parametrize("make", [write, fill])
def test_what_another_one_is_writing_is_left_alone(make: Callable[..., None], tmp_path: Path):
    make(tmp_path / "out", "slow", meanwhile=lambda: make(tmp_path / "out", "fast"))
    found = tmp_path / "out"
    assert (found if make is write else found / "content").read_text() == "slow"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_is_replaced_and_kept_where_the_new_one_fails(tmp_path: Path):
    fill(tmp_path / "out", "old")

    def fail() -> None:
        raise OSError("no room")

    with pytest.raises(Refusal, match="it could not be written"):
        fill(tmp_path / "out", meanwhile=fail)
    assert (tmp_path / "out/content").read_text() == "old"
    fill(tmp_path / "out")
    assert (tmp_path / "out/content").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("way", ["killed", "stopped"])
def test_an_old_folder_comes_back_where_its_writer_ends_between_two_renames(way: str, tmp_path: Path, monkeypatch):
    fill(tmp_path / "out", "old")
    rename = os.rename

    def aside_only(source: str, target: str) -> None:
        rename(source, target)
        if target.endswith("old"):
            stop(tmp_path) if way == "killed" else signal.raise_signal(signal.SIGINT)

    def replace(folder: Path) -> None:
        monkeypatch.setattr(output.os, "rename", aside_only)
        fill(folder / "out")

    if way == "killed":
        killed(replace, tmp_path)
        assert not (tmp_path / "out").exists()
        with pytest.raises(Refusal, match="must not exist without `--force`"):  # it is there again
            album(tmp_path / "out", force=False)
    else:
        with pytest.raises(KeyboardInterrupt):
            replace(tmp_path)
    assert (tmp_path / "out/content").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_folder_is_replaced_with_force_and_only_by_its_kind(tmp_path: Path):
    for name in ("content", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("empty", "new"):
        album(tmp_path / name, force=False)
    album(tmp_path / "content")
    for name in ("content", "other", "file"):
        with pytest.raises(Refusal, match=f"must not exist without `--force`, but .*{name} does"):
            album(tmp_path / name, force=False)
    for name in ("other", "file"):
        with pytest.raises(Refusal, match="`--force` replaces albums and empty folders only"):
            album(tmp_path / name)
    with pytest.raises(Refusal, match="must exist"):
        album(tmp_path / "none/out")


def test_an_output_without_a_place_is_refused(tmp_path: Path):
    with pytest.raises(Refusal, match="must exist"):
        checked_file(tmp_path / "none/out", force=True)
    (tmp_path / "none").mkdir()
    checked = checked_file(tmp_path / "none/out", force=True)
    (tmp_path / "none").rmdir()
    with pytest.raises(Refusal, match="the score could not be written to .*none/out"):
        checked.write(lambda file: file.write(b""), "the score")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "//", "inner/..", "../here", "//{here}", "link", "x" * 300, "a\0b"]
)
def test_no_path_stands_for_the_working_folder_or_one_above_it(name: str, force: bool, tmp_path: Path, monkeypatch):
    """An unset variable of a shell is an empty path, which most functions take for the working folder."""
    here = tmp_path / "here"
    (here / "inner").mkdir(parents=True)
    (here / "link").symlink_to(here)
    (here / "content").touch()
    monkeypatch.chdir(here)
    for check in (album, checked_file):
        with pytest.raises(Refusal):
            check(name.format(here=here), force)
    (here / "inner").rmdir()
    for check in (album, checked_file):  # also where the working folder is one that may be replaced
        with pytest.raises(Refusal):
            check(name.format(here=here), force)
    assert sorted(os.listdir(here)) == ["content", "link"]


def test_what_is_no_regular_file_is_refused_whatever_it_is(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # such addresses are short
        server.bind("socket")
        (tmp_path / "to a device").symlink_to(os.devnull)
        for name, kind in (("pipe", "pipe"), ("socket", "socket"), ("to a device", "device"), (os.devnull, "device")):
            for force in (False, True):
                with pytest.raises(Refusal, match=f"must be a file, but .* is a {kind}"):
                    checked_file(tmp_path / name, force)
                with pytest.raises(Refusal):
                    album(tmp_path / name, force)
    with pytest.raises(Refusal, match="names a folder"):
        checked_file(f"{tmp_path}/new/", True)


@pytest.mark.parametrize("force", [False, True])
def test_a_link_to_nothing_is_refused(force: bool, tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "round").symlink_to("round")
    for name in ("link", "link/", "round"):
        for check in (checked_file, album):
            with pytest.raises(Refusal, match="link to nothing|names a folder"):
                check(f"{tmp_path}/{name}", force)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("make", [write, fill])
def test_a_link_is_kept_and_what_it_leads_to_replaced(make: Callable[..., None], tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    make(tmp_path / "elsewhere/real", "old")
    (tmp_path / "link").symlink_to("elsewhere/real")
    with pytest.raises(Refusal, match="must not exist without `--force`"):
        make(tmp_path / "link", force=False)
    make(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == "elsewhere/real"
    real = tmp_path / "elsewhere/real"
    assert (real if make is write else real / "content").read_text() == "new"
    assert os.listdir(tmp_path / "elsewhere") == ["real"]


@pytest.mark.parametrize("make", [write, fill])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o500])
def test_what_is_replaced_hands_down_its_mode(make: Callable[..., None], mode: int, tmp_path: Path):
    before = os.umask(0o022)
    try:
        make(tmp_path / "out", "old")
        assert stat.S_IMODE(os.stat(tmp_path / "out").st_mode) == (0o644 if make is write else 0o755)
        (tmp_path / "out").chmod(mode)
        make(tmp_path / "out")
        assert stat.S_IMODE(os.stat(tmp_path / "out").st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("what", ["file", "folder", "empty folder", "link to nothing"])
def test_what_appears_during_the_work_is_left_alone(what: str, links: bool, tmp_path: Path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no hard links here")))
    theirs = tmp_path / "out"

    def appear() -> None:
        if what == "file":
            theirs.write_text("theirs")
        elif what == "link to nothing":
            theirs.symlink_to("nothing")
        else:
            theirs.mkdir()
            if what == "folder":
                (theirs / "theirs").touch()

    for make, forces in ((write, [False]), (fill, [False, True])):
        for force in forces if what != "empty folder" else [False]:
            with pytest.raises(Refusal, match="must not exist without `--force`|`--force` replaces albums"):
                make(theirs, "ours", force, appear)
            if what == "file":
                assert theirs.read_text() == "theirs"
                theirs.unlink()
            elif what == "link to nothing":
                assert os.readlink(theirs) == "nothing"
                theirs.unlink()
            else:
                assert os.listdir(theirs) == (["theirs"] if what == "folder" else [])
                for path in theirs.iterdir():
                    path.unlink()
                theirs.rmdir()
            assert os.listdir(tmp_path) == []
    write(theirs, "ours", force=False)
    assert theirs.read_text() == "ours"


@pytest.mark.parametrize("make", [write, fill])
def test_a_name_that_was_claimed_is_given_up_where_the_output_cannot_have_it(make, tmp_path: Path, monkeypatch):
    for name in ("link", "rename", "replace"):
        monkeypatch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError("no such thing here")))
    with pytest.raises(Refusal, match="no such thing here"):
        make(tmp_path / "out", force=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [write, fill])
def test_a_fresh_hidden_folder_that_another_writer_takes_for_a_leftover_is_made_again(
    make, tmp_path: Path, monkeypatch
):
    """Between making the folder and locking it. The other writer's error was this one's: 19 of 1,200."""
    made = hidden_folder.tempfile.mkdtemp
    taken = []

    def taken_once(**where: str) -> str:
        path = made(**where)
        if len(taken) < 3:
            taken.append(path)
            hidden_folder.clear_leftovers(str(tmp_path / "out"))
        return path

    monkeypatch.setattr(hidden_folder.tempfile, "mkdtemp", taken_once)
    make(tmp_path / "out", force=False)
    assert len(set(taken)) == 3
    assert os.listdir(tmp_path) == ["out"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path):
    """The hidden folder's name is longer than the output's."""
    for name in ("x" * 255, "ü" * 127, "a\nb", " ", "-", "[b]", ":smile:", "*?[", os.fsdecode(b"\xff\xfe")):
        write(tmp_path / name, force=False)
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()
        fill(tmp_path / name, force=False)
        fill(tmp_path / name)
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name / "content").unlink()
        (tmp_path / name).rmdir()
