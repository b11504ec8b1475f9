"""Hard concrete gates under a constraint (CoFi, Xia et al., ACL 2022): the number of open heads is asked for, not paid for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods.method import Method, noise_for
from fairseq_dsp.methods.schedule import LEARNED_OPTIONS, cooldown_of, known_cooldown_of
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.subset import hard_concrete, logistic_noise, probability_open

# As in the authors' code (princeton-nlp/CoFiPruning): temperature of the gates, and the range of log alpha, at whose end it starts.
TEMPERATURE = 2 / 3
LOWEST, HIGHEST = math.log(0.01), math.log(100)


@dataclass(frozen=True)
class Lagrangian(Method):
    """Gates are independent hard concrete draws; two multipliers drive the expected share of closed ones to the budget's.

        g = hard_concrete(log alpha + Logistic(seed, update)), temperature 2/3,   log alpha = log 100 + w within log 0.01 .. log 100
        loss per target token = cross entropy + l1 · (s - s_t) + l2 · (s - s_t)²
        s = share of heads expected to be closed,   s_t = (1 - K/H) · min(1, update / lagrangian_warmup)

    (Xia et al. 2022, after Wang et al. 2020, and the authors' code.) The multipliers start at 0 and are trained
    by ascent with the importance's learning rate, 0.01 for both in the paper, whose models are fine-tuned. All gates start
    open. After the cooldown the K largest w are fixed, so that K heads are kept whether or not the constraint is met by then.

    As in the paper: gates, constraint, its linear warm-up. Not as there: heads alone are pruned; a head that is deployed
    has gate 1; no updates without gates before the warm-up, for which `--finetune-from-model` is; no distillation of layers.
    """

    name: ClassVar[str] = "lagrangian"
    options: ClassVar[tuple[str, ...]] = (*LEARNED_OPTIONS, "lagrangian_warmup")
    has_window: ClassVar[bool] = True
    reach: ClassVar[float | None] = 100.0  # with less the constraint is not met (design note 11)
    seed: int
    warmup: int
    fixes_at: int | None

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        found, end, warmup = super().objections(config), known_cooldown_of(config), config.lagrangian_warmup
        if warmup is not None and end is None and warmup < 0:
            found.append(f"{flag('lagrangian_warmup')} must be at least 0, but is {warmup}.")
        elif warmup is not None and end is not None and end >= 0 and not 0 <= warmup <= end:
            found.append(f"{flag('lagrangian_warmup')} must be between 0 and the cooldown ({end}), but is {warmup}.")
        return found

    @classmethod
    def from_config(cls, config: PruningConfig) -> Lagrangian:
        end = cooldown_of(config)
        warmup = end // 2 if config.lagrangian_warmup is None else config.lagrangian_warmup
        return cls(config.seed, warmup, None if config.keep_sampling else end)

    def variables(self) -> dict[str, Tensor]:
        """The multipliers l1 and l2."""
        return {"multipliers": torch.zeros(2)}

    def begin_update(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> None:
        """A training that starts on the state of another one starts with its own multipliers."""
        if update == 0:
            own["multipliers"].zero_()

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        noise = noise_for(importance, logistic_noise, self.seed, update)
        return hard_concrete(log_alpha(importance), noise, TEMPERATURE)

    def penalty(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        assert budget is not None
        excess = self.expected_sparsity(importance) - self.target_sparsity(budget, update)
        # Their value with the opposite gradient: what descends for the importance ascends for the multipliers.
        first, second = 2.0 * own["multipliers"].detach() - own["multipliers"]
        return first * excess + second * excess.square()

    def expected_sparsity(self, importance: Tensor) -> Tensor:
        """s, the share of heads that are expected to be closed."""
        return 1.0 - probability_open(log_alpha(importance), TEMPERATURE).mean()

    def target_sparsity(self, budget: Budget, update: int) -> float:
        """s_t of an update."""
        return (1.0 - budget.count / max(budget.total, 1)) * min(1.0, update / max(self.warmup, 1))


def log_alpha(importance: Tensor) -> Tensor:
    """log 100 + w, within the authors' range: [n].

    They cut the parameters off after every update. Here a value outside counts as the range's end and has no gradient that
    leads further out, so that equally open heads keep their order and a pass changes no parameter.
    """
    return _Bounded.apply(HIGHEST + importance)


class _Bounded(torch.autograd.Function):
    """See `log_alpha`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(LOWEST, HIGHEST)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outward = (x > HIGHEST) & (gradient < 0) | (x < LOWEST) & (gradient > 0)  # a descent goes against it
        return gradient.masked_fill(outward, 0.0)
