"""Label-smoothed cross entropy over a dictionary, with a gradient written by hand. Called by `criterion`.

For a token with log-probabilities l [V], target y and smoothing e, fairseq's loss is

    (1 - e - e') · (-l_y)  +  e' · sum_v (-l_v),      e' = e / (V - 1)

Its gradient by the logits is (1 - e - e' + e' V) · softmax - e', less 1 - e - e' at y. Left to autograd it takes four more
passes over [N, V], the largest tensor of an update.

With a teacher's distribution q and the share a of distillation (word-level, Kim and Rush, EMNLP 2016) it is

    (1 - a) · the loss above  +  a · KL(q || softmax),      KL = sum_v q_v (log q_v - l_v)

with the gradient (1 - a) · the gradient above + a · (softmax - q).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def label_smoothed_nll(logits: Tensor, target: Tensor, smoothing: float, padding: int) -> tuple[Tensor, Tensor]:
    """Sums over all tokens but padding, in float32 for logits of half precision.

    Args:
        logits: [N, V].
        target: [N].
        smoothing: e, from 0 to 1.
        padding: the target that does not count.

    Returns:
        the loss, and the negative log-likelihood, which has no gradient.
    """
    loss, nll, _ = _LabelSmoothedNll.apply(logits, target, smoothing, padding, None, 0.0)
    return loss, nll


def distilled_nll(
    logits: Tensor, target: Tensor, smoothing: float, padding: int, teacher: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `label_smoothed_nll`, with a teacher.

    Args:
        logits, target, smoothing, padding: as there.
        teacher: the teacher's logits, [N, V]; gets no gradient.
        share: a, from 0 to 1.

    Returns:
        the loss; the negative log-likelihood and the divergence from the teacher, which have no gradient.
    """
    return _LabelSmoothedNll.apply(logits, target, smoothing, padding, teacher, share)


class _LabelSmoothedNll(torch.autograd.Function):
    """See `label_smoothed_nll` and `distilled_nll`."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, smoothing: float, padding: int, teacher: Tensor | None, share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_probs = torch.log_softmax(logits, dim=-1, dtype=wide)
        counts = target != padding
        each = smoothing / (logits.size(-1) - 1)
        ctx.of_target, ctx.of_each, ctx.dtype = (
            (1.0 - share) * (1.0 - smoothing - each),
            (1.0 - share) * each,
            logits.dtype,
        )
        # where, not a product: an impossible word has log-probability -inf, and padding must not make that NaN
        nll = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1).where(counts, 0.0).sum()
        smooth = -log_probs.sum(dim=-1).where(counts, 0.0).sum()
        loss, divergence, ctx.share, wanted = ctx.of_target * nll + ctx.of_each * smooth, nll.new_zeros(()), share, None
        if teacher is not None:
            sure = torch.log_softmax(teacher, dim=-1, dtype=wide)
            wanted = sure.exp()
            # an impossible word adds nothing, however impossible the student finds it
            apart = (wanted * (sure - log_probs)).where(wanted > 0, 0.0).sum(dim=-1)
            divergence = apart.where(counts, 0.0).sum()
            loss = loss + share * divergence
        ctx.save_for_backward(log_probs, target, counts, wanted)
        ctx.mark_non_differentiable(nll, divergence)
        return loss, nll, divergence

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        log_probs, target, counts, wanted = ctx.saved_tensors
        weight = (gradient * counts).unsqueeze(1)
        found = log_probs.exp()
        found.mul_(ctx.of_target + ctx.of_each * log_probs.size(1) + ctx.share).sub_(ctx.of_each)
        if wanted is not None:
            found.sub_(wanted, alpha=ctx.share)
        found.scatter_add_(1, target.unsqueeze(1), torch.full_like(weight, -ctx.of_target, dtype=found.dtype))
        return found.mul_(weight).to(ctx.dtype), None, None, None, None, None
