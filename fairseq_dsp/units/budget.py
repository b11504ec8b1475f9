"""`Budget`: what the units that are kept may cost together. Made by `plugin`, read by methods and gates. Pure data.

A budget of heads is the one whose units cost 1 each. Nothing but the costs tells it from a budget in another measure. Kinds that have
a budget each are the parts of a `SplitBudget`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

# What costs are counted in.
COUNT = "count"


@dataclass(frozen=True)
class Budget:
    """A limit on the sum of the costs of the units that are kept. Hashable.

    Args:
        measure: what is counted: `count`, of units.
        limit: B >= 0, the most that the kept units may cost together.
        costs: c_u > 0, what each of the n units costs, in the grid's flat order.
    """

    measure: str
    limit: float
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 < cost < float("inf") for cost in self.costs):
            raise ValueError(f"costs must be numbers above 0, but are {self.costs}.")

    @classmethod
    def of_units(cls, k: int, total: int) -> Budget:
        """K of n units, whichever they are."""
        return cls(COUNT, k, (1.0,) * total)

    @property
    def count(self) -> int:
        """K, the number of units that are kept, where each costs the same."""
        return (
            min(int(self.limit // self.costs[0]), self.total)
            if self.costs and self.measure != COUNT
            else int(self.limit)
        )

    @functools.cached_property
    def prices(self) -> int:
        """How many different costs there are."""
        return len(set(self.costs))

    @property
    def is_even(self) -> bool:
        """Whether every unit costs the same, so that the budget is one of units."""
        return self.prices <= 1

    @property
    def parts(self) -> tuple[Budget, ...]:
        """The budgets of runs of units that follow one another, where each run has its own; none where all share one."""
        return ()

    @property
    def total(self) -> int:
        """n, the number of units that there are."""
        return len(self.costs)

    def of_count(self, k: int) -> Budget:
        """The limit under which K units are kept, where each costs the same."""
        return self.at(k if self.measure == COUNT or not self.costs else k * self.costs[0])

    def at(self, limit: float) -> Budget:
        """The same costs under another limit."""
        return replace(self, limit=limit)

    def room(self, marks: Sequence[float]) -> tuple[float, float]:
        """What the units that marks (0/1) keep leave of the limit, and what the cheapest of the others costs: infinite where all are kept."""
        kept = sum(cost for cost, mark in zip(self.costs, marks, strict=True) if mark)
        return self.limit - kept, min(
            (cost for cost, mark in zip(self.costs, marks, strict=True) if not mark), default=float("inf")
        )

    def is_met_by(self, marks: Sequence[float]) -> bool:
        """Whether marks (0/1) of all units stay within the budget and leave no room for another one; K of them, where costs are equal."""
        if self.is_even:
            return sum(marks) == self.count
        room, cheapest = self.room(marks)
        return 0 <= room < cheapest


@dataclass(frozen=True)
class SplitBudget(Budget):
    """A budget for each run of units, one run after the other in the flat order: every one of them is met for itself.

    Args:
        split: the budgets, in this order, all in one measure. `limit` and `costs` are those of all together.
    """

    split: tuple[Budget, ...] = ()

    @classmethod
    def of(cls, split: Sequence[Budget]) -> SplitBudget:
        """The budget of these parts."""
        costs = tuple(cost for part in split for cost in part.costs)
        return cls(split[0].measure, sum(part.limit for part in split), costs, tuple(split))

    @property
    def parts(self) -> tuple[Budget, ...]:
        return self.split

    @property
    def is_even(self) -> bool:
        return False  # units of one run do not do for those of another

    def is_met_by(self, marks: Sequence[float]) -> bool:
        rest = iter(marks)
        return all(part.is_met_by([next(rest) for _ in range(part.total)]) for part in self.split)
