"""Floors on cross-attention: whatever chooses, so many heads stay, and nothing else changes where they would have stayed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build_gated, few_examples

from fairseq_dsp.checkpoints.choosing import choose_layout
from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.floors import (
    LAYER,
    fewest,
    floors_of,
    objection_to_floor,
    parse_floor,
    random_subset_above_floors,
    top_k_above_floors,
)
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.subset import hard_top_k

counts = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
grids = st.builds(Grid.of_heads, counts, counts, counts)


@st.composite
def cases(draw):
    grid = draw(grids)
    floor = draw(st.sampled_from([None, 0, 1, 2, LAYER]))
    floors = [(heads, min(count, len(heads))) for heads, count in floors_of(grid, floor)]
    k = draw(st.integers(min(fewest(floors), grid.total), grid.total))
    scores = torch.tensor(
        draw(st.lists(st.integers(-3, 3), min_size=grid.total, max_size=grid.total)), dtype=torch.float64
    )
    return grid, floors, k, scores


def meets(mask, floors):
    return all(sum(bool(mask[head]) for head in heads) >= count for heads, count in floors)


@few_examples
@given(cases())
def test_the_choice_has_k_heads_meets_the_floors_and_loses_as_little_score_as_possible(case):
    _, floors, k, scores = case
    mask = top_k_above_floors(scores, k, floors)
    assert mask.sum() == k
    assert meets(mask, floors)
    plain = hard_top_k(scores, k)
    if meets(plain, floors):
        assert torch.equal(mask, plain)
    # no exchange of a kept head for a removed one scores more and still meets the floors
    for out in mask.nonzero().flatten().tolist():
        for new in (mask == 0).nonzero().flatten().tolist():
            other = mask.clone()
            other[out], other[new] = 0, 1
            assert scores[new] <= scores[out] or not meets(other, floors)


@few_examples
@given(cases(), st.integers(0, 5))
def test_a_random_choice_meets_the_floors_and_is_the_plain_draw_where_that_does(case, seed):
    grid, floors, k, _ = case
    whole = Layout.full(grid)
    drawn = random_subset_above_floors(whole, k, seed, floors)
    assert drawn.count == k
    assert meets(drawn.kept, floors)
    plain = whole.random_subset(k, seed)
    if meets(plain.kept, floors):
        assert drawn == plain
    assert drawn == random_subset_above_floors(whole, k, seed, floors)


def test_a_draw_from_a_layout_without_all_heads_counts_its_own_cross_heads():
    some = Layout.parse("enc:111.111/dec:111.111/cross:010.000")
    for seed in range(20):
        drawn = random_subset_above_floors(some, 2, seed, floors_of(some.surviving, 1))
        assert drawn.within(some)
        assert drawn.by_type()["cross"][0] == 1


def test_floors_of_a_grid():
    grid = Grid.of_heads((2,), (2, 0), (3, 0, 1))
    assert floors_of(grid, None) == floors_of(grid, 0) == []
    assert floors_of(grid, 2) == [([4, 5, 6, 7], 2)]
    assert floors_of(grid, LAYER) == [([4, 5, 6], 1), ([7], 1)]


@pytest.mark.parametrize(
    ("floor", "kept", "words"),
    [
        (1, 3, None),
        (5, 8, "at most 4"),
        (2, 1, "budget of 1"),
        (LAYER, 1, "at least 2"),
        (LAYER, 2, None),
        (None, 0, None),
    ],
)
def test_a_floor_that_cannot_be_met_is_a_sentence(floor, kept, words):
    found = objection_to_floor(Grid.of_heads((2,), (2,), (3, 1)), floor, kept)
    assert (found is None) if words is None else words in found


@pytest.mark.parametrize("text", ["", "-1", "1.5", "one", "layers", "1 2"])
def test_a_floor_is_a_number_or_layer(text):
    with pytest.raises(Refusal, match="--cross-floor` must be a number of heads or layer"):
        parse_floor(text)
    assert parse_floor("3") == 3
    assert parse_floor(LAYER) == LAYER
    assert parse_floor(None) is None


def test_a_budget_below_the_floors_is_an_error():
    with pytest.raises(ValueError, match="at least 2"):
        top_k_above_floors(torch.arange(4.0), 1, [([0, 1], 2)])
    with pytest.raises(ValueError, match="at least 2"):
        random_subset_above_floors(Layout.full(Grid.of_heads((1,), (1,), (2,))), 1, 1, [([2, 3], 2)])


def test_another_number_for_a_trained_checkpoint_keeps_the_floor_of_the_training_or_is_refused():
    model = build_gated("dsp", 5, cross_floor="layer")
    with torch.no_grad():
        model.head_gates.importance.copy_(torch.arange(18.0).flip(0))  # cross-attention goes first
    for k in (2, 3):
        assert choose_layout(model, None, k, rewritten=False).by_type()["cross"][0] == 2
    with pytest.raises(Refusal, match="must leave room for the 2 of cross-attention .* but is 1"):
        choose_layout(model, None, 1, rewritten=False)
