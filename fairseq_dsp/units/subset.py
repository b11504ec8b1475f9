"""The maths of choosing K of n things: noise, relaxations, hard choices. Called by `floors`, `marginals` and `methods`.

Pure functions of tensors; nothing here knows about attention, models or fairseq.

Sources: Li, Cotterell and Sachan, "Differentiable Subset Pruning of Transformer Heads", TACL 2021 (its official code for
the recursion and the annealing); Xie and Ermon, "Reparameterizable Subset Sampling via Continuous Relaxations", IJCAI
2019 (the relaxation itself); Amos, Koltun and Kolter, "The Limited Multi-Label Projection Layer", 2019 (the bounded
relaxation); Bengio et al. 2013 (straight-through); Louizos, Welling and Kingma, "Learning Sparse Neural
Networks through L0 Regularization", ICLR 2018, and Voita et al., "Analyzing Multi-Head Self-Attention", ACL 2019 with its
official code (hard concrete).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The recursion needs room below float32's 1e-38: log(1 - p) of a head that was chosen must outweigh any importance.
EPSILON = torch.finfo(torch.float64).tiny

# One near-tie at temperature 1e-8 has a derivative near 1e8, and several multiply, which overflows float32. The bound leaves
# room for a norm, whose squares must not overflow, and for fairseq's sums over a batch and its loss scale.
OVERFLOW_BOUND = 1e15

# The search for a threshold: 32 at once, eleven times, which leaves 2^-55 of the bracket.
_SECTIONS, _ROUNDS = 32, 11

# Hard concrete: temperature, lower and upper end of the stretch, and how close to 0 and 1 the noise comes (Voita et al. 2019).
_CONCRETE_TEMPERATURE, _LOW, _HIGH, _CONCRETE_EPSILON = 0.33, -0.1, 1.1, 1e-6

# A smaller gate moves no float32 output, but its products are denormal numbers, on which a CPU multiplies many times
# slower: an update of a 72-head model took three times as long.
SMALLEST_GATE = 1e-12


def annealed_temperature(update: int, initial: float, final: float, cooldown: int) -> float:
    """Temperature of an update: exponential from `initial` to `final`, then constant.

    t(s) = exp(ln T0 - (s / S) (ln T0 - ln T1)) for s < S, else T1 (Li et al. 2021, official code).

    Args:
        update: number of updates done before this one, s >= 0.
        initial: T0 > 0.
        final: T1 > 0.
        cooldown: S >= 0, in updates.
    """
    if update >= cooldown:
        return final
    return math.exp(math.log(initial) - update / cooldown * (math.log(initial) - math.log(final)))


def annealed_budget(update: int, kept: int, total: int, start: int, end: int) -> int:
    """Heads that are on at an update: all of them at first, then fewer and fewer, K from `end` on.

    K_s = H for s < s0;  K + round((H - K) (1 - (s - s0) / (S - s0))^3) for s0 <= s < S;  K after (the cubic of Zhu and Gupta,
    2017, on what is kept).

    Args:
        update: number of updates done before this one, s >= 0.
        kept: K.
        total: H.
        start: s0, in updates.
        end: S, in updates.
    """
    if update >= end:
        return kept
    if update < start:
        return total
    return kept + round((total - kept) * (1 - (update - start) / (end - start)) ** 3)


def gumbel_noise(count: int, seed: int, update: int) -> Tensor:
    """Standard Gumbel noise as a function of the seed and the update number alone.

    Every process, every micro-batch of an update and every resumed run therefore sees the same draw, on any device: the
    generator runs on the CPU and is nobody else's.

    Returns:
        float64 tensor [count].
    """
    return -torch.log(-torch.log(_uniform_noise(count, seed, update).clamp_min(EPSILON)))


def logistic_noise(count: int, seed: int, update: int) -> Tensor:
    """log u - log(1 - u) for u uniform in [1e-6, 1 - 1e-6], as a function of the seed and the update number alone.

    Returns:
        float64 tensor [count].
    """
    return torch.logit(_uniform_noise(count, seed, update), eps=_CONCRETE_EPSILON)


def hard_concrete(log_alpha: Tensor, noise: Tensor, temperature: float = _CONCRETE_TEMPERATURE) -> Tensor:
    """Gates that are exactly 0 or 1 with positive probability (Voita et al. 2019; Louizos et al. 2018, eq. 10-11).

        s = sigmoid((noise + log_alpha) / temperature),  g = min(1, max(0, 1.2 s - 0.1))

    Args:
        log_alpha: [n].
        noise: [n], logistic.
        temperature: 0.33 as Voita et al. have it, or another's.

    Returns:
        tensor [n] in 0..1, with gradient wherever 0 < g < 1.
    """
    return _stretch(torch.sigmoid((noise + log_alpha) / temperature))


def hard_concrete_without_noise(log_alpha: Tensor) -> Tensor:
    """Gates at test time: min(1, max(0, 1.2 sigmoid(log_alpha) - 0.1)) (Louizos et al. 2018, eq. 13), without temperature.

    A gate is closed where log_alpha <= -log 11 and fully open where log_alpha >= log 11.
    """
    return _stretch(torch.sigmoid(log_alpha))


def probability_open(log_alpha: Tensor, temperature: float = _CONCRETE_TEMPERATURE) -> Tensor:
    """P(g != 0) = sigmoid(log_alpha - temperature · log(0.1 / 1.1)) of a hard concrete gate (Louizos et al. 2018, eq. 12): [n]."""
    return torch.sigmoid(log_alpha - temperature * math.log(-_LOW / _HIGH))


def _stretch(concrete: Tensor) -> Tensor:
    return (concrete * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def _uniform_noise(count: int, seed: int, update: int) -> Tensor:
    # numpy's, because torch's CPU generator looks at the low 32 bits of its seed only: there is no room for two numbers
    return torch.from_numpy(np.random.default_rng((seed % 2**64, update)).random(count))


def hard_top_k(scores: Tensor, k: int) -> Tensor:
    """Mask of the k largest scores; ties go to the lower index, so the count is always exactly k.

    Args:
        scores: [n], finite.
        k: 0 <= k <= n.

    Returns:
        0/1 tensor [n] of the scores' dtype, without gradient.

    Raises:
        ValueError: k outside 0..n.
    """
    _check_count(k, scores)
    # Negated and ascending: a stable descending sort would give ties to the lower index too, but is not supported
    # for every dtype on every device.
    order = torch.sort(-scores.detach(), stable=True).indices
    return torch.zeros_like(scores, requires_grad=False).index_fill_(0, order[:k], 1.0)


def straight_through_top_k(scores: Tensor, k: int) -> Tensor:
    """Hard top-k whose backward pass is the identity (Li et al. 2021, "STE"; Bengio et al. 2013).

    Returns:
        0/1 tensor [n] with gradient.
    """
    return hard_top_k(scores, k) + (scores - scores.detach())


def relaxed_top_k(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Soft k-hot vector by k successive softmaxes (Xie and Ermon 2019; Li et al. 2021, official code).

        r_1 = scores,  p_j = softmax(r_j / t),  r_{j+1} = r_j + log max(1 - p_j, eps),  mask = sum_j p_j

    With Gumbel noise added to the scores, the limit t -> 0 samples k of n without replacement. Entries are at least 0
    and sum to k, but an entry may exceed 1 while t is large; one below 1e-12 is 0. The recursion runs in float64, because
    log(1 - p) needs the room; the result has the scores' dtype, and its gradient is finite wherever the loss's is.

    Args:
        scores: [n], finite.
        k: 0 <= k <= n. At 0 and n the result is constant: all zeros, all ones.
        temperature: t > 0.

    Returns:
        tensor [n] of the scores' dtype.

    Raises:
        ValueError: k outside 0..n.
    """
    _check_count(k, scores)
    if k in (0, scores.numel()):
        return torch.full_like(scores, float(k > 0)) + 0.0 * scores
    guard = _Guard()
    remaining = _BoundedGradient.apply(scores, guard).double()
    mask = torch.zeros_like(remaining)
    for j in range(k):
        chosen = torch.softmax(remaining / temperature, dim=0)
        mask = mask + chosen
        if j + 1 < k:
            remaining = remaining + torch.log((1.0 - chosen).clamp_min(EPSILON))
    return _NotedGradient.apply(torch.where(mask < SMALLEST_GATE, 0.0, mask).to(scores.dtype), guard)


