"""Each command on each stored checkpoint: what it prints and writes is, to the byte, what it was; tests/golden has the old texts."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from commands import ROOT, run
from models import not_on_0_12_2

from fairseq_dsp.units.score_file import read_scores

sys.path.append(str(ROOT))
from tests.golden.texts import CELLS, CHECKPOINTS, GOLDEN, LANGUAGES, make_data, text_of

BENCH = "fairseq_dsp.cli.bench"
importlib.import_module(BENCH)  # before any fork

pytestmark = not_on_0_12_2  # whose states and options have some more


@pytest.mark.parametrize("cell", CELLS)
def test_gives_what_it_gave(cell: str, tmp_path: Path):
    if "ctranslate2" in cell:
        pytest.importorskip("ctranslate2")
    found, expected = text_of(cell, tmp_path), (GOLDEN / f"texts/{cell}.txt").read_text(encoding="utf-8")
    if cell == "report":  # which may say more than it did, in paragraphs of its own
        paragraphs = iter(found.split("\n\n"))
        assert [each for each in expected.split("\n\n") if each not in paragraphs] == []
    else:
        assert found == expected


def test_every_stored_text_has_its_cell_and_most_are_no_refusals():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (GOLDEN / "texts").iterdir()}
    assert texts.keys() == set(CELLS)
    assert all(text.startswith(("exit code 0\n", "exit code 2\n")) for text in texts.values())
    assert sum(text.startswith("exit code 0\n") for text in texts.values()) > 0.7 * len(texts)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_benchmark_measures_each(name: str, tmp_path: Path):  # its figures are a matter of the moment
    path = shutil.copy(GOLDEN / CHECKPOINTS[name], tmp_path / f"{name}.pt")
    make_data(tmp_path / "data")
    few = "--workloads encoder,generate --output-length 3 --batch-size 4 --pairs 1 --warmup 0 --subset valid".split()
    where = ["--path", path, "--data", tmp_path / "data", *LANGUAGES, "--cpu", "--no-memory"]
    done = run(BENCH, *where, *few, folder=tmp_path)
    assert done.code == 0, done.err
    assert name in done.out


def test_scores_that_are_read_are_written_to_the_same_bytes():
    text = (GOLDEN / "scores.json").read_text()
    assert read_scores(str(GOLDEN / "scores.json")).text() == text
    assert json.loads(text)["format"] == 1
