"""`NestedGates`: gates of a model that is trained for every K of a range. Built by `plugin/model` in place of `HeadGates`.

Once the cooldown is over the importance does not move, and so neither does the order of the heads: no other state is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.methods import Method
from fairseq_dsp.methods.nested import Nested
from fairseq_dsp.modules.gates import HeadGates, stamp_of
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.floors import Floors, top_k_above_floors
from fairseq_dsp.units.layout import Grid


class NestedGates(HeadGates):
    """See `HeadGates`; which K heads are on is drawn in training, and asked for (`at`) in evaluation.

    Args:
        nested: the range of K, and its law.

    Attributes:
        asked: K of the pass; None for that which the update draws, and in evaluation for the smallest of the range.
    """

    varies = True

    def __init__(self, grid: Grid, nested: Nested, method: Method, floors: Floors = ()) -> None:
        super().__init__(grid, Budget.of_units(nested.high, grid.total), method, floors)
        self.nested = nested
        self.asked: int | None = None
        self._ranked: tuple[Any, Tensor, tuple[int, ...]] | None = None

    @contextmanager
    def at(self, k: int) -> Iterator[None]:
        """Passes within have k heads on."""
        before, self.asked = self.asked, k
        self._drawn = self._evaluated = None
        try:
            yield
        finally:
            self.asked = before
            self._drawn = self._evaluated = None

    @property
    def budget_now(self) -> Budget | None:
        assert self.budget is not None
        k = self.asked if self.asked is not None else self.nested.drawn_at(self.update)
        return self.budget.at(k)

    def decided_mask(self) -> Tensor:
        """The heads that are on in evaluation: those of `asked`, or the fewest of the range."""
        k = self.nested.low if self.asked is None else self.asked
        return top_k_above_floors(self.importance, k, self.floors)

    def order(self) -> tuple[int, ...]:
        """All heads in the order in which budgets take them: the K first of them are those of K. Waits for the device."""
        return self._ranks()[1]

    def _ranks(self) -> tuple[Tensor, tuple[int, ...]]:
        """Places of all heads in the order, [H], and the order; read once when the importance does not move any more."""
        stamp = stamp_of(self.importance)
        if self._ranked is None or self._ranked[0] != stamp or not self.is_fixed:
            values = self.importance.detach().tolist()
            best = sorted(range(len(values)), key=lambda head: (-values[head], head))
            first = {
                head for heads, count in self.floors for head in [each for each in best if each in set(heads)][:count]
            }
            order = tuple([head for head in best if head in first] + [head for head in best if head not in first])
            ranks = torch.empty(len(order), dtype=torch.long)
            ranks[list(order)] = torch.arange(len(order))
            self._ranked = stamp, ranks.to(self.importance.device), order
        return self._ranked[1:]

    def _draw(self) -> Tensor:
        if not self.is_fixed:
            self._ranked = None  # an optimizer moves the importance through `.data`, which no stamp tells
            return super()._draw()
        assert self.budget_now is not None
        gates = (self._ranks()[0] < self.budget_now.count).to(self.importance.dtype)
        return self._in_graph(gates + 0.0 * self.importance)

    def constant_marks(self, anew: bool) -> tuple[bool, ...] | None:
        if not self.training:
            return super().constant_marks(anew)
        if not self.is_fixed:
            return None
        assert self.budget_now is not None
        on = set(self.order()[: self.budget_now.count])
        return tuple(head in on for head in range(self.grid.total))