def projected_top_k(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Soft k-hot vector in one step: the projection of the scores onto 0 < m < 1, sum m = k (Amos et al. 2019, eq. 4).

        m = argmax_m  <scores, m> + t · H(m)  =  sigmoid((scores - threshold) / t)     with the threshold such that sum m = k

    H is the sum of the entries' binary entropies. Unlike `relaxed_top_k` no entry exceeds 1, and the cost does not grow with
    k. The limit t -> 0 is the same hard choice. The search for the threshold runs in float64.

    Args:
        scores: [n], finite.
        k: 0 <= k <= n. At 0 and n the result is constant: all zeros, all ones.
        temperature: t > 0.

    Returns:
        tensor [n] of the scores' dtype; an entry below 1e-12 is 0.

    Raises:
        ValueError: k outside 0..n.
    """
    _check_count(k, scores)
    if k in (0, scores.numel()):
        return torch.full_like(scores, float(k > 0)) + 0.0 * scores
    mask = _Projection.apply(scores.double(), k, temperature)
    return torch.where(mask < SMALLEST_GATE, 0.0, mask).to(scores.dtype)


class _Projection(torch.autograd.Function):
    """See `projected_top_k`. With slopes s = m (1 - m) / t its Jacobian is diag(s) - s s^T / sum s."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int, temperature: float) -> Tensor:
        ordered = scores.sort(descending=True).values
        # Beyond these the sum is below k, or above it, whatever the other scores.
        reach = temperature * math.log(scores.numel())
        low, high = ordered[k] - reach, ordered[k - 1] + reach
        steps = torch.linspace(0.0, 1.0, _SECTIONS + 1, dtype=scores.dtype, device=scores.device)
        for _ in range(_ROUNDS):  # always as many: to stop early, a GPU would have to be waited for
            thresholds = low + (high - low) * steps
            sums = torch.sigmoid((scores - thresholds.unsqueeze(1)) / temperature).sum(dim=1)
            above = (sums >= k).sum().clamp(1, _SECTIONS) - 1
            # selected, for the host would have to know a plain index
            low, high = thresholds.index_select(0, torch.stack([above, above + 1])).unbind()
        mask = torch.sigmoid((scores - 0.5 * (low + high)) / temperature)
        ctx.save_for_backward(mask)
        ctx.temperature = temperature
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        slopes = mask * (1.0 - mask)
        # where no entry is between 0 and 1 a small step changes nothing
        mean = (slopes * gradient).sum() / slopes.sum().clamp_min(EPSILON)
        found = slopes * (gradient - mean) / ctx.temperature
        return found.clamp(-OVERFLOW_BOUND, OVERFLOW_BOUND), None, None


class _Guard:
    """Carries from the end of the recursion to its beginning, in the backward pass, whether the gradient was finite."""

    finite: Tensor


class _GuardedIdentity(torch.autograd.Function):
    """Identity of one end of the recursion; its subclasses say what becomes of the gradient there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, guard: _Guard) -> Tensor:
        ctx.guard = guard
        return x.view_as(x)


class _NotedGradient(_GuardedIdentity):
    """Identity that notes whether the gradient that comes in is finite."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.guard.finite = torch.isfinite(gradient).all()
        return gradient, None


class _BoundedGradient(_GuardedIdentity):
    """Identity that bounds what the recursion made of a finite gradient; overflow in it counts as nothing.

    What came in as NaN or infinity goes out as NaN: the loss is broken, and whoever trains must hear of it.
    """

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        bounded = torch.nan_to_num(gradient, 0.0, 0.0, 0.0).clamp(-OVERFLOW_BOUND, OVERFLOW_BOUND)
        return torch.where(ctx.guard.finite, bounded, torch.nan), None


def _check_count(k: int, scores: Tensor) -> None:
    if not 0 <= k <= scores.numel():
        raise ValueError(f"k must be between 0 and {scores.numel()}, but is {k}.")
