"""Budgets that are a range (`--unpruned-heads 4..72`): one training of an order of heads, of which any K are deployed.

Sets are nested: those of K are the K most important heads, above the floors. What is trained at an update is drawn, so that every
K of the range is met (Yu et al. 2019; Cai et al. 2020 for shrinking from above; the law over K is ours).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods import METHODS, method_class
from fairseq_dsp.methods.schedule import CUBIC, Scheduled
from fairseq_dsp.units.subset import annealed_budget

LOG_UNIFORM, UNIFORM = "log-uniform", "uniform"
LAWS = (LOG_UNIFORM, UNIFORM)
OPTIONS = ("nested_law", "sandwich", "self_distillation")

_SHARE_OF_ALL = 0.25  # of updates that train the largest K, which a law that is even over log K would starve
_PURPOSE = 1  # apart from the noise of the same update


@dataclass(frozen=True)
class Nested:
    """Which K are trained, and at which a model is judged.

        P(K = K_max) = 1/4, else P(K) ~ 1/K on K_low(s) .. K_max - 1     (log-uniform)
        P(K) the same on K_low(s) .. K_max                               (uniform)

    K_low falls from K_max to K_min as a budget does (`--budget-schedule cubic`), or is K_min from the start.

    Attributes:
        low: K_min.
        high: K_max.
        law: of `LAWS`.
        seed: of the draw, with the number of the update.
        start: s0, of the fall of K_low.
        end: S, where it ends; 0 where K_low does not fall.
        sandwich: every update trains K_max, a drawn K and K_low, and takes the mean of the losses (Yu et al. 2019).
        self_distillation: share of what smaller K of a sandwich learn from K_max.
    """

    low: int
    high: int
    law: str
    seed: int
    start: int
    end: int
    sandwich: bool
    self_distillation: float

    @classmethod
    def from_config(cls, config: PruningConfig) -> Nested | None:
        """Those of the options; None where the budget is no range."""
        if config.budget_range is None:
            return None
        schedule, start, cooldown = Scheduled.schedule_of(config)
        end = cooldown if schedule == CUBIC else 0
        law, share = config.nested_law or LOG_UNIFORM, config.self_distillation or 0.0
        return cls(*config.budget_range, law, config.seed, start, end, config.sandwich, share)

    def lowest_at(self, update: int) -> int:
        """K_low of an update."""
        return annealed_budget(update, self.low, self.high, self.start, self.end) if self.end else self.low

    def drawn_at(self, update: int) -> int:
        """The K that an update draws; the same in every process and in a resumed run."""
        lowest = self.lowest_at(update)
        drawn = np.random.default_rng((self.seed % 2**64, update, _PURPOSE)).random(2)
        if self.law == UNIFORM:
            return lowest + int(drawn[0] * (self.high - lowest + 1))
        if lowest == self.high or drawn[0] < _SHARE_OF_ALL:
            return self.high
        cumulated = np.cumsum(1.0 / np.arange(lowest, self.high))
        return lowest + int(np.searchsorted(cumulated, drawn[1] * cumulated[-1], side="right"))

    def passes_at(self, update: int) -> tuple[int, ...]:
        """The K of the passes of an update, the largest first."""
        drawn = self.drawn_at(update)
        return (self.high, drawn, self.lowest_at(update)) if self.sandwich else (drawn,)

    def reported(self, total: int) -> tuple[int, ...]:
        """The K at which the model is validated: both ends, and H/12, H/6 and H/3 where they are in between."""
        between = {round(total / part) for part in (12, 6, 3)}
        return tuple(sorted({self.low, self.high} | {k for k in between if self.low < k < self.high}))


def objections_to_nested(config: PruningConfig) -> list[str]:
    """Sentences on a range of budgets and its options; empty if they fit.

    Raises:
        Refusal: `--head-selection` names no method.
    """
    found = []
    given = {name: getattr(config, name) for name in OPTIONS if getattr(config, name) not in (None, False)}
    if config.budget_range is None:
        return [
            f"{flag(name)} must come with a range of budgets (`--unpruned-heads 4..72`), but is {value} and the budget is "
            f"{config.unpruned_heads}."
            for name, value in given.items()
        ]
    low, high = config.budget_range
    if not 0 < low < high:
        found.append(
            f"{flag('unpruned_heads')} must be a range from a number above 0 to a larger one, but is {config.unpruned_heads}."
        )
    if not issubclass(method_class(config), Scheduled):
        owners = ", ".join(name for name, each in METHODS.items() if issubclass(each, Scheduled))
        found.append(
            f"{flag('unpruned_heads')} may be a range for {owners} alone, but is {config.unpruned_heads} for "
            f"`--head-selection {method_class(config).name}`."
        )
    if config.keep_sampling:
        found.append(f"{flag('keep_sampling')} must not be given with a range of budgets ({config.unpruned_heads}).")
    if config.nested_law is not None and config.nested_law not in LAWS:
        found.append(f"{flag('nested_law')} must be {' or '.join(LAWS)}, but is {config.nested_law}.")
    if config.self_distillation is not None and not 0 < config.self_distillation <= 1:
        found.append(f"{flag('self_distillation')} must be above 0 and at most 1, but is {config.self_distillation}.")
    if config.self_distillation is not None and not config.sandwich:
        found.append(
            f"{flag('self_distillation')} needs `--sandwich`, whose largest pass teaches, but it is not given."
        )
    return found
