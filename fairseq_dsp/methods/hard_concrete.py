"""L0 regularisation with hard concrete gates (Voita et al., ACL 2019): a baseline that has no budget while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods.method import Method, noise_for
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.subset import hard_concrete, hard_concrete_without_noise, logistic_noise, probability_open
from fairseq_dsp.units.weighted import relative_costs

# Li et al. (2021) train this baseline with 200 a batch of at most 4096 tokens.
L0_PENALTY = 0.05


@dataclass(frozen=True)
class HardConcrete(Method):
    """Gates are independent draws that are exactly 0 or 1 with positive probability; open ones cost.

        g = hard_concrete(w + Logistic(seed, update))
        loss per target token = cross entropy + l0_penalty · sum_h P(g_h != 0)        (Voita et al. 2019)

    The importance w is the paper's log alpha. The noise is one draw an update. The penalty decides how many heads
    survive, so no gate depends on K: `--unpruned-heads K` deploys the K largest w, `auto` the heads whose gate without
    noise is above 0, w > -log 11 (what the authors' code counts as active). Heads are never fixed, as in the paper,
    unless `--cooldown-updates` says when. Under a budget of unequal costs an open gate costs in proportion, l0_penalty on average.
    """

    name: ClassVar[str] = "hard-concrete"
    takes_costs: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("pipelined", "cooldown_updates", "l0_penalty")
    finds_number: ClassVar[bool] = True
    seed: int
    l0_penalty: float
    fixes_at: int | None

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        found = super().objections(config)
        if config.l0_penalty is not None and not 0 <= config.l0_penalty < float("inf"):
            found.append(f"{flag('l0_penalty')} must be a number of at least 0, but is {config.l0_penalty}.")
        return found

    @classmethod
    def from_config(cls, config: PruningConfig) -> HardConcrete:
        penalty = L0_PENALTY if config.l0_penalty is None else config.l0_penalty
        return cls(config.seed, penalty, config.cooldown_updates)

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        return hard_concrete(importance, noise_for(importance, logistic_noise, self.seed, update))

    def own_number(self, importance: Tensor, **own: Tensor) -> int:
        return int((hard_concrete_without_noise(importance.detach()) > 0).sum())

    def penalty(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        probability = probability_open(importance)
        if budget is not None and not budget.is_even:
            probability = relative_costs(budget, importance) * probability
        return self.l0_penalty * probability.sum()
