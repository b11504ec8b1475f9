"""PASS (Ding et al., TMLR 2024): hard concrete gates that a growing penalty drives to K open ones, and each to 0 or 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods.method import Method, noise_for
from fairseq_dsp.methods.schedule import LEARNED_OPTIONS, cooldown_of
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.subset import hard_concrete, logistic_noise, probability_open

# Of the authors' code (DujianDing/PASS): epochs of its training, the penalty before the first of them, where log alpha is cut
# off, how near to 0 and 1 a probability comes.
ROUNDS, FIRST_PENALTY, FURTHEST, _EPSILON = 30, 0.1, 5.0, 1e-6

# There the penalty is added to the summed loss of a batch of at most 4,096 tokens, of which about so many are in one.
TOKENS_A_BATCH = 3500.0


@dataclass(frozen=True)
class Pass(Method):
    """Gates are independent hard concrete draws; probabilities of 0 and of 1 are driven to a budget, and all others away.

        g = hard_concrete(w + Logistic(seed, update))
        loss per target token = cross entropy + l/3500 · ( sum P(0 < g < 1) + |H - K - sum P(g = 0)| + |K - sum P(g = 1)| )

    (Ding et al. 2024, as their released code computes it.) w is log alpha. l is 0.1; it doubles at the start of each of 30
    rounds where other than H - K heads have w <= -5. From the second round on w is cut off at -5 and 5 there. The authors'
    round is an epoch of 30; here it is a thirtieth of the cooldown, after which the K largest w are fixed.

    As in the code: gates, penalty, doubling, cutting off, importance learning rate 0.2. Not as there: *closed heads are
    never opened again* (theirs are, at random, in proportion to the attention weights they had in the epoch before, which
    the fused attention never computes); l is per target token, whatever the size of a batch; no weight decay on w; exactly
    K heads are deployed, where theirs are those with a gate above 0.5, which may be fewer. The concentrator, which
    empties whole layers, is absent; the released code gives it the weight 0 in translation.
    """

    name: ClassVar[str] = "pass"
    options: ClassVar[tuple[str, ...]] = LEARNED_OPTIONS
    has_window: ClassVar[bool] = True
    seed: int
    updates_a_round: int
    fixes_at: int | None

    @classmethod
    def from_config(cls, config: PruningConfig) -> Pass:
        end = cooldown_of(config)
        return cls(config.seed, max(end // ROUNDS, 1), None if config.keep_sampling else end)

    def records(self) -> dict[str, Tensor]:
        """How many rounds have begun, and how often l has doubled."""
        return {"rounds_begun": torch.zeros(()), "doublings": torch.zeros(())}

    def begin_update(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> None:
        """Doubles the penalty and cuts log alpha off where a round begins."""
        round_ = update // self.updates_a_round + 1
        if update % self.updates_a_round or round_ > ROUNDS:
            return
        rounds_begun, doublings = own["rounds_begun"], own["doublings"]
        if update == 0:  # a training that starts on the state of another one
            rounds_begun.zero_()
            doublings.zero_()
        if rounds_begun >= round_:  # a further micro-batch of the update
            return
        assert budget is not None
        closed = (importance <= -FURTHEST).sum()
        doublings += closed != budget.total - budget.count
        if round_ > 1:
            importance.clamp_(-FURTHEST, FURTHEST)
        rounds_begun.fill_(round_)

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        return hard_concrete(importance, noise_for(importance, logistic_noise, self.seed, update))

    def penalty(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        assert budget is not None
        zero = 1.0 - probability_open(importance)
        one = 1.0 - probability_open(-importance)  # the stretch is symmetric
        zero, one, between = (each.clamp(_EPSILON, 1.0 - _EPSILON) for each in (zero, one, 1.0 - zero - one))
        closed = budget.total - budget.count
        distance = between.sum() + (closed - zero.sum()).abs() + (budget.count - one.sum()).abs()
        return FIRST_PENALTY * 2.0 ** own["doublings"] / TOKENS_A_BATCH * distance
