"""A slice of each campaign; CONTRIBUTING.md and docs/reliability.md name the long runs."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import made_up
import pytest
import torch
from commands import ROOT

sys.path.append(str(ROOT))

from tests.campaigns import fuzz, kills, soak
from tests.campaigns.cases import Case
from tests.campaigns.judging import Judge
from tests.campaigns.material import Material, Tally


@pytest.fixture
def made(data: Path, dense: Path, trained: Path, pruned: Path, tmp_path: Path) -> Material:
    results = made_up.write(tmp_path / "results.jsonl", [made_up.run("dense", 36), made_up.run(), made_up.run(kept=12)])
    return Material(data, dense, trained, pruned, results)


def test_kills(made: Material, tmp_path: Path):
    tally = Tally(6)
    kills.kill_commands(made, tmp_path, 6, random.Random(1), tally)
    assert tally.done == 6
    assert not tally.failures


def test_broken_inputs(made: Material, tmp_path: Path):
    tally = Tally(61)
    fuzz.run(made, tmp_path, 60, 1, 1, tally)
    assert tally.done == 61
    assert not tally.failures
    assert {"layout", "budget", "scores", "results", "options", "weights", "bytes"} <= tally.figures.keys()
    assert tally.figures["refused"] > 20


def test_what_is_wrong_counts_as_a_failure(made: Material, tmp_path: Path):
    judge = Judge(tmp_path / "outputs")
    judge.folder.mkdir()
    path = str(made.trained)
    assert not judge.run(Case("", "prune", (path, "OUT"), heads=5))
    assert "5 heads instead of 4" in judge.run(Case("", "prune", (path, "OUT"), heads=4))[0]
    assert "took what is not fit" in judge.run(Case("", "prune", (path, "OUT"), must_say="NaN"))[0]
    assert "does not name NaN" in judge.run(Case("", "prune", (path + "x", "OUT"), must_say="NaN"))[0]
    assert "TypeError" in judge.run(Case("", "prune", (3, "OUT")))[0]  # type: ignore[arg-type]


def test_soak(made: Material):
    words = ["--masked", made.trained, "--rewritten", made.pruned, "--data-bin", made.data, "--count", 37]
    assert soak.main([str(word) for word in words]) == 0


def test_soak_finds_another_model(made: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = torch.load(made.pruned, weights_only=True)
    state["model"]["decoder.layers.0.fc1.weight"] += 1e-3
    torch.save(state, tmp_path / "other.pt")
    words = ["--masked", made.trained, "--rewritten", tmp_path / "other.pt", "--data-bin", made.data, "--count", 37]
    assert soak.main([str(word) for word in words]) == 1
    assert "scores" in capsys.readouterr().err
