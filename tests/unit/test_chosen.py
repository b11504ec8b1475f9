"""What is chosen among: units of some kinds, or whole sublayers; what a choice of these leaves of a model, and what they cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, build, layouts_of, many_examples, scores

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.errors import Refusal
from fairseq_dsp.options.kinds import refuse_unfit_choice
from fairseq_dsp.units.chosen import Chosen, default_kinds, parse_kinds, parse_rates
from fairseq_dsp.units.costs import Costs
from fairseq_dsp.units.groups import part_of
from fairseq_dsp.units.kinds import KIND_OF
from fairseq_dsp.units.layout import Grid, Layout

counts = st.lists(st.integers(0, 4), max_size=3).map(tuple)
grids = st.builds(
    lambda enc, dec, cross, one, other: Grid.of_stacks(enc=enc, dec=dec, cross=cross, ffn_enc=one, ffn_dec=other),
    *[counts] * 5,
)
kinds_of_choice = st.sampled_from([("heads",), ("ffn",), ("heads", "ffn"), ("sublayers",)])


@st.composite
def choices(draw: st.DrawFn) -> tuple[Chosen, list[float]]:
    chosen = Chosen(draw(layouts_of(draw(grids))), draw(kinds_of_choice))
    return chosen, draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=chosen.grid.total, max_size=chosen.grid.total))


@given(choices())
@many_examples
def test_a_choice_takes_of_its_kinds_alone_and_of_what_there_is(case):
    chosen, mask = case
    kept = chosen.keep(mask)
    assert kept.within(chosen.layout)
    for site in chosen.layout.grid.sites:
        if site not in chosen.grid.sites:
            assert kept.marks(site) == chosen.layout.marks(site)
    marks = {site: mask[span] for site, span in chosen.grid.spans()}
    for site, own in marks.items():
        if chosen.kinds == ("sublayers",):
            assert len(own) == min(len(chosen.layout.units(site)), 1)
            assert kept.units(site) == (chosen.layout.units(site) if sum(own) else [])
        else:
            there = chosen.layout.units(site)
            assert kept.units(site) == [unit for unit, mark in zip(there, own, strict=True) if mark]


@given(choices(), st.integers(1, 5), st.integers(0, 9))
@many_examples
def test_what_is_chosen_costs_what_the_layout_says(case, price, rest):
    chosen, mask = case
    grid = chosen.layout.grid
    prices = {site: price + len(site.stack) + site.layer for site in grid.sites}
    whole = Costs.of_units("macs", grid, prices, rest)
    own, kept = chosen.costs(whole), chosen.keep(mask)
    assert own.grid == chosen.grid
    assert own.rest + own.of(Layout.of_mask(chosen.grid, mask)) == whole.rest + whole.of(kept)


@given(grids)
@many_examples
def test_all_kinds_of_a_grid_are_its_units(grid):
    layout = Layout.full(grid)
    assert Chosen(layout, default_kinds(grid)).grid == layout.surviving
    for kind in ("heads", "ffn"):
        assert Chosen(layout, (kind,)).grid == part_of(layout, [kind]).grid
        assert all(KIND_OF[site.stack].name == kind for site in Chosen(layout, (kind,)).grid.sites)


@given(choices())
@many_examples
def test_the_units_of_a_kind_lie_side_by_side_and_are_all(case):
    chosen, _ = case
    found = list(chosen.places().items())
    assert [unit for _, span in found for unit in range(span.start, span.stop)] == list(range(chosen.grid.total))
    if chosen.kinds != ("sublayers",):
        for kind, span in found:
            assert span.stop - span.start == part_of(chosen.layout, [kind]).count


def test_rates_of_kinds_are_read():
    assert parse_rates(None, "--importance-lr-of") == {}
    assert parse_rates("ffn=1e-3,heads=0", "--importance-lr-of") == {"ffn": 0.001, "heads": 0.0}


@pytest.mark.parametrize(
    "text", ["", "0.1", "heads", "heads=", "heads=x", "heads=inf", "heads=-1", "neurons=1", "ffn=1,ffn=1", "ffn=1,"]
)
def test_other_rates_are_refused(text):
    with pytest.raises(Refusal) as caught:
        parse_rates(text, "--importance-lr-of")
    assert f"but is {text}." in str(caught.value)


def test_kinds_are_read_in_the_order_of_a_grid():
    assert parse_kinds("heads", "--prune") == ("heads",)
    assert parse_kinds("ffn,heads", "--prune") == ("heads", "ffn")
    assert parse_kinds("sublayers", "--prune") == ("sublayers",)


@pytest.mark.parametrize(
    "text", ["", "neurons", "heads,heads", "heads, ffn", "heads,", "heads,sublayers", "ffn,sublayers"]
)
def test_other_kinds_are_refused(text):
    with pytest.raises(Refusal) as caught:
        parse_kinds(text, "--prune")
    assert "`--prune` must" in str(caught.value)
    assert text in str(caught.value)


class TestTheSuccessiveSoftmax:
    def refused(self, budget, relaxation="successive-softmax", **options) -> bool:
        model = build(budget=budget, relaxation=relaxation, **options)
        try:
            refuse_unfit_choice(model.head_gates, PruningConfig(budget=budget))
        except Refusal as refusal:
            return "`--relaxation` must be projection for more than 200 units" in str(refusal)
        return False

    def test_takes_at_most_200_units_where_others_than_heads_are_chosen(self):
        many = {"ffn_group": 1, "encoder_ffn_embed_dim": 120, "decoder_ffn_embed_dim": 120}
        assert not self.refused("200", **many)
        assert self.refused("201", **many)
        assert not self.refused("201", "projection", **many)
        assert self.refused("heads=5,ffn=201", prune="heads,ffn", **many)
        assert not self.refused("heads=18,ffn=200", prune="heads,ffn", **many)

    def test_counts_units_and_so_is_none_for_those_that_cost_differently(self):
        of_recipes = ({"recipe": "paper"}, {"initial_temperature": 0.5, "final_temperature": 0.01})
        for options in of_recipes:
            model = build(budget="macs=0.9", sentence="9,8,5", **options)
            assert not model.head_gates.budget.is_even
            with pytest.raises(
                Refusal, match="must be projection for `--budget macs=0.9`, whose units cost differently"
            ):
                refuse_unfit_choice(model.head_gates, PruningConfig(budget="macs=0.9"))
            even = build(budget="parameters=0.99", **options).head_gates  # all heads are alike in these
            refuse_unfit_choice(even, PruningConfig(budget="parameters=0.99"))
        sound = build(budget="macs=0.9", sentence="9,8,5", relaxation="projection").head_gates
        refuse_unfit_choice(sound, PruningConfig(budget="macs=0.9"))

    def test_takes_any_number_of_heads(self):
        heads = {
            f"{side}_{name}": size
            for side in ("encoder", "decoder")
            for name, size in (("attention_heads", 40), ("embed_dim", 80))
        }
        assert not self.refused("230", **heads)


class TestHeadsAloneWhereNeuronsAreUnitsToo:
    LAYOUT = "enc:111.110/dec:111.111/cross:111.011/ffn-enc:1010101.0000000/ffn-dec:1111111.0000001"

    @pytest.mark.parametrize("method", ["dsp", "fixed"])
    def test_neurons_stay_as_the_layout_has_them(self, method):
        model = build(head_selection=method, prune="heads", unpruned_heads=5, head_layout=self.LAYOUT)
        layout = model.deployed_layout()
        assert part_of(layout, ["ffn"]) == part_of(Layout.parse(self.LAYOUT), ["ffn"])
        assert part_of(layout, ["heads"]).count == 5
        if method == "dsp":
            assert model.head_gates.importance.shape == (16,)
            expected = scores(model)
            model.bake()
            assert_same(scores(model), expected)

    def test_and_neurons_alone_leave_heads(self):
        model = build(prune="ffn", budget="5", head_layout=self.LAYOUT)
        assert model.head_gates.importance.shape == (12,)
        assert part_of(model.deployed_layout(), ["heads"]) == part_of(Layout.parse(self.LAYOUT), ["heads"])
        assert part_of(model.deployed_layout(), ["ffn"]).count == 5
