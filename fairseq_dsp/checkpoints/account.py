"""What `--budget` asks of a choice, and what the choice comes to. Called by `choosing` and the commands."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.cost_file import CostFile
from fairseq_dsp.units.costs import Costs, Sentence
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.request import BudgetRequest, written


@dataclass(frozen=True)
class Demand:
    """A budget, and what its measure needs.

    Attributes:
        sentence: that operations are counted of; None for the mean of the checkpoint's validation set.
        measured: what units take; None where the budget is not one of latency.
    """

    request: BudgetRequest
    sentence: Sentence | None = None
    measured: CostFile | None = None


@dataclass(frozen=True)
class Account:
    """What a choice comes to.

    Attributes:
        demand: what was asked for, with the sentence that was counted of.
        costs: of the architecture's units.
        limit: the most that kept units might cost.
        layout: the units that are kept.
        there: those that the model had.
    """

    demand: Demand
    costs: Costs
    limit: int
    layout: Layout
    there: Layout

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
        cheapest = costs.cheapest_off(self.layout, self.there)
        lines = [f"budget {self.demand.request.text}: at most {most} of {whole}{of}"]
        if self.demand.measured is not None:
            lines.append(f"costs measured {self.demand.measured.conditions}")
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
