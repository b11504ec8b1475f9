"""A penalty on how much units add to the residual stream (after SNIP, Lin et al., Findings of EMNLP 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods.method import Method
from fairseq_dsp.methods.schedule import cooldown_of
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.norms import ABSOLUTE, objection_to_norm

# Of 0.003 to 0.3 the one that solved the lookup task of `benchmark.choice` with both of two seeds.
NORM_PENALTY = 0.03

# Updates that the mean of a unit's norms goes back: weights change, and what a unit added long ago says little.
_MEMORY = 100


@dataclass(frozen=True)
class FunctionNorm(Method):
    """All units are on until the cooldown is over, and pay for what they add; those of the largest norms are kept then.

        loss per target token = cross entropy + norm_penalty · sum_u n_u
        n_u = E_x |F_u(x)| / sqrt(C)    or, relative to the stream that is added to,    E_x ( |F_u(x)| / |x| )

    F_u(x) is what unit u, a head or a group of neurons, adds to the residual stream, without the output bias, which is nobody's; x runs
    over positions that are not padding. What is ranked is the mean of n_u over updates, of the last hundred in the main:
    n <- n + (n_u - n) / min(updates, 100). Dropout is part of what is measured.

    After Lin et al. (2020), who drive residual modules to the identity by such a penalty and cut those below a threshold. Their equations
    could not be reached: form, mean, memory and weight of the penalty are choices of this package (design note 17). The threshold follows
    from the budget. It is in the log.
    """

    name: ClassVar[str] = "function-norm"
    options: ClassVar[tuple[str, ...]] = ("cooldown_updates", "norm_penalty", "norm")
    takes_costs: ClassVar[bool] = True
    has_window: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    norm_penalty: float
    fixes_at: int | None
    norm: str | None = ABSOLUTE
    units: int = 0

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        found = super().objections(config)
        if config.cooldown_updates == 0:
            found.append(
                f"{flag('cooldown_updates')} must be at least 1 for `--head-selection {cls.name}`, which measures what units add first, but is 0."
            )
        if config.norm_penalty is not None and not 0 <= config.norm_penalty < float("inf"):
            found.append(f"{flag('norm_penalty')} must be a number of at least 0, but is {config.norm_penalty}.")
        return found + [objection for objection in [objection_to_norm(config.norm)] if objection is not None]

    @classmethod
    def from_config(cls, config: PruningConfig) -> FunctionNorm:
        penalty = NORM_PENALTY if config.norm_penalty is None else config.norm_penalty
        return cls(penalty, cooldown_of(config), config.norm or ABSOLUTE)

    def of_sites(self, sizes: Sequence[int]) -> FunctionNorm:
        return replace(self, units=sum(sizes))

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        return torch.ones_like(importance) + 0.0 * importance

    def budget_at(self, budget: Budget | None, update: int) -> Budget | None:
        """All units are on."""
        return None if budget is None else budget.at(sum(budget.costs))

    def ranking(self, importance: Tensor, **own: Tensor) -> Tensor:
        return own["mean_norms"].to(importance.dtype)

    def records(self) -> dict[str, Tensor]:
        """Mean norms, and of how many updates they are: [H] each."""
        return {"mean_norms": torch.zeros(self.units), "norm_updates": torch.zeros(self.units)}

    def begin_update(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> None:
        """A training that starts on the state of another one measures its own norms."""
        if update == 0:
            for record in own.values():
                record.zero_()

    def note(self, norms: Tensor, seen: Tensor, **own: Tensor) -> None:
        mean, updates = own["mean_norms"], own["norm_updates"]
        updates += seen
        step = (norms - mean.double()) / updates.double().clamp(1, _MEMORY)
        mean += torch.where(seen, step, 0.0).to(mean.dtype)

    def penalty(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor | None:
        norms = own.get("norms")
        return None if norms is None or not self.norm_penalty else self.norm_penalty * norms.sum()
