"""prepare-iwslt14.sh replaces nothing that it was not told to replace, and shares its folder with nobody."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from preparing import prepare, refused


@pytest.mark.parametrize("option", ["--output", "--archive", "--text-dir", "--sha256"])
def test_an_empty_value_is_refused(option: str, tmp_path: Path):
    """An unset variable of a shell: not the root of the disk, and no reason to fetch the archive."""
    refused(prepare("--output", tmp_path / "out", option, ""), f"`{option}` must have a value, but it is empty")


def test_what_appears_during_the_work_and_who_works_there_already_is_left_alone(corpus: Path, tmp_path: Path):
    out, tool = tmp_path / "out", tmp_path / "bin"
    options = [
        "--text-dir",
        corpus,
        "--source-lang",
        "aa",
        "--target-lang",
        "bb",
        "--output",
        out,
        "--bpe-codes",
        tmp_path / "codes",
    ]
    (tmp_path / "codes").write_text("#version: 0.2\na 1</w>\n")
    (out / ".work").mkdir(parents=True)
    (out / ".work/mine").touch()
    folder = os.open(out, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    refused(prepare(*options), "must be nobody else's, but a run is under way")
    os.close(folder)
    tool.mkdir()
    (tool / "cp").write_text(f'#!/bin/sh\nmkdir -p {out}/text && touch {out}/text/theirs\nexec /bin/cp "$@"\n')
    (tool / "cp").chmod(0o755)
    done = prepare(*options, PATH=f"{tool}:{os.environ['PATH']}")
    refused(done, "must not exist without `--force`", f"{out}/text")
    assert sorted(os.listdir(out)) == [".work", "text"]
    assert (os.listdir(out / "text"), os.listdir(out / ".work")) == (["theirs"], ["mine"])
