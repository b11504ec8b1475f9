"""When heads are fixed, and a budget that falls until then, for the methods whose gates sum to a given number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods.method import Method
from fairseq_dsp.units.budget import Budget, SplitBudget
from fairseq_dsp.units.subset import annealed_budget

CONSTANT, CUBIC = "constant", "cubic"
AUTO = "auto"  # what `--recipe` takes for a window that follows from the length of the training
# Options that every method takes which fixes heads, and those of a budget that falls.
LEARNED_OPTIONS = ("pipelined", "cooldown_updates", "keep_sampling")
SCHEDULE_OPTIONS = ("budget_schedule", "budget_start_updates")

# The paper's recipe for IWSLT14 (its repository's README).
COOLDOWN_UPDATES, PIPELINED_COOLDOWN_UPDATES = 15000, 250


def cooldown_of(config: PruningConfig) -> int:
    """S, in updates: as given, or the paper's."""
    if config.cooldown_updates is not None:
        return config.cooldown_updates
    return PIPELINED_COOLDOWN_UPDATES if config.pipelined else COOLDOWN_UPDATES


def known_cooldown_of(config: PruningConfig) -> int | None:
    """S; None while a recipe has still to derive it. What must fit it is looked at again then."""
    return None if config.recipe == AUTO and config.cooldown_updates is None else cooldown_of(config)


@dataclass(frozen=True)
class Scheduled(Method):
    """A method whose budget may fall from all heads to K until the cooldown is over.

    A head is then judged after it has been trained, and beside fewer and fewer others.

    Attributes:
        budget_schedule: `constant` or `cubic`.
        budget_start_updates: s0, updates in which all heads are on.
        cooldown_updates: S, from which on K heads are on.
    """

    has_window: ClassVar[bool] = True
    reach: ClassVar[float | None] = 25.0
    budget_schedule: str
    budget_start_updates: int
    cooldown_updates: int

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        found = super().objections(config)
        name, start, end = config.budget_schedule, config.budget_start_updates, known_cooldown_of(config)
        if name not in (None, CONSTANT, CUBIC):
            found.append(f"{flag('budget_schedule')} must be {CONSTANT} or {CUBIC}, but is {name}.")
        elif start not in (None, 0) and name != CUBIC:
            found.append(f"{flag('budget_start_updates')} must come with `--budget-schedule {CUBIC}`, but is {start}.")
        elif start is not None and (start < 0 or end is not None and start >= max(end, 1)):
            below = "" if end is None else f" and below {flag('cooldown_updates')} ({end})"
            found.append(f"{flag('budget_start_updates')} must be at least 0{below}, but is {start}.")
        return found

    @staticmethod
    def schedule_of(config: PruningConfig) -> tuple[str, int, int]:
        """The attributes' values."""
        return config.budget_schedule or CONSTANT, config.budget_start_updates or 0, cooldown_of(config)

    def budget_at(self, budget: Budget | None, update: int) -> Budget | None:
        if budget is None or self.budget_schedule == CONSTANT:
            return budget
        if budget.parts:
            return SplitBudget.of([now for part in budget.parts if (now := self.budget_at(part, update)) is not None])
        start, end = self.budget_start_updates, self.cooldown_updates
        if budget.is_even:
            return budget.of_count(annealed_budget(update, budget.count, budget.total, start, end))
        return budget.at(annealed_budget(update, int(budget.limit), int(sum(budget.costs)), start, end))
