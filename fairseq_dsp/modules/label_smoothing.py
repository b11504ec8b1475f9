"""Label-smoothed cross entropy over a dictionary, with a gradient written by hand. Called by `criterion`.

For a token with log-probabilities l [V], target y and smoothing e, fairseq's loss is

    (1 - e - e') · (-l_y)  +  e' · sum_v (-l_v),      e' = e / (V - 1)

Its gradient by the logits is (1 - e - e' + e' V) · softmax - e', less 1 - e - e' at y. Left to autograd it takes four more
passes over [N, V], the largest tensor of an update.
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
    return _LabelSmoothedNll.apply(logits, target, smoothing, padding)


class _LabelSmoothedNll(torch.autograd.Function):
    """See `label_smoothed_nll`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, smoothing: float, padding: int) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_probs = torch.log_softmax(logits, dim=-1, dtype=wide)
        counts = target != padding
        each = smoothing / (logits.size(-1) - 1)
        ctx.save_for_backward(log_probs, target, counts)
        ctx.of_target, ctx.of_each, ctx.dtype = 1.0 - smoothing - each, each, logits.dtype
        # where, not a product: an impossible word has log-probability -inf, and padding must not make that NaN
        nll = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1).where(counts, 0.0).sum()
        smooth = -log_probs.sum(dim=-1).where(counts, 0.0).sum()
        ctx.mark_non_differentiable(nll)
        return ctx.of_target * nll + each * smooth, nll

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        log_probs, target, counts = ctx.saved_tensors
        weight = (gradient * counts).unsqueeze(1)
        found = log_probs.exp()
        found.mul_(ctx.of_target + ctx.of_each * log_probs.size(1)).sub_(ctx.of_each)
        found.scatter_add_(1, target.unsqueeze(1), torch.full_like(weight, -ctx.of_target, dtype=found.dtype))
        return found.mul_(weight).to(ctx.dtype), None, None, None
