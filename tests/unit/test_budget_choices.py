"""What `--budget` and `--unpruned-heads` keep of a model, by its own importance: met, accounted for, or refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from measured import made_up_costs
from models import build, build_with

from fairseq_dsp.checkpoints.account import Account, Demand
from fairseq_dsp.checkpoints.choosing import choose_layout, choose_under
from fairseq_dsp.errors import Refusal
from fairseq_dsp.options.costing import costs_of, sizes_of
from fairseq_dsp.units.cost_file import CostFile, Table
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.request import parse_budget
from fairseq_dsp.units.score_file import ScoreFile

KINDS = {"prune": "heads,ffn", "ffn_group": 2}
CUT = "enc:100.110/dec:101.000/cross:011.100/ffn-enc:1010000.0000000/ffn-dec:1111111.0000001"


def under(
    model: Any, text: str, scores: ScoreFile | None = None, costs: CostFile | None = None, floor: Any = None
) -> Account:
    return choose_under(model, None, Demand(parse_budget(text), measured=costs), scores, floor)


def scores_of(layout: Layout, kinds: tuple[str, ...] = ("heads", "ffn"), last: float = 1.0) -> ScoreFile:
    """Scores of all units that a model has: `last` of cross-attention, more of the others."""
    values = [
        last if site.stack == "cross" else 2.0
        for site, span in layout.surviving.spans()
        for _ in range(span.start, span.stop)
    ]
    return ScoreFile(
        "0.1.0", "fisher", layout, tuple(values), None, None, None, None, None, None, 1, "dense.pt", None, kinds
    )


class TestFloorsOfTheTraining:
    def test_are_left_out_where_nothing_is_kept(self):
        model = build(unpruned_heads=9, cross_floor="layer")
        assert choose_layout(model, None, 0, False).count == 0
        assert under(model, "0").layout.count == under(model, "heads=0").layout.count == 0

    @pytest.mark.parametrize("text", ["1", "heads=1"])
    def test_that_a_number_does_not_leave_room_for_are_a_sentence(self, text):
        model = build(unpruned_heads=9, cross_floor="layer")
        with pytest.raises(
            Refusal, match=f"`--cross-floor layer` must fit the budget of {text}, which leaves 1 .*, but costs 2"
        ):
            under(model, text)

    def test_that_a_measure_does_not_leave_room_for_are_a_sentence(self):
        model = build(unpruned_heads=9, cross_floor="layer")
        costs = costs_of(model, "parameters")
        least = costs.rest + 2 * costs.tables[-1][1]
        assert under(model, f"parameters={(least + 0.5) / costs.dense:.12f}").layout.by_type()["cross"][0] == 2
        with pytest.raises(
            Refusal, match="`--cross-floor layer` must fit the budget of parameters=.*, but costs 408 parameters"
        ):
            under(model, f"parameters={(least - 0.5) / costs.dense:.12f}")


class TestFloorsUnderMeasuredTime:
    """Two heads of a sublayer cost hardly more than one: what two cost depends on where they are."""

    def cut(self, share: float, steps: tuple[float, ...], **scores: Any) -> Account:
        model = build_with(Layout.full(build(unpruned_heads=18).layout.grid))
        file = made_up_costs(sizes_of(model))
        file = CostFile(**{**vars(file), "tables": {**file.tables, "cross": Table((0, 1, 2, 3), (0.0, *steps))}})
        return under(
            model,
            f"latency={(file.rest + sum(made_up_ffn(file)) + share) / file.dense:.12f}",
            scores_of(model.layout, ("heads",), **scores),
            file,
            "2",
        )

    def test_that_fit_are_kept(self):
        assert self.cut(0.0041, (0.003, 0.004, 0.005)).layout.by_type()["cross"][0] == 2

    def test_that_do_not_are_a_sentence(self):
        with pytest.raises(Refusal, match="`--cross-floor 2` must fit the budget of latency=.*, but costs"):
            self.cut(0.0041, (0.003, 0.008, 0.009))


def made_up_ffn(file: CostFile) -> list[float]:
    """What networks take whose neurons are no units."""
    return [file.tables[stack].at(size) for stack in ("ffn-enc", "ffn-dec") for size in file.sizes[stack]]


class TestACheckpointOfSeveralKinds:
    def test_takes_no_number_of_heads(self):
        with pytest.raises(
            Refusal,
            match="`--unpruned-heads` must be for a checkpoint that chose among heads alone, but is 5 and it chose among heads, ffn",
        ):
            choose_layout(build(budget="9", **KINDS), None, 5, False)

    @pytest.mark.parametrize("text", ["9", "0.5", "parameters=0.7"])
    def test_that_had_a_budget_each_takes_one_each(self, text):
        model = build(budget="heads=5,ffn=9", **KINDS)
        with pytest.raises(
            Refusal, match="`--budget` must give each kind of unit its own budget .heads=K,ffn=K.*but is " + text
        ):
            under(model, text)
        assert [kept for kept, _ in under(model, "heads=4,ffn=0.25").layout.by_kind().values()] == [4, 7]

    def test_a_layout_is_counted_in_heads(self):
        model = build_with(Layout.parse(CUT))
        assert choose_layout(model, CUT, 8, True) == Layout.parse(CUT)
        with pytest.raises(Refusal, match="which keeps 8, but is 18"):
            choose_layout(model, CUT, 18, True)

    @pytest.mark.parametrize("text", [CUT, CUT.partition("/ffn")[0]])
    def test_that_was_trained_with_a_layout_keeps_as_many_heads_as_are_asked_for(self, text):
        model = build_with(Layout.parse(text))
        assert choose_layout(model, None, None, False) == choose_layout(model, None, 8, False) == Layout.parse(text)
        for other in {18, model.layout.count, 7} - {8}:
            with pytest.raises(Refusal, match="has no importance variables and keeps 8 of 18 heads"):
                choose_layout(model, None, other, False)


@pytest.mark.parametrize(("text", "left"), [("2", 2), ("10", 10), ("0.1", 1), ("parameters=0.48", 3)])
def test_a_range_of_budgets_is_not_left(text, left):
    model = build(unpruned_heads="4..9")
    with pytest.raises(Refusal, match=f"`--budget` must leave 4 to 9 heads .*, but {text} leaves {left}"):
        under(model, text)
    for k in (4, 5):
        assert under(model, str(k)).layout == model.deployed_layout(k)
        assert under(model, str(k)).layout.count == k


def test_a_range_of_several_kinds_asks_for_a_budget():
    with pytest.raises(
        Refusal, match="`--budget` must say how many units to keep, 4 to 9, of a checkpoint that chose among heads, ffn"
    ):
        choose_layout(build(unpruned_heads="4..9", ffn_group=2), None, None, False)


class TestAModelThatWasCutAlready:
    """8 of 18 heads and 10 of 28 groups of 2 neurons are left."""

    model = property(lambda self: build_with(Layout.parse(CUT)))

    def test_no_unit_that_it_does_not_have_is_said_to_be_off(self):
        lines = under(self.model, "parameters=1.0", scores_of(Layout.parse(CUT))).lines()
        assert "slack" in lines[-1]
        assert "cheapest" not in lines[-1]

    def test_a_share_of_the_units_is_of_those_of_the_dense_model(self):
        account = under(self.model, "0.25", scores_of(Layout.parse(CUT)))
        assert account.layout.count == 11
        assert "at most 11 units of 46 units" in account.lines()[0]
        assert under(self.model, "heads=0.25,ffn=0.25", scores_of(Layout.parse(CUT))).layout.count == 4 + 7
        with pytest.raises(Refusal, match="`--budget` must be between 0 and 18 .the units of this model., but is 0.5"):
            under(self.model, "0.5", scores_of(Layout.parse(CUT)))
