"""Which units a rewritten checkpoint keeps: those given, K of them, or what a `--budget` buys. Called by `rewriting`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fairseq_dsp.config import get_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.plugin.costing import costs_of, sentence_of_validation
from fairseq_dsp.plugin.objections import budget_of_a_range, budget_out_of_range
from fairseq_dsp.plugin.stored_layout import resolve_layout
from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.costs import MACS, Costs, Sentence
from fairseq_dsp.units.fingerprint import fingerprint
from fairseq_dsp.units.floors import Floors, fewest, floors_of, objection_to_floor, parse_floor, top_k_above_floors
from fairseq_dsp.units.kinds import KIND_OF
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.request import OPTION, BudgetRequest, written
from fairseq_dsp.units.selection import keep_best, keep_first

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
        if not layout.within(model.layout):
            raise Refusal(f"`--layout` must name heads that the model has ({model.layout}), but is {layout}.")
        if budget is not None and budget != layout.count:
            raise Refusal(
                f"`--unpruned-heads` must agree with `--layout`, which keeps {layout.count}, but is {budget}."
            )
        return layout
    if scores is not None:
        if budget is not None and scores.layout != model.layout:
            _refuse_other_scores(model, scores)
        refuse_budget(model, budget, floor, "--scores")
        assert budget is not None
        _refuse_other_scores(model, scores)
        floors = floors_of(model.layout.surviving, parse_floor(floor))
        return scores.keep_top(budget, floors)
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


def _refuse_other_scores(model: DspTransformerModel, scores: ScoreFile) -> None:
    """Raises:
    Refusal: the scores are of other heads, or of other weights.
    """
    if scores.layout != model.layout:
        raise Refusal(
            f"`--scores` must be of a model with the same heads ({model.layout}), but are of {scores.layout}."
        )
    if (objection := scores.objection_to_weights(fingerprint(model.weights()), "`--scores`")) is not None:
        raise Refusal(objection)


def refuse_budget(model: DspTransformerModel, budget: int | None, floor: str | None, by: str) -> None:
    """Raises:
    Refusal: scores cannot choose so many heads of the model.
    """
    if budget is None:
        raise Refusal(f"`--unpruned-heads` must be given with `{by}`: how many heads to keep.")
    if not 0 <= budget <= model.layout.count:
        raise Refusal(budget_out_of_range(budget, model.layout.count))
    if floor is not None and (objection := objection_to_floor(model.layout.surviving, parse_floor(floor), budget)):
        raise Refusal(objection)


@dataclass(frozen=True)
class Demand:
    """A budget, and the sentence that operations are counted of; None for the mean of the checkpoint's validation set."""

    request: BudgetRequest
    sentence: Sentence | None = None


@dataclass(frozen=True)
class Account:
    """What a choice comes to.

    Attributes:
        demand: what was asked for, with the sentence that was counted of.
        costs: of the architecture's units.
        limit: the most that kept units might cost.
        layout: the units that are kept.
    """

    demand: Demand
    costs: Costs
    limit: int
    layout: Layout

    @property
    def slack(self) -> int:
        """What is left of the limit."""
        return self.limit - self.costs.of(self.layout)

    def lines(self) -> list[str]:
        """The account for people: budget, what is kept as a share of the whole and of what can be taken out, and the slack."""
        costs, measure = self.costs, self.costs.measure
        spent, sentence = costs.of(self.layout), self.demand.sentence
        of = (
            f", for {sentence.source} source and {sentence.target} target tokens at beam {sentence.beam}"
            if sentence
            else ""
        )
        most, whole = self._written(costs.rest + self.limit), self._written(costs.dense)
        part = spent / costs.prunable if costs.prunable else 1.0
        cheapest = costs.cheapest_off(self.layout)
        lines = [f"budget {self.demand.request.text}: at most {most} of {whole}{of}"]
        if measure == COUNT:
            lines.append(f"kept: {self._written(spent)}, {part:.1%}; slack {self._written(self.slack)}")
        else:
            lines.append(
                f"kept: {self._written(costs.rest + spent)}, {(costs.rest + spent) / costs.dense:.1%} of the whole model and {part:.1%} of "
                f"the {costs.prunable / costs.dense:.1%} that can be taken out; slack {self._written(self.slack)}"
            )
        lines[-1] += "" if cheapest is None else f", the cheapest unit that is off costs {self._written(cheapest)}"
        return lines

    def _written(self, cost: int) -> str:
        return written(cost * self.costs.scale, self.costs.measure)


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
    there, request = model.layout.surviving, demand.request
    if scores is not None:
        _refuse_other_scores(model, scores)
    elif model.head_gates is None:
        raise Refusal(
            f"`{OPTION}` must come with `--scores` (of fairseq-dsp-score) for a checkpoint without importance variables, but is "
            f"{request.text}."
        )
    if request.measure == MACS and demand.sentence is None:
        languages = [get_option(task, name) for name in ("source_lang", "target_lang")]
        demand = Demand(request, sentence_of_validation(get_option(task, "data"), *languages))
    costs = costs_of(model, request.measure, demand.sentence)
    if request.measure == COUNT:
        limit = count_of(request, there)
    else:
        limit = request.limit(costs)
    if request.measure != MACS:
        demand = Demand(request)
    if floor is None and scores is not None and limit > 0:
        floor = "1"
    floors = _floors(there, floor, costs, limit, request)
    layout = model.layout
    if scores is not None and scores.order is None:
        kept = keep_best(scores.scores, layout, costs, limit, floors)
    elif scores is not None:
        kept = keep_first(scores.ranking().tolist(), layout, costs, limit, floors)
    else:
        kept = keep_first(model.head_gates.importance.tolist(), layout, costs, limit, model.head_gates.floors)
    return Account(demand, costs, limit, kept)


def count_of(request: BudgetRequest, grid: Grid) -> int:
    """K of a budget in units.

    Raises:
        Refusal: it names kinds of which the grid has no units, or more units than there are.
    """
    if request.amount is not None:
        return request.count(grid.total)
    kinds = {KIND_OF[site.stack].name for site, count in grid.counts if count}
    if [name for name, _ in request.by_kind] != sorted(kinds) or len(kinds) > 1:
        raise Refusal(
            f"`{OPTION}` must name the kinds that are chosen ({', '.join(sorted(kinds)) or 'none'}), but is {request.text}."
        )
    return BudgetRequest(request.text, COUNT, request.by_kind[0][1]).count(grid.total)


def _floors(there: Grid, floor: str | None, costs: Costs, limit: int, request: BudgetRequest) -> Floors:
    wanted = parse_floor(floor)
    if request.measure == COUNT:
        if (objection := objection_to_floor(there, wanted, limit)) is not None:
            raise Refusal(objection)
        return floors_of(there, wanted)
    if (objection := objection_to_floor(there, wanted, None)) is not None:
        raise Refusal(objection)
    floors = floors_of(there, wanted)
    sites = {unit: place for place, (_, span) in enumerate(there.spans()) for unit in range(span.start, span.stop)}
    least = sum(sum(sorted(costs.step(sites[unit], 0) for unit in units)[:count]) for units, count in floors)
    if least > limit:
        raise Refusal(
            f"`--cross-floor {floor}` must fit the budget of {request.text}, which leaves {written(limit * costs.scale, costs.measure)} for "
            f"units, but costs {written(least * costs.scale, costs.measure)}."
        )
    return floors
