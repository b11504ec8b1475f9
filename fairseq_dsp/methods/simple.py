"""SIMPLE (Ahmed et al., ICLR 2023): a hard draw of K heads whose gradient is that of the exact marginals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods.dsp import StraightThrough
from fairseq_dsp.methods.method import noise_for
from fairseq_dsp.methods.schedule import Scheduled, cooldown_of
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.marginals import exact_straight_through_top_k
from fairseq_dsp.units.subset import gumbel_noise


@dataclass(frozen=True)
class Simple(Scheduled):
    """Gates are a hard sample of K heads; backwards they are the probabilities that heads have of being in one.

        g = hard_top_k(w + Gumbel(seed, update), K),        dL/dw = Cov(z) dL/dg        (arXiv 2210.01941)

    z is a subset of K heads with probability proportional to exp(sum of its w), and Cov(z) v the derivative of its exact
    marginals in direction v. As in the authors' `v2/simple.py` the sample is the Gumbel top-K of w, whose law
    (Plackett-Luce) is near that of z but another one; there is no temperature. A gate is 0 or 1 from the first update, so
    what trains is what is deployed. The noise is one draw an update.
    """

    name: ClassVar[str] = "simple"
    options: ClassVar[tuple[str, ...]] = StraightThrough.options
    seed: int
    fixes_at: int | None

    @classmethod
    def from_config(cls, config: PruningConfig) -> Simple:
        return cls(*cls.schedule_of(config), config.seed, None if config.keep_sampling else cooldown_of(config))

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        assert budget is not None
        noise = noise_for(importance, gumbel_noise, self.seed, update)
        return exact_straight_through_top_k(importance, noise, budget.count)
