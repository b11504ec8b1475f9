"""Which units of a finished model stay when it is rewritten: those given, of the highest scores, or of its own choice. Called by `rewriting`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.plugin.objections import budget_of_a_range, budget_out_of_range
from fairseq_dsp.plugin.stored_layout import resolve_layout
from fairseq_dsp.units.fingerprint import fingerprint
from fairseq_dsp.units.floors import fewest, floors_of, objection_to_floor, parse_floor, top_k_above_floors
from fairseq_dsp.units.groups import group_of, has_neurons, part_of, with_all_of
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.score_file import ScoreFile

if TYPE_CHECKING:
    from fairseq_dsp.plugin.model import DspTransformerModel


def choose_layout(
    model: DspTransformerModel,
    text: str | None,
    budget: int | None,
    rewritten: bool,
    scores: ScoreFile | None = None,
    floor: str | None = None,
) -> Layout:
    """The heads to keep: those given, those of the highest scores, or the model's own choice at any budget.

    Args:
        rewritten: the checkpoint was written by `fairseq-dsp-prune`.
        floor: `--cross-floor`, for a choice by scores.

    Raises:
        Refusal: no choice can be made, or it does not fit the model.
    """
    if text is not None:
        layout = resolve_layout(text, "--layout")
        if has_neurons(layout.grid) and not has_neurons(model.layout.grid):
            group_of(layout.grid, model.neurons, "--layout")  # refuses what does not fit
        there = with_all_of(model.layout, layout.grid)
        if not layout.within(there):
            raise Refusal(f"`--layout` must name {there.grid.noun} that the model has ({there}), but is {layout}.")
        if budget is not None and budget != layout.count:
            raise Refusal(
                f"`--unpruned-heads` must agree with `--layout`, which keeps {layout.count}, but is {budget}."
            )
        return layout
    if scores is not None:
        there = with_all_of(model.layout, scores.layout.grid)
        if budget is not None and scores.layout != there:
            raise Refusal(
                f"`--scores` must be of a model with the same {there.grid.noun} ({there}), but are of {scores.layout}."
            )
        if HEADS.name not in scores.units:
            raise Refusal(
                f"`--unpruned-heads` must come with scores of heads, but {', '.join(scores.units)} were scored."
            )
        refuse_budget(model, budget, floor, "--scores")
        assert budget is not None
        if (objection := scores.objection_to_weights(fingerprint(model.weights()), "`--scores`")) is not None:
            raise Refusal(objection)
        floors = floors_of(heads_of(model).surviving, parse_floor(floor))
        kept = scores.keep_top_of_kinds({HEADS.name: budget}, floors)
        return kept if has_neurons(model.layout.grid) else part_of(kept, [HEADS.name])  # whose neurons all stay
    gates = model.head_gates
    if gates is None:
        total = model.layout.grid.total
        if not rewritten and budget in (None, model.layout.count) and model.layout.count < total:
            return model.layout  # trained with these heads from the start: only the training state goes
        what = "was rewritten already" if rewritten else "has no importance variables"
        raise Refusal(
            f"the checkpoint {what} and keeps {model.layout.count} of {total} heads: say which to keep with `--layout`, or how "
            "many with `--unpruned-heads` and by whose importance with `--scores` (of fairseq-dsp-score)."
        )
    if budget is None:
        return model.deployed_layout()
    if isinstance(gates, NestedGates) and not gates.nested.low <= budget <= gates.nested.high:
        raise Refusal(budget_of_a_range(gates.nested.low, gates.nested.high, budget))
    if not 0 <= budget <= gates.grid.total:
        raise Refusal(budget_out_of_range(budget, gates.grid.total))
    floors = gates.floors if budget >= fewest(gates.floors) else ()
    return model.layout.narrow(top_k_above_floors(gates.importance.detach(), budget, floors))


def refuse_budget(model: DspTransformerModel, budget: int | None, floor: str | None, by: str) -> None:
    """Raises:
    Refusal: scores cannot choose so many heads of the model.
    """
    if budget is None:
        raise Refusal(f"`--unpruned-heads` must be given with `{by}`: how many heads to keep.")
    heads = heads_of(model)
    if not 0 <= budget <= heads.count:
        raise Refusal(budget_out_of_range(budget, heads.count))
    if floor is not None and (objection := objection_to_floor(heads.surviving, parse_floor(floor), budget)):
        raise Refusal(objection)


def heads_of(model: DspTransformerModel) -> Layout:
    """The part of a model's layout that `--unpruned-heads` counts."""
    return part_of(model.layout, [HEADS.name])
