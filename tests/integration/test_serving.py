"""serve_ctranslate2.py as a filter: every line is answered or named, and nothing is cut, dropped or renamed in silence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checked import file, served
from commands import ROOT, load

from fairseq_dsp.export.ctranslate2 import convert
from fairseq_dsp.files.checkpoint import write_checkpoint

pytest.importorskip("ctranslate2")

GOLDEN = ROOT / "tests/golden"
SOURCES = GOLDEN.joinpath("source.txt").read_text().splitlines()
LONGEST = 12  # words of a source that the model with few positions takes; some of the stored sentences are as long


def exported(folder: Path, **options: Any) -> Path:
    """The stored model, exported after some of its options changed."""
    folder.mkdir(exist_ok=True)
    state = load(GOLDEN / "rewritten.pt")
    model = state["cfg"]["model"]
    (model if isinstance(model, dict) else vars(model)).update(options)
    write_checkpoint(state, file(folder / "model.pt"))
    for language in ("qar", "qte"):
        (folder / f"dict.{language}.txt").write_text((GOLDEN / f"dict.{language}.txt").read_text())
        (folder / f"train.qar-qte.{language}.idx").touch()
    convert(str(folder / "model.pt"), served(folder / "served"), str(folder))
    return folder / "served"


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of few positions: `LONGEST` words and the end in a source, 7 words in a translation."""
    return exported(tmp_path_factory.mktemp("short"), max_source_positions=LONGEST + 1, max_target_positions=7)


def serve(model: Path, *options: object, lines: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "examples/translation/serve_ctranslate2.py", model, "--threads", 1, *options]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run([str(word) for word in command], input=text, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


def answered(model: Path, *options: object, lines: list[str]) -> list[str]:
    done = serve(model, *options, lines=lines)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_numbers_that_translate_nothing_are_refused_all_at_once(usual: Path):
    options = ["--batch-size", 0, "--beam", 0, "--max-length", -3, "--bpe-codes", "nowhere"]
    done = serve(usual, *options, lines=SOURCES)
    assert (done.returncode, done.stdout) == (2, "")
    for words in ("`--batch-size` must be at least 1, but is 0", "`--beam`", "`--max-length`", "-3", "nowhere"):
        assert words in done.stderr
    done = serve(usual, "--batch-size", -1, "--threads", -1, lines=SOURCES)
    assert (done.returncode, done.stdout) == (2, "")
    assert "`--threads` must be at least 0, but is -1" in done.stderr


def test_codes_that_are_none_are_refused(usual: Path, tmp_path: Path):
    (tmp_path / "codes").write_bytes(b"\xff\xfe\n")
    for codes in (tmp_path / "codes", tmp_path):
        done = serve(usual, "--bpe-codes", codes, lines=SOURCES)
        assert (done.returncode, done.stdout) == (2, "")
        assert "`--bpe-codes` must be codes of subword-nmt" in done.stderr


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_a_line_longer_than_the_positions_is_named_and_the_others_are_translated(short: Path, batch: int):
    lines = [line for line in SOURCES if len(line.split()) <= LONGEST]
    assert LONGEST in {len(line.split()) for line in lines}
    expected = answered(short, lines=lines)
    assert all(expected)
    done = serve(short, "--batch-size", batch, lines=[*lines[:2], f"{lines[0]} " * 5, "", *lines[2:]])
    assert done.stdout.split("\n")[:-1] == [*expected[:2], "", "", *expected[2:]]
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert f"line 3 must have at most {LONGEST} words" in said
    assert f"but has {5 * len(lines[0].split())}" in said


def test_nothing_is_cut_in_silence_where_ctranslate2_would(usual: Path):
    longer = f"{SOURCES[0]} " * 200  # than 1,024 words
    done = serve(usual, lines=[SOURCES[1], longer, SOURCES[2]])
    assert done.stdout.split("\n")[:-1] == [
        answered(usual, lines=[line])[0] if line else "" for line in (SOURCES[1], "", SOURCES[2])
    ]
    assert done.returncode == 2
    assert "line 2 must have at most 1023 words" in done.stderr


def test_translations_are_at_most_as_long_as_the_positions(short: Path):
    assert max(len(line.split()) for line in answered(short, lines=SOURCES[:4])) == 7
    done = serve(short, "--max-length", 8, lines=SOURCES)
    assert (done.returncode, done.stdout) == (2, "")
    assert "`--max-length` must be at most the 7 positions of the model, but is 8" in done.stderr


def test_a_model_of_an_earlier_version_works_and_says_where_it_stopped(tmp_path: Path):
    model = exported(tmp_path / "old", max_source_positions=LONGEST + 1)
    config = json.loads((model / "config.json").read_text())
    del config["fairseq_dsp"]
    (model / "config.json").write_text(json.dumps(config))
    lines = [line for line in SOURCES if len(line.split()) <= LONGEST]
    assert all(answered(model, lines=lines))
    done = serve(model, "--batch-size", 2, lines=[*lines[:2], f"{lines[0]} " * 5])
    assert done.returncode == 2
    assert len(done.stdout.split("\n")) == 3
    assert "line 3" in done.stderr
    assert "export it again" in done.stderr


def test_text_that_looks_like_padding_is_an_unknown_word(usual: Path):
    unknown, padding = (answered(usual, lines=[f"{word} {SOURCES[1]}"]) for word in ("nothingknown", "<blank>"))
    assert padding == unknown
