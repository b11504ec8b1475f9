"""Heads drawn with given counts: the rule to beat, and the control that keeps a layout's counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import build, few_examples

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods import objections_to_method
from fairseq_dsp.methods.stratified import EVEN, RULE, counts_of, counts_of_layout, draw_stratified
from fairseq_dsp.units.layout import Grid, Layout

counts = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
grids = st.builds(Grid.of_heads, counts, counts, counts)
PAPER = Grid.of_heads((8,) * 3, (8,) * 3, (8,) * 3)


@few_examples
@given(grids, st.data(), st.sampled_from([RULE, EVEN, None]), st.integers(0, 9))
def test_exactly_k_heads_are_kept_whatever_the_grid(grid, data, text, seed):
    k = data.draw(st.integers(0, grid.total))
    layout = draw_stratified(grid, counts_of(grid, k, text), seed)
    assert layout.count == k
    assert layout == draw_stratified(grid, counts_of(grid, k, text), seed)


@few_examples
@given(grids, st.data())
def test_heads_drawn_by_the_counts_of_a_layout_have_its_counts(grid, data):
    layout = Layout.full(grid).random_subset(data.draw(st.integers(0, grid.total)), 3)
    assert counts_of_layout(draw_stratified(grid, counts_of_layout(layout), 5)) == counts_of_layout(layout)


@few_examples
@given(grids, st.data())
def test_even_means_that_no_sublayer_with_heads_to_give_has_two_fewer_than_another(grid, data):
    found = counts_of(grid, data.draw(st.integers(0, grid.total)), EVEN)
    for site, count in found.items():
        assert count == grid.size(site) or count + 1 >= max(found.values())


def text_of(layout):
    return [
        "".join(str(len(layout.units(site))) for site in layout.grid.sites if site.stack == s)
        for s in ("enc", "dec", "cross")
    ]


@pytest.mark.parametrize(
    ("k", "wanted"),
    [(4, ["000", "010", "111"]), (6, ["000", "010", "122"]), (12, ["010", "110", "333"]), (72, ["888", "888", "888"])],
)
def test_the_rule_is_mostly_cross_attention_in_every_layer(k, wanted):
    assert text_of(draw_stratified(PAPER, counts_of(PAPER, k, RULE), 1)) == wanted


def test_numbers_by_type_are_spread_over_the_layers():
    assert text_of(draw_stratified(PAPER, counts_of(PAPER, 9, "enc=1,dec=4,cross=4"), 1)) == ["010", "121", "112"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("enc=1", "add up to the budget of 6"),
        ("enc=30,dec=0", "add up"),
        ("half", "must be rule, even"),
        ("enc=-1", "must be rule"),
    ],
)
def test_counts_that_do_not_fit_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        counts_of(PAPER, 6, text)
    with pytest.raises(ValueError, match="at most 24 for enc"):
        counts_of(PAPER, 30, "enc=30")


class TestModel:
    def test_is_built_with_the_drawn_heads_and_says_so_in_its_options(self):
        model = build(head_selection="stratified", unpruned_heads=5, seed=2)
        assert model.layout.count == 5
        # as a checkpoint is built, with budget, method and layout in its options
        again = build(head_selection="stratified", unpruned_heads=5, seed=2, head_layout=str(model.layout))
        assert again.layout == model.layout

    def test_shuffles_the_heads_of_a_layout(self):
        given = "enc:110.000/dec:000.001/cross:000.011"
        layout = build(head_selection="stratified", unpruned_heads=5, head_counts=given).layout
        assert counts_of_layout(layout) == counts_of_layout(Layout.parse(given))

    def test_draws_among_the_heads_of_a_given_layout_alone(self):
        given = "enc:110.000/dec:111.000/cross:101.011"
        drawn = build(head_selection="stratified", unpruned_heads=6, seed=2, head_layout=given).layout
        assert drawn.count == 6
        assert drawn.within(Layout.parse(given))
        assert drawn.by_type()["cross"][0] == 4  # 70 % would be five, and there are four
        even = build(head_selection="stratified", unpruned_heads=4, head_counts="even", head_layout=given).layout
        assert counts_of_layout(even) == dict(zip(even.grid.sites, [1, 0, 1, 0, 1, 1], strict=True))

    def test_leaves_the_neurons_of_a_given_layout_as_they_are(self):
        given = "enc:111.111/dec:111.111/cross:111.111/ffn-enc:1010000.0000000/ffn-dec:1111111.0000001"
        drawn = build(head_selection="stratified", unpruned_heads=5, seed=2, head_layout=given).layout
        assert drawn.by_kind()["heads"] == (5, 18)
        assert str(drawn).endswith("/ffn-enc:1010000.0000000/ffn-dec:1111111.0000001")

    def test_refuses_more_heads_of_a_sublayer_than_a_given_layout_has(self, capsys):
        counts, given = "enc:110.000/dec:000.001/cross:000.011", "enc:100.111/dec:111.111/cross:111.111"
        with pytest.raises(SystemExit):
            build(head_selection="stratified", unpruned_heads=5, head_counts=counts, head_layout=given)
        assert (
            "must keep no more heads of a sublayer than there are, but keeps 2 of the 1 of enc 0"
            in capsys.readouterr().err
        )

    def test_refuses_counts_that_do_not_add_up_to_the_budget(self, capsys):
        given = "enc:110.000/dec:000.001/cross:000.011"
        with pytest.raises(SystemExit):
            build(head_selection="stratified", unpruned_heads=4, head_counts=given)
        assert "must add up to the budget of 4, but the layout keeps 5" in capsys.readouterr().err


def test_a_budget_beside_a_layout_is_refused_and_not_met_by_another_draw():
    config = PruningConfig(head_selection="stratified", budget="4", head_layout="enc:11/dec:11/cross:11")
    (reason,) = objections_to_method(config)
    assert "`--unpruned-heads` must be given for `--head-selection stratified`" in reason
    assert objections_to_method(replace(config, budget=None, unpruned_heads=4)) == []
