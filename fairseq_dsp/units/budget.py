"""`Budget`: what the units that are kept may cost together. Made by `plugin`, read by methods and gates. Pure data.

A budget of heads is the one whose units cost 1 each. Nothing but the costs tells it from a budget in another measure.
"""

from __future__ import annotations

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
        return int(self.limit)

    @property
    def total(self) -> int:
        """n, the number of units that there are."""
        return len(self.costs)

    def at(self, limit: float) -> Budget:
        """The same costs under another limit."""
        return replace(self, limit=limit)

    def is_met_by(self, marks: Sequence[float]) -> bool:
        """Whether marks (0/1) of all units keep as many as the budget asks for."""
        return sum(marks) == self.count
