"""Grids, layouts and scores: pure data, for any number of layers and heads."""

from __future__ import annotations

import collections

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import grids, layouts_of, many_examples

from fairseq_dsp.units.kinds import KIND_OF, KINDS
from fairseq_dsp.units.layout import Grid, Layout, Site

GRID = Grid.of_heads(enc=(3, 0, 2), dec=(2, 4), cross=(1, 3))
layouts = grids.flatmap(layouts_of)
_counts = st.lists(st.integers(0, 70), max_size=2)
both_kinds = st.builds(Grid.of_stacks, enc=_counts, cross=_counts, ffn_enc=_counts, ffn_dec=_counts).flatmap(layouts_of)


@st.composite
def layout_and_mask(draw: st.DrawFn) -> tuple[Layout, list[bool]]:
    """A layout, and a mark for every head that survives it."""
    layout = draw(layouts)
    return layout, draw(st.lists(st.booleans(), min_size=layout.count, max_size=layout.count))


class TestGrid:
    @many_examples
    @given(grids)
    def test_spans_cover_the_flat_order_without_gaps(self, grid):
        covered = [index for _, span in grid.spans() for index in range(span.start, span.stop)]
        assert covered == list(range(grid.total))

    @many_examples
    @given(grids)
    def test_spans_are_as_long_as_their_sites_have_heads(self, grid):
        assert [(site, span.stop - span.start) for site, span in grid.spans()] == [
            (site, grid.size(site)) for site in grid.sites
        ]

    @pytest.mark.parametrize(
        "sites", [[("dec", 0), ("enc", 0)], [("enc", 1)], [("enc", 0), ("enc", 0)], [("ffn-enc", 0), ("cross", 0)]]
    )
    def test_has_its_sites_in_one_order_only(self, sites):
        with pytest.raises(ValueError, match="in order"):
            Grid(tuple((Site(*site), 1) for site in sites))

    def test_orders_encoder_then_decoder_then_cross(self):
        assert [(site.stack, site.layer) for site in GRID.sites] == [
            *(("enc", layer) for layer in range(3)),
            *(("dec", layer) for layer in range(2)),
            *(("cross", layer) for layer in range(2)),
        ]


class TestText:
    @many_examples
    @given(layouts.filter(lambda layout: all(layout.grid.size(site) for site in layout.grid.sites)))
    def test_reads_back_as_the_same_layout(self, layout):
        assert Layout.parse(str(layout)) == layout

    @pytest.mark.parametrize("text", ["enc:/dec:/cross:", "enc:10/dec:/cross:", "enc:/dec:0.1/cross:11.00"])
    def test_of_stacks_without_layers_is_read_and_written(self, text):
        assert str(Layout.parse(text)) == text

    def test_may_have_white_space_around_it(self):
        assert Layout.parse(" enc:10/dec:1/cross:0\n") == Layout.parse("enc:10/dec:1/cross:0")

    @many_examples
    @given(layouts)
    def test_needs_no_quoting_in_a_shell(self, layout):
        assert set(str(layout)) <= set("encdeross:/.01")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "1010",
            "enc:10/dec:10",
            "enc:10/cross:10/dec:10",
            "enc:10/dec:10/cross:10/enc:10",
            "enc:12/dec:10/cross:10",
            "enc:1O/dec:10/cross:10",
            "enc:10,01/dec:10.10/cross:10.10",
            "enc:10./dec:10/cross:10",
            "enc:10..10/dec:10/cross:10",
            "enc:10/dec:10/cross",
            "encoder:10/dec:10/cross:10",
            "enc:١/dec:10/cross:10",
        ],
    )
    def test_with_a_mistake_is_refused(self, text):
        with pytest.raises(ValueError, match="layout"):
            Layout.parse(text)


def ffn_layouts() -> st.SearchStrategy[Layout]:
    """Layouts of heads and feed-forward units, the latter both below and above the length that is written in hexadecimal."""
    counts = st.lists(st.integers(1, 140), min_size=1, max_size=3)
    heads = st.lists(st.integers(1, 4), min_size=1, max_size=2)
    made = st.builds(
        lambda enc, dec, ffn: Grid.of_stacks(enc=enc, dec=dec, cross=dec, ffn_enc=ffn), heads, heads, counts
    )
    return made.flatmap(layouts_of)


class TestTextOfFeedForwardUnits:
    @many_examples
    @given(ffn_layouts())
    def test_reads_back_as_the_same_layout(self, layout):
        assert Layout.parse(str(layout)) == layout
        assert set(str(layout)) <= set("encdeross:/.01-fx23456789ab")

    def test_is_marks_up_to_64_units_and_hexadecimal_beyond(self):
        grid = Grid.of_stacks(enc=(1,), ffn_enc=(64, 65), ffn_dec=(2,))
        kept = (True, *[True] * 64, *[False] * 63, True, True, True, False)
        assert str(Layout(grid, kept)) == f"enc:1/dec:/cross:/ffn-enc:{64 * '1'}.x65:3/ffn-dec:10"

    @pytest.mark.parametrize(
        "ffn",
        ["x64:1", "x65:3ffffffffffffffff", "x65:01", "x65:", "x65", "x65:1G", "x9999999:1", "x065:1 ", "2", ""],
    )
    def test_with_a_mistake_is_refused(self, ffn):
        with pytest.raises(ValueError, match="layout"):
            Layout.parse(f"enc:1/dec:1/cross:1/ffn-enc:1.{ffn}/ffn-dec:1")

    def test_of_more_units_in_all_than_any_model_has_is_refused(self):
        with pytest.raises(ValueError, match="at most 4194304 units"):
            Layout.parse("enc:1/dec:1/cross:1/ffn-enc:" + ".".join(["x1048576:1"] * 5) + "/ffn-dec:1")

    @pytest.mark.parametrize(
        "text", ["enc:x65:1/dec:1/cross:1", "enc:1/dec:1/cross:1/ffn-enc:1", "enc:1/dec:1/cross:1/ffn-dec:1/ffn-enc:1"]
    )
    def test_is_for_feed_forward_stacks_in_their_order(self, text):
        with pytest.raises(ValueError, match="layout"):
            Layout.parse(text)


