"""Exact marginals of choosing k of n things, and the gradient that they give a hard choice. Called by `methods.simple`.

The law over the subsets of k of n things is the conditional Bernoulli: p(z) = exp(sum_i w_i z_i) / Z for z of n zeros and
ones with sum k. Sums over all subsets come from a dynamic programme over the things, in the logarithm and in float64:

    A[i, j] = log of the sum over subsets of j of the first i things = logaddexp(A[i-1, j], A[i-1, j-1] + w_i)

Beside it run the means of z·v over the same subsets, which give products with the covariance of z without differences of
two nearly equal numbers. All j of a step are computed at once: n steps of O(k).

Source: Ahmed, Zeng, Niepert and Van den Broeck, "SIMPLE: A Gradient Estimator for k-Subset Sampling", ICLR 2023 (arXiv
2210.01941) for the estimator and the programme; the recursion of the means is the programme's derivative in direction v.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.units.subset import hard_top_k

# Stands for log 0: its exponential is 0 beside any importance, and unlike -inf its differences are numbers.
_LOG_ZERO = -1e300


def subset_marginals(scores: Tensor, k: int) -> Tensor:
    """P(z_i = 1) for all i under the conditional Bernoulli: [n] float64, sums to k, without gradient.

    Args:
        scores: w, [n], finite.
        k: 0 <= k <= n.
    """
    return _moments(scores.detach().double(), k, torch.zeros_like(scores, dtype=torch.float64))[0]


def covariance_product(scores: Tensor, k: int, direction: Tensor) -> Tensor:
    """Cov(z) v, which is the derivative of the marginals in direction v: [n] float64, sums to 0, without gradient.

        (Cov(z) v)_i  =  P(z_i = 1) · ( E[z·v | z_i = 1] - E[z·v] )  =  d/de P(z_i = 1; w + e v) at e = 0

    Args:
        scores: w, [n], finite.
        k: 0 <= k <= n. At 0 and n the result is zero.
        direction: v, [n].
    """
    # Cov(z) of a constant is zero; without their mean the values are smaller, and so is rounding.
    centred = direction.detach().double()
    centred = centred - centred.mean()
    marginals, given = _moments(scores.detach().double(), k, centred)
    return marginals * (given - (marginals * centred).sum())


def exact_straight_through_top_k(scores: Tensor, noise: Tensor, k: int) -> Tensor:
    """Hard top-k of noisy scores whose backward pass is that of the exact marginals (SIMPLE, arXiv 2210.01941).

        z = hard_top_k(w + noise, k),        dL/dw = Cov(z) dL/dz

    Args:
        scores: w, [n], finite.
        noise: [n].
        k: 0 <= k <= n.

    Returns:
        0/1 tensor [n] of the scores' dtype, with gradient.

    Raises:
        ValueError: k outside 0..n.
    """
    return _ExactStraightThrough.apply(scores, noise, k)


class _ExactStraightThrough(torch.autograd.Function):
    """See `exact_straight_through_top_k`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, noise: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.k = k
        return hard_top_k(scores + noise, k)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scores,) = ctx.saved_tensors
        return covariance_product(scores, ctx.k, gradient).to(scores.dtype), None, None


def _moments(scores: Tensor, k: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Marginals P(z_i = 1) and conditional means E[z·v | z_i = 1]; zeros where k is 0: two of [n]."""
    n = scores.numel()
    if k == 0:
        return torch.zeros_like(scores), torch.zeros_like(scores)
    # Two rows, done at once: the things from the first to the last, and from the last to the first.
    weights, means = _programme(torch.stack([scores, scores.flip(0)]), k, torch.stack([values, values.flip(0)]))
    # Thing i chosen, j of the things before it and k - 1 - j of those after it: [n, k].
    logs = weights[:n, 0, :k] + weights[:n, 1, :k].flip(0, 1) + scores[:, None]
    sums = means[:n, 0, :k] + means[:n, 1, :k].flip(0, 1) + values[:, None]
    given = (torch.softmax(logs, dim=1) * sums).sum(dim=1)
    return (logs.logsumexp(dim=1) - weights[n, 0, k]).exp(), given


def _programme(scores: Tensor, k: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Of the first i things, subsets of j: log of the sum of their weights, and the mean of z·v over them.

    Args:
        scores: [rows, n]; rows are independent.
        values: v, [rows, n].

    Returns:
        two of [n + 1, rows, k + 1].
    """
    rows, n = scores.shape
    # Before the place of j = 0 comes one that stands for j = -1.
    weights = scores.new_full((n + 1, rows, k + 2), _LOG_ZERO)
    weights[0, :, 1] = 0.0
    for last, these, score in zip(weights, weights[1:], scores.t().unsqueeze(2), strict=False):
        torch.logaddexp(last[:, 1:], last[:, :-1] + score, out=these[:, 1:])
    # Of the subsets of j of the first i things, the share that has thing i.
    shares = torch.sigmoid(weights[:-1, :, :-1] + scores.t().unsqueeze(2) - weights[:-1, :, 1:])
    means = torch.zeros_like(weights)
    for last, these, value, share in zip(means, means[1:], values.t().unsqueeze(2), shares, strict=False):
        torch.lerp(last[:, 1:], last[:, :-1] + value, share, out=these[:, 1:])
    return weights[:, :, 1:], means[:, :, 1:]
