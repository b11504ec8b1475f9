"""A budget of K heads, from fairseq-train to the rows of the rewritten file."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import HEADS, QUIET, assert_refused, budget, heads_in, load, prune, train


@pytest.mark.parametrize("k", [0, 1, 4, 7, HEADS - 1, HEADS])
def test_training_with_a_budget_and_rewriting_leaves_exactly_that_many_heads(k: int, data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, *budget(k, cooldown=4), "--max-update", 6)
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == k
    assert load(tmp_path / "pruned.pt")["cfg"]["model"].head_layout.count("1") == k


@pytest.mark.parametrize("k", ["13", "-1", "six", "2.5", ""])
def test_a_budget_that_is_no_number_of_heads_is_refused_and_no_file_written(k: str, data: Path, tmp_path: Path):
    done = train(data, tmp_path / "save", *QUIET, f"--unpruned-heads={k}", "--max-update", 2, ok=False)
    assert_refused(done, "`--unpruned-heads`", "must be", k)
    assert not list((tmp_path).rglob("*.pt"))


def test_a_missing_budget_is_refused(data: Path, tmp_path: Path):
    done = train(data, tmp_path / "save", *QUIET, "--max-update", 2, ok=False)
    assert_refused(done, "`--unpruned-heads` must be given")
    assert not list((tmp_path).rglob("*.pt"))
