"""Starting from a dense checkpoint of stock fairseq, and heads that are fixed from the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import QUIET, assert_refused, budget, heads_in, load, prune, train, weights

LAYOUT = "enc:10.01/dec:11.00/cross:01.00"


def layout_of(path: Path) -> str:
    return load(path)["cfg"]["model"].head_layout


def origin(save: Path) -> tuple[str, int | None]:
    """What a rewritten checkpoint says of who chose its heads: method and seed."""
    prune(save / "checkpoint_last.pt", save / "pruned.pt")
    provenance = load(save / "pruned.pt")["fairseq_dsp"]
    return provenance["method"], provenance["seed"]


def test_pipelined_training_moves_the_importance_and_leaves_the_weights_bit_for_bit(
    dense: Path, data: Path, tmp_path: Path
):
    schedule = [*QUIET, *budget(5, cooldown=6), "--pipelined", "--finetune-from-model", dense]
    done = train(data, tmp_path / "save", *schedule, "--save-interval-updates", 1, "--max-update", 8)
    before, after = weights(dense), weights(tmp_path / "save/checkpoint_last.pt")
    assert all(after[name].equal(value) for name, value in before.items())
    assert {name for name in after if name not in before} == {"head_gates.importance", "head_gates.fixed_mask"}
    first = load(tmp_path / "save/checkpoint_1_1.pt")["model"]["head_gates.importance"]
    assert not first.equal(after["head_gates.importance"])
    assert "(num. trained: 12)" in done.out
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5


def test_a_pipelined_run_resumes_to_the_same_end(dense: Path, data: Path, tmp_path: Path):
    schedule = [*QUIET, *budget(5, cooldown=6), "--pipelined", "--finetune-from-model", dense, "--max-update"]
    train(data, tmp_path / "whole", *schedule, 8)
    train(data, tmp_path / "parts", *schedule, 3)
    train(data, tmp_path / "parts", *schedule, 8)
    ends = [load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts")]
    assert all(value.equal(ends[1][name]) for name, value in ends[0].items())


def test_a_joint_run_starts_from_a_dense_checkpoint_and_moves_its_weights(dense: Path, data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, *budget(5), "--finetune-from-model", dense, "--max-update", 2)
    before, after = weights(dense), weights(tmp_path / "save/checkpoint_last.pt")
    assert not all(after[name].equal(value) for name, value in before.items())
    distance = (after["encoder.layers.0.fc1.weight"] - before["encoder.layers.0.fc1.weight"]).abs().max()
    assert distance < 0.1  # two updates away, not another initialisation


def test_straight_through_trains_a_hard_choice(data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=6), "--head-selection", "ste", "--max-update", 8)
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5
    assert load(tmp_path / "pruned.pt")["fairseq_dsp"]["method"] == "ste"


def test_random_heads_are_drawn_with_the_seed_and_trained_from_the_start(data: Path, tmp_path: Path):
    layouts = []
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        extra = ["--head-selection", "fixed", "--unpruned-heads", 5, "--seed", seed, "--max-update", 1]
        train(data, tmp_path / name, *QUIET, *extra)
        layouts.append(layout_of(tmp_path / name / "checkpoint_last.pt"))
        assert heads_in(tmp_path / name / "checkpoint_last.pt") == 5
        assert origin(tmp_path / name) == ("fixed", seed)
    assert layouts[0] == layouts[1] != layouts[2]
    assert all(layout.count("1") == 5 for layout in layouts)


def test_given_heads_are_trained_from_the_start(data: Path, tmp_path: Path):
    extra = ["--head-selection", "fixed", "--head-layout", LAYOUT, "--max-update", 2]
    train(data, tmp_path / "save", *QUIET, *extra)
    assert layout_of(tmp_path / "save/checkpoint_last.pt") == LAYOUT
    assert heads_in(tmp_path / "save/checkpoint_last.pt") == 5
    assert origin(tmp_path / "save") == ("fixed", None)


@pytest.mark.parametrize("k", [0, 12])
def test_random_heads_work_at_both_ends(k: int, data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, "--head-selection", "fixed", "--unpruned-heads", k, "--max-update", 1)
    assert heads_in(tmp_path / "save/checkpoint_last.pt") == k


def test_fixed_heads_resume_to_the_same_end(data: Path, tmp_path: Path):
    schedule = [*QUIET, "--head-selection", "fixed", "--unpruned-heads", 5, "--max-update"]
    train(data, tmp_path / "whole", *schedule, 10)
    train(data, tmp_path / "parts", *schedule, 9)
    train(data, tmp_path / "parts", *schedule, 10)
    ends = [load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts")]
    assert all(value.equal(ends[1][name]) for name, value in ends[0].items())


def test_a_dense_checkpoint_is_shrunk_to_given_heads_when_training_starts(dense: Path, data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, "--head-layout", LAYOUT, "--finetune-from-model", dense, "--max-update", 1)
    assert heads_in(tmp_path / "save/checkpoint_last.pt") == 5


@pytest.mark.parametrize("way", ["text", "checkpoint"])
@pytest.mark.parametrize("start", ["--finetune-from-model", "--restore-file"])
def test_prune_then_finetune_is_one_command(way: str, start: str, pruned: Path, data: Path, tmp_path: Path):
    heads = pruned if way == "checkpoint" else layout_of(pruned)
    extra = ["--head-layout", heads, start, pruned]
    done = train(data, tmp_path / "save", *QUIET, *extra, "--max-update", 3)
    assert "temperature" not in done.out.partition("Loaded checkpoint")[2]
    end = tmp_path / "save/checkpoint_last.pt"
    assert layout_of(end) == layout_of(pruned)
    assert heads_in(end) == 5
    name = "encoder.layers.0.fc1.weight"
    distance = (load(end)["model"][name] - load(pruned)["model"][name]).abs().max()
    assert 0 < distance < 0.2


def test_finetuning_a_pruned_checkpoint_needs_its_layout_and_the_sentence_gives_it(
    pruned: Path, data: Path, tmp_path: Path
):
    for name, extra in (("none", budget(5)), ("other", ["--head-layout", LAYOUT])):
        start = ["--finetune-from-model", pruned, "--max-update", 1]
        done = train(data, tmp_path / name, *QUIET, *extra, *start, ok=False)
        assert_refused(done, f"add `--head-layout {layout_of(pruned)}`")


def test_a_pruned_checkpoint_restored_without_its_layout_is_refused(pruned: Path, data: Path, tmp_path: Path):
    extra = [*budget(5), "--restore-file", pruned, "--max-update", 1]
    done = train(data, tmp_path / "save", *QUIET, *extra, ok=False)
    assert_refused(done, f"add `--head-layout {layout_of(pruned)}`")


def test_a_pruned_checkpoint_can_be_pruned_again_while_training(pruned: Path, data: Path, tmp_path: Path):
    extra = ["--head-layout", pruned, "--finetune-from-model", pruned, *budget(2, cooldown=2), "--max-update", 4]
    train(data, tmp_path / "save", *QUIET, *extra)
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "again.pt")
    assert heads_in(tmp_path / "again.pt") == 2
    marks = zip(layout_of(tmp_path / "again.pt"), layout_of(pruned), strict=True)
    assert all(after <= before for after, before in marks if before in "01")
