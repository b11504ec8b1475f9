"""What fairseq's log says of the heads while training: kept by type, changed since the last validation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from commands import HEADS, budget, heads_in, prune, train

BY_TYPE = ["heads_enc", "heads_dec", "heads_cross"]


def figures(text: str, prefix: str) -> list[dict[str, Any]]:
    """Every line of fairseq's JSON log with the prefix (`train_inner`, `valid`, `train`)."""
    lines = re.findall(rf"\| {prefix} \| (\{{.*\}})$", text, re.MULTILINE)
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("method", ["dsp", "hard-concrete"])
def test_heads_by_type_and_changes_are_in_every_line(method: str, data: Path, tmp_path: Path):
    options: list[Any] = budget(5, cooldown=12) if method == "dsp" else ["--unpruned-heads", 5, "--importance-lr", 0.2]
    done = train(
        data, tmp_path / "save", "--head-selection", method, *options, "--max-epoch", 3, "--log-format", "json"
    )
    inner = figures(done.out, "train_inner")
    assert len(inner) == 24
    for prefix, lines in (("", inner), ("valid_", figures(done.out, "valid")), ("train_", figures(done.out, "train"))):
        for line in lines:
            assert sum(float(line[f"{prefix}{name}"]) for name in BY_TYPE) == 5
            changed = float(line[f"{prefix}heads_changed"])
            assert changed % 2 == 0
            assert changed <= 10
    # as many as changed by the last update of an epoch have changed when it is validated; a new count begins then
    last = [float(line["heads_changed"]) for line in inner[7::8]]
    assert [float(line["valid_heads_changed"]) for line in figures(done.out, "valid")] == last
    assert any(last)
    if method == "dsp":  # fixed at update 12, in the second epoch
        assert {float(line["heads_changed"]) for line in inner[16:]} == {0}


def test_they_are_taken_only_when_they_are_printed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fairseq_dsp.gates import HeadGates

    whole = HeadGates.layout
    monkeypatch.setattr(HeadGates, "layout", lambda gates: print("| looked") or whole(gates))
    options = [*budget(5), "--max-epoch", 2, "--log-interval", 4]
    done = train(data, tmp_path / "save", *options)
    # at the start, at updates 4, 8, 12 and 16, at two validations
    assert done.out.count("| looked") == 7


def test_hard_concrete_with_a_number_of_its_own_trains_and_rewrites(data: Path, tmp_path: Path):
    options = ["--head-selection", "hard-concrete", "--unpruned-heads", "auto", "--importance-lr", "0.5"]
    options += ["--l0-penalty", "2", "--max-epoch", "3", "--log-format", "json"]
    done = train(data, tmp_path / "save", *options)
    kept = sum(int(float(figures(done.out, "valid")[-1][f"valid_{name}"])) for name in BY_TYPE)
    assert kept < HEADS  # at this price
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "own.pt")
    assert heads_in(tmp_path / "own.pt") == kept
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "seven.pt", "--unpruned-heads", 7)
    assert heads_in(tmp_path / "seven.pt") == 7
