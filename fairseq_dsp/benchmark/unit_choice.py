"""What budgets choose among random scores of a model that was never trained, for `unit_speed`.

Scores are of each unit its parameters times a number between 0.5 and 1.5, so that no kind is worth more than another for what it costs.
The choice among them is the knapsack of `fairseq-dsp-prune`.
"""

from __future__ import annotations

import random
from typing import Any

from fairseq_dsp.benchmark.candidates import Candidate
from fairseq_dsp.errors import Refusal
from fairseq_dsp.options.costing import costs_of
from fairseq_dsp.units.costs import MACS, PARAMETERS, Costs, Sentence
from fairseq_dsp.units.floors import floors_of
from fairseq_dsp.units.groups import with_groups
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.request import parse_budget
from fairseq_dsp.units.selection import keep_best

BEAM = 5


class Chooser:
    """The choices that budgets make among random scores of a dense model's units.

    Args:
        architecture: of ours.
        words: sizes of the dictionaries, as `--random` reads them.
        group: neurons of a unit.
    """

    def __init__(self, architecture: str, words: str, group: int) -> None:
        self.text, self.words = architecture, words
        self.model: Any = Candidate(self.named(""), True).build()
        self.full = Layout.full(with_groups(self.model.layout.grid, self.model.neurons, group))
        self.parameters = costs_of(self.model, PARAMETERS, layout=self.full)
        draw = random.Random(1)
        prices = [self.parameters.price(place) or 0 for place in range(len(self.full.grid.sites))]
        self.scores = [
            prices[place] * draw.uniform(0.5, 1.5)
            for place, (_, span) in enumerate(self.full.grid.spans())
            for _ in range(span.start, span.stop)
        ]

    def named(self, settings: str) -> str:
        """A model in the syntax of `--random`."""
        return f"{self.text}:words={self.words}" + (f",{settings}" if settings else "")

    def keep(self, costs: Costs, limit: int) -> Layout:
        """The units of the best scores within a limit, a cross-attention head among them.

        Raises:
            Refusal: the limit leaves no room for that head.
        """
        try:
            return keep_best(self.scores, self.full, costs, limit, floors_of(self.full.grid, 1))
        except ValueError as error:
            raise Refusal(
                f"a budget in {costs.measure} must leave room for a cross-attention head, but does not: {error}"
            ) from error

    def operations(self, length: int) -> Costs:
        """Multiply-adds of a sentence of so many words."""
        return costs_of(self.model, MACS, Sentence(length + 1, length + 1, BEAM), self.full)

    def within(self, budget: str, costs: Costs) -> Layout:
        """The choice that `--budget` makes."""
        return self.keep(costs, parse_budget(budget).limit(costs))

    def as_many_parameters(self, layout: Layout) -> Layout:
        """The choice under a budget of the parameters that a layout keeps."""
        return self.keep(self.parameters, self.parameters.of(layout))

    def candidate(self, layout: Layout) -> Candidate:
        return Candidate(self.named(f"layout={layout}"), True)