class TestLayout:
    def test_refuses_more_or_fewer_marks_than_heads(self):
        with pytest.raises(ValueError, match="layout of 2 heads cannot hold 1"):
            Layout(Grid.of_heads((2,), (), ()), (True,))

    @many_examples
    @given(layouts)
    def test_counts_agree_however_they_are_taken(self, layout):
        assert layout.count == sum(layout.kept)
        assert layout.count == sum(len(layout.units(site)) for site in layout.grid.sites)
        assert layout.count == sum(kept for kept, _ in layout.by_type().values())
        assert layout.count == layout.surviving.total
        assert layout.grid.total == sum(total for _, total in layout.by_type().values())

    @many_examples
    @given(layouts)
    def test_surviving_grid_has_as_many_heads_as_every_site_keeps(self, layout):
        assert layout.surviving.sites == layout.grid.sites
        for site in layout.grid.sites:
            assert layout.surviving.size(site) == len(layout.units(site)) == sum(layout.marks(site))

    @many_examples
    @given(both_kinds)
    def test_numbers_by_kind_are_sums_of_those_by_type(self, layout):
        for kind in KINDS:
            types = [counts for stack, counts in layout.by_type().items() if KIND_OF[stack] is kind]
            expected = tuple(map(sum, zip(*types, strict=True))) or None
            assert layout.by_kind().get(kind.noun) == expected
            assert expected is None or f"{expected[0]} of {expected[1]} {kind.noun}" in layout.counted()

    def test_by_type_says_kept_and_total(self):
        layout = Layout.parse("enc:100.011/dec:00/cross:1111")
        assert layout.by_type() == {"enc": (3, 6), "dec": (0, 2), "cross": (4, 4)}

    def test_names_heads_by_their_place_in_the_site(self):
        assert Layout.parse("enc:100.011/dec:00/cross:1").units(Site("enc", 1)) == [1, 2]

    @many_examples
    @given(grids.flatmap(lambda grid: st.tuples(layouts_of(grid), layouts_of(grid))))
    def test_is_within_another_exactly_if_its_heads_are_a_subset(self, pair):
        ours, theirs = ({(site, head) for site in layout.grid.sites for head in layout.units(site)} for layout in pair)
        assert pair[0].within(pair[1]) == (ours <= theirs)

    def test_is_never_within_a_layout_of_another_grid(self):
        nothing = Layout.parse("enc:0/dec:0/cross:0")
        assert not nothing.within(Layout.parse("enc:11/dec:1/cross:1"))

    def test_drawing_has_a_row_a_site_and_a_mark_a_head(self):
        layout = Layout.parse("enc:10.01/dec:1/cross:0")
        assert [line.split()[-2:] for line in layout.drawing().splitlines()[:2]] == [["#", "·"], ["·", "#"]]
        assert len(layout.drawing().splitlines()) == 4


class TestNarrow:
    @many_examples
    @given(layout_and_mask())
    def test_keeps_the_marked_survivors_under_their_original_ids(self, case):
        layout, mask = case
        survivors = [index for index, kept in enumerate(layout.kept) if kept]
        narrowed = layout.narrow([float(mark) for mark in mask])
        assert [index for index, kept in enumerate(narrowed.kept) if kept] == [
            index for index, mark in zip(survivors, mask, strict=True) if mark
        ]

    @many_examples
    @given(layout_and_mask(), st.data())
    def test_twice_never_revives_a_head(self, case, data):
        layout, mask = case
        once = layout.narrow(torch.tensor(mask))
        twice = once.narrow([data.draw(st.booleans()) for _ in range(once.count)])
        assert twice.within(once)
        assert once.within(layout)

    @many_examples
    @given(layouts)
    def test_by_nothing_but_ones_changes_nothing(self, layout):
        assert layout.narrow(torch.ones(layout.count)) == layout


class TestRandomSubset:
    @many_examples
    @given(layouts, st.integers(0, 10**6), st.data())
    def test_has_exactly_k_of_the_kept_heads_and_is_a_function_of_the_seed(self, layout, seed, data):
        k = data.draw(st.integers(0, layout.count))
        subset = layout.random_subset(k, seed)
        assert subset.count == k
        assert subset.within(layout)
        assert subset == layout.random_subset(k, seed)

    def test_draws_every_head_equally_often(self):
        drawn = collections.Counter(
            index
            for seed in range(2000)
            for index, kept in enumerate(Layout.full(GRID).random_subset(3, seed).kept)
            if kept
        )
        expected = 2000 * 3 / GRID.total
        assert len(drawn) == GRID.total
        assert all(abs(times - expected) < 6 * expected**0.5 for times in drawn.values())

    @pytest.mark.parametrize("k", [-1, 3])
    def test_refuses_more_or_fewer_than_there_are(self, k):
        with pytest.raises(ValueError, match=f"between 0 and 2, but is {k}"):
            Layout.parse("enc:101/dec:/cross:").random_subset(k, 1)
