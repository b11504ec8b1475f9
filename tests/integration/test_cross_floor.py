"""`--cross-floor` in trainings: a head of cross-attention stays by default, and what was trained without it goes on without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUIET, assert_refused, budget, load, prune, train

from fairseq_dsp.units.layout import Layout


def floor_of(path: Path) -> Any:
    return getattr(load(path)["cfg"]["model"], "cross_floor", None)


def without_cross_attention(path: Path, target: Path) -> None:
    """The checkpoint with importance by which every cross-attention head goes first."""
    state = torch.load(path, weights_only=False)
    state["model"]["head_gates.importance"] = torch.arange(12.0).flip(0)
    state["model"]["head_gates.fixed_mask"].fill_(-1)
    torch.save(state, target)


def cross_heads(path: Path, target: Path) -> int:
    """Cross-attention heads that a checkpoint deploys."""
    prune(path, target)
    return Layout.parse(load(target)["cfg"]["model"].head_layout).by_type()["cross"][0]


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that is choosing among its heads."""
    save = tmp_path_factory.mktemp("floor") / "save"
    train(data, save, *QUIET, *budget(4, 90), "--max-update", 3)
    return save / "checkpoint_last.pt"


def test_one_head_of_cross_attention_stays_by_default_whatever_is_learned(begun: Path, tmp_path: Path):
    assert floor_of(begun) == "1"
    without_cross_attention(begun, tmp_path / "changed.pt")
    assert cross_heads(tmp_path / "changed.pt", tmp_path / "small.pt") == 1


@pytest.mark.parametrize(("floor", "kept"), [("0", 0), ("layer", 2)])
def test_another_floor_is_kept_as_given(floor: str, kept: int, data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, *budget(4, 90), "--cross-floor", floor, "--max-update", 2)
    without_cross_attention(tmp_path / "save/checkpoint_last.pt", tmp_path / "changed.pt")
    assert cross_heads(tmp_path / "changed.pt", tmp_path / "small.pt") == kept


def test_what_was_trained_without_a_floor_goes_on_without(begun: Path, data: Path, tmp_path: Path):
    """Checkpoints of earlier versions do not say a word of it."""
    state = torch.load(begun, weights_only=False)
    del state["cfg"]["model"].cross_floor
    (tmp_path / "save").mkdir()
    torch.save(state, tmp_path / "save/checkpoint_last.pt")
    train(data, tmp_path / "save", *QUIET, *budget(4, 90), "--max-update", 5)
    assert floor_of(tmp_path / "save/checkpoint_last.pt") is None
    without_cross_attention(tmp_path / "save/checkpoint_last.pt", tmp_path / "changed.pt")
    assert cross_heads(tmp_path / "changed.pt", tmp_path / "small.pt") == 0


def test_another_floor_in_the_same_folder_is_refused(begun: Path, data: Path, tmp_path: Path):
    flags = [*QUIET, *budget(4, 90), "--cross-floor", "layer", "--max-update", 5]
    done = train(data, begun.parent, *flags, ok=False)
    assert_refused(done, "`--cross-floor` must stay 1", "but is layer")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--unpruned-heads", "1", "--cross-floor", "layer"], ["must fit the budget of 1 heads", "at least 2"]),
        (["--unpruned-heads", "5", "--cross-floor", "7"], ["must be at most 4"]),
        (["--unpruned-heads", "5", "--cross-floor", "some"], ["must be a number of heads or layer"]),
    ],
)
@pytest.mark.parametrize("method", ["dsp", "fixed", "stratified"])
def test_a_floor_that_cannot_be_kept_is_refused(method: str, options, words, data: Path, tmp_path: Path):
    flags = [*QUIET, *budget(5, 90)] if method == "dsp" else [*QUIET]
    done = train(data, tmp_path / "save", *flags, "--head-selection", method, *options, "--max-update", 1, ok=False)
    assert_refused(done, *words)


def test_counts_that_leave_no_cross_attention_need_a_floor_of_none(data: Path, tmp_path: Path):
    flags = [*QUIET, "--head-selection", "stratified", "--unpruned-heads", 4, "--head-counts", "enc=2,dec=2"]
    done = train(data, tmp_path / "save", *flags, "--max-update", 1, ok=False)
    assert_refused(done, "`--head-counts` must leave the cross-attention heads of `--cross-floor 1`")
    train(data, tmp_path / "save", *flags, "--max-update", 1, "--cross-floor", 0)


def test_a_folder_is_no_checkpoint_to_fine_tune_from(data: Path, tmp_path: Path):
    flags = [*QUIET, *budget(5, 90), "--finetune-from-model", tmp_path]
    assert_refused(train(data, tmp_path / "save", *flags, ok=False), "`--finetune-from-model`", "is a folder")
