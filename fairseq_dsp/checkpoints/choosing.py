"""Which units a rewritten checkpoint keeps: those given, K of them, or what a `--budget` buys. Called by `rewriting`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fairseq_dsp.checkpoints.account import Account, Demand
from fairseq_dsp.config import PruningConfig
from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.options.costing import costs_of, measured_costs, sentence_of_validation
from fairseq_dsp.options.objections import budget_of_a_range, budget_out_of_range
from fairseq_dsp.options.records import TaskOptions
from fairseq_dsp.options.stored_layout import resolve_layout
from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.chosen import Chosen
from fairseq_dsp.units.costs import MACS
from fairseq_dsp.units.fingerprint import fingerprint
from fairseq_dsp.units.floors import Floors, fewest, floors_of, objection_to_floor, parse_floor, top_k_above_floors
from fairseq_dsp.units.groups import group_of, has_neurons, part_of, with_all_of
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.request import OPTION, BudgetRequest, written
from fairseq_dsp.units.selection import FloorsCostMore, keep_best, keep_first

if TYPE_CHECKING:
    from fairseq_dsp.plugin.model import DspTransformerModel
    from fairseq_dsp.units.score_file import ScoreFile


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
        heads = part_of(layout, [HEADS.name]).count
        if budget is not None and budget != heads:
            raise Refusal(f"`--unpruned-heads` must agree with `--layout`, which keeps {heads}, but is {budget}.")
        return layout
    if scores is not None:
        if budget is not None:
            _refuse_other_units(model, scores)
        if HEADS.name not in scores.units:
            raise Refusal(
                f"`--unpruned-heads` must come with scores of heads, but {', '.join(scores.units)} were scored."
            )
        refuse_budget(model, budget, floor, "--scores")
        assert budget is not None
        _refuse_other_weights(model, scores)
        kept = scores.keep_top_of_kinds({HEADS.name: budget}, floors_of(heads_of(model).surviving, parse_floor(floor)))
        return as_grouped(kept, model)
    gates = model.head_gates
    if gates is None:
        total = model.layout.grid.total
        if not rewritten and budget in (None, heads_of(model).count) and model.layout.count < total:
            return model.layout  # trained with these heads from the start: only the training state goes
        what = "was rewritten already" if rewritten else "has no importance variables"
        raise Refusal(
            f"the checkpoint {what} and keeps {model.layout.counted()}: say which to keep with `--layout`, or how "
            "many with `--unpruned-heads` and by whose importance with `--scores` (of fairseq-dsp-score)."
        )
    if budget is None and isinstance(gates, NestedGates) and gates.chosen.kinds != (HEADS.name,):
        raise Refusal(
            f"`{OPTION}` must say how many units to keep, {gates.nested.low} to {gates.nested.high}, of a checkpoint that chose among "
            f"{', '.join(gates.chosen.kinds)}, but is not given."
        )
    if budget is None:
        return model.deployed_layout()
    if gates.chosen.kinds != (HEADS.name,):
        raise Refusal(
            f"`--unpruned-heads` must be for a checkpoint that chose among heads alone, but is {budget} and it chose among "
            f"{', '.join(gates.chosen.kinds)}: use `{OPTION}`."
        )
    if isinstance(gates, NestedGates) and not gates.nested.low <= budget <= gates.nested.high:
        raise Refusal(budget_of_a_range(gates.nested.low, gates.nested.high, budget))
    if not 0 <= budget <= gates.grid.total:
        raise Refusal(budget_out_of_range(budget, gates.grid.total))
    floors = gates.floors if budget else ()
    if budget < fewest(floors):
        raise Refusal(
            f"`--unpruned-heads` must leave room for the {fewest(floors)} of cross-attention that the training's `--cross-floor` keeps, but is "
            f"{budget}."
        )
    return gates.chosen.keep(top_k_above_floors(gates.ranking(), budget, floors))


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


def as_grouped(kept: Layout, model: DspTransformerModel) -> Layout:
    """The layout without its neurons, where all stay and none are units of the model yet: such a model is one of heads alone."""
    heads = part_of(kept, [HEADS.name])
    return kept if has_neurons(model.layout.grid) or with_all_of(heads, kept.grid) != kept else heads


def _refuse_other_units(model: DspTransformerModel, scores: ScoreFile) -> None:
    """Raises:
    Refusal: the scores are of other units.
    """
    there = with_all_of(model.layout, scores.layout.grid)
    if scores.layout != there:
        raise Refusal(
            f"`--scores` must be of a model with the same {there.grid.noun} ({there}), but are of {scores.layout}."
        )


def _refuse_other_weights(model: DspTransformerModel, scores: ScoreFile) -> None:
    """Raises:
    Refusal: the scores are of other weights.
    """
    if (objection := scores.objection_to_weights(fingerprint(model.weights()), "`--scores`")) is not None:
        raise Refusal(objection)


def choose_under(
    model: DspTransformerModel, task: Any, demand: Demand, scores: ScoreFile | None, floor: str | None
) -> Account:
    """The units to keep under a budget: the best sum of scores, or in the order of removal, or of the model's own importance.

    Args:
        task: options of the task that trained the model.
        scores: of the model's units; None for its importance variables.
        floor: `--cross-floor`; None for one head where scores choose any, and for that of the training where importance does.

    Raises:
        Refusal: the budget cannot be met, or there is nothing to choose by.
    """
    layout, request = model.layout, demand.request
    if scores is not None:
        _refuse_other_units(model, scores)
        _refuse_other_weights(model, scores)
        layout = scores.layout
        if not request.by_kind and (objection := scores.objection_to_one_budget(OPTION, request.text)) is not None:
            raise Refusal(objection)
        kinds, values = list(scores.units), scores.ranking().tolist()
    elif model.head_gates is None:
        raise Refusal(
            f"`{OPTION}` must come with `--scores` (of fairseq-dsp-score) for a checkpoint without importance variables, but is "
            f"{request.text}."
        )
    else:
        kinds, values = list(model.head_gates.chosen.kinds), model.head_gates.ranking().tolist()
        if model.head_gates.budget is not None and model.head_gates.budget.parts and not request.by_kind:
            each = ",".join(f"{name}=K" for name in kinds)
            raise Refusal(
                f"`{OPTION}` must give each kind of unit its own budget ({each}), as the checkpoint was trained, which compared none of one "
                f"kind with one of another, but is {request.text}."
            )
    if request.measure == MACS and demand.sentence is None:
        options = TaskOptions.of(task)
        demand = replace(demand, sentence=sentence_of_validation(options.data, *options.languages))
    if request.measure != MACS:
        demand = replace(demand, sentence=None)
    limits = _limits(request, layout, kinds)
    named = [name for names, _ in limits for name in names]
    if demand.measured is not None:
        costs = measured_costs(model, demand.measured, layout)
    else:
        costs = costs_of(model, request.measure, demand.sentence, layout)
    if request.measure == COUNT:
        costs = costs.counting(lambda site: site in Chosen(layout, tuple(named)).grid.sites)
    costs = Chosen(layout, tuple(kinds)).in_sublayers(costs)
    kept, scored, number = layout, Chosen(layout, tuple(kinds)).grid, 0
    for names, count in limits:
        chosen = Chosen(layout, tuple(names))
        own = chosen.costs(costs)
        limit = request.limit(own, costs.dense) if count is None else count
        asked = "1" if floor is None and scores is not None and limit > 0 else floor
        floors: Floors = ()
        if scores is not None:
            floors = _floors(chosen, asked, limit, request)
        elif chosen.grid.of("cross") and model.head_gates is not None:
            floors = model.head_gates.floors
            asked = PruningConfig.from_model_cfg(model.args).cross_floor or str(fewest(floors))
            floors = floors if limit or count is None else ()
        choose = keep_best if scores is not None and scores.is_sum else keep_first
        try:
            best = choose(_values_at(values, scored, chosen.grid), Layout.full(chosen.grid), own, limit, floors)
        except FloorsCostMore as error:
            left, least = (written(cost * own.scale, own.measure) for cost in (limit, error.cost))
            raise Refusal(
                f"`--cross-floor {asked}` must fit the budget of {request.text}, which leaves {left} for units, but costs {least}."
            ) from error
        kept, number = kept.also_within(chosen.keep([float(mark) for mark in best.kept])), number + best.count
    if scores is None and isinstance(model.head_gates, NestedGates):
        low, high = model.head_gates.nested.low, model.head_gates.nested.high
        if not low <= number <= high:
            raise Refusal(
                f"`{OPTION}` must leave {low} to {high} {layout.grid.noun} of a checkpoint that was trained for so many, but {request.text} "
                f"leaves {number}."
            )
    counts = [count for _, count in limits if count is not None]
    return Account(demand, costs, sum(counts) if counts else request.limit(costs), kept, layout)


def _values_at(values: Sequence[float], grid: Grid, part: Grid) -> list[float]:
    """The values at the sites of a part, of those of all units of a grid."""
    spans = [span for site, span in grid.spans() if site in part.sites]
    return [value for span in spans for value in values[span]]


def _limits(request: BudgetRequest, layout: Layout, kinds: Sequence[str]) -> list[tuple[list[str], int | None]]:
    """Which kinds are chosen together, and how many of their units; None for a budget in another measure.

    Raises:
        Refusal: the budget names kinds of which there is nothing to choose by, or more units than there are.
    """
    if request.measure != COUNT:
        return [(list(kinds), None)]
    if request.amount is not None:
        return [(list(kinds), _number(request, layout, kinds))]
    if strangers := [name for name, _ in request.by_kind if name not in kinds]:
        raise Refusal(
            f"`{OPTION}` must name the kinds that are chosen ({', '.join(kinds) or 'none'}), but names {', '.join(strangers)}: "
            f"{request.text}."
        )
    return [
        ([name], _number(BudgetRequest(request.text, COUNT, amount), layout, [name]))
        for name, amount in sorted(request.by_kind, key=lambda item: kinds.index(item[0]))
    ]


def _number(request: BudgetRequest, layout: Layout, kinds: Sequence[str]) -> int:
    """How many units of some kinds: a share is of those of the dense model, as in every measure."""
    there, dense = (Chosen(each, tuple(kinds)).grid.total for each in (layout, Layout.full(layout.grid)))
    return request.count(there, dense)


def _floors(chosen: Chosen, floor: str | None, limit: int, request: BudgetRequest) -> Floors:
    wanted, there, noun = parse_floor(floor), chosen.grid, chosen.noun
    counted = limit if request.measure == COUNT else None
    if (objection := objection_to_floor(there, wanted, counted, noun)) is not None:
        raise Refusal(objection)
    return floors_of(there, wanted)
