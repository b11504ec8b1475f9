"""The maths of choosing units of unequal costs under one budget: relaxation, hard choice, straight-through. Called by `methods`.

Learned importance is a density, worth per cost: w_u against one threshold. With c normalised to a mean of 1, a unit's score is
s_u = c_u w_u, so that a constant added to all importance changes nothing. Where costs are equal, all of this is `subset`'s.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.floors import Floors, meets, top_k_above_floors
from fairseq_dsp.units.subset import EPSILON, OVERFLOW_BOUND, SMALLEST_GATE, projected_top_k

# The search for a threshold: at most so many looks one after the other, or rounds of several at once where looking back would wait.
_LOOKS, _SECTIONS, _ROUNDS = 120, 32, 13
_PRECISION = 1e-14
# Units up to which equal costs are `projected_top_k`'s to the last bit. Its search is the same to 1e-9, and slow for more.
_FEW = 1024


def projected_under_budget(densities: Tensor, budget: Budget, temperature: float) -> Tensor:
    """Soft choice in one step whose costs sum to the budget: `projected_top_k` for units of unequal costs.

        m = argmax_m  <s, m> + t · H(m)  subject to  sum c m = B      =  sigmoid((s_u - threshold · c_u) / t),   s_u = c_u w_u

    H is the sum of the entries' binary entropies (Amos et al. 2019, with costs in the constraint). The limit t -> 0 takes units in
    falling w, and one of them in part.

    Args:
        densities: w, [n], finite.
        budget: whose limit is between 0 and all costs together.
        temperature: t > 0.

    Returns:
        tensor [n] of the densities' dtype; an entry below 1e-12 is 0.
    """
    if budget.parts:
        return in_parts(lambda own, part, _: projected_under_budget(own, part, temperature), densities, budget)
    if budget.is_even and budget.total <= _FEW:
        return projected_top_k(densities, budget.count, temperature)
    costs, limit = _normalised(budget, densities.device)
    if budget.is_even:
        limit = float(budget.count)
    if limit <= 0 or limit >= float(budget.total):  # normalised costs sum to n
        return torch.full_like(densities, float(limit > 0)) + 0.0 * densities
    mask = _Projection.apply(costs * densities.double(), costs, limit, temperature)
    return torch.where(mask < SMALLEST_GATE, 0.0, mask).to(densities.dtype)


def hard_under_budget(densities: Tensor, budget: Budget, floors: Floors = ()) -> Tensor:
    """Mask of the units of the highest densities, each of which is kept if it still fits: 0/1 [n] of the densities' dtype.

    Of every floored group the best come first, as many as the floor asks for. No unit that is off fits into what is left. Where costs
    are equal this is the top K. Ties go to the lower index.

    Args:
        densities: w, [n], finite.

    Raises:
        ValueError: the floors cost more than the budget, or the budget is negative.
    """
    if budget.parts:
        return in_parts(hard_under_budget, densities, budget, floors)
    if budget.is_even:
        return top_k_above_floors(densities, budget.count, floors)
    if budget.limit < 0:
        raise ValueError(f"a budget must be at least 0, but is {budget.limit}.")
    costs = _costs(budget, densities.device)
    order = torch.sort(-densities.detach(), stable=True).indices
    taken = torch.zeros(budget.total, dtype=torch.bool, device=densities.device)
    for units, count in floors:
        group = torch.tensor(list(units), device=densities.device)
        taken[group[torch.sort(-densities.detach()[group], stable=True).indices[:count]]] = True
    room = budget.limit - costs[taken].sum()
    if floors and bool(room < 0):
        raise ValueError(f"the floors cost more than {budget.limit}.")
    ordered, open_ = costs[order], ~taken[order]
    found = torch.zeros_like(open_)
    # The first that does not fit ends a round, and all of its cost and above are out for good: a round a cost is enough.
    for _ in range(budget.prices):
        reached = torch.where(open_, ordered, 0.0).cumsum(0)
        fits = open_ & (reached <= room)
        found, open_ = found | fits, open_ & ~fits
        room = room - torch.where(fits, ordered, 0.0).sum()
        open_ = open_ & (ordered <= room)
    taken = taken.index_put((order,), taken[order] | found)
    return taken.to(densities.dtype)


def straight_through_under_budget(densities: Tensor, budget: Budget) -> Tensor:
    """`hard_under_budget` whose backward pass is the identity: 0/1 [n] with gradient."""
    return hard_under_budget(densities, budget) + (densities - densities.detach())


def in_parts(
    choice: Callable[[Tensor, Budget, Floors], Tensor], densities: Tensor, budget: Budget, floors: Floors = ()
) -> Tensor:
    """A choice of units whose budget has parts: every part's own, one after the other, [n].

    Args:
        choice: of some units, by their densities, their budget and their floors.
        floors: each of units of one part.
    """
    found, start = [], 0
    for part in budget.parts:
        own = range(start, start + part.total)
        inside = [([unit - start for unit in units], count) for units, count in floors if set(units) <= set(own)]
        found.append(choice(densities[start : own.stop], part, inside))
        start = own.stop
    return torch.cat(found)


def relative_costs(budget: Budget, like: Tensor) -> Tensor:
    """The costs with a mean of 1, where they are in `like` and of its dtype: [n]."""
    return _normalised(budget, like.device)[0].to(like.dtype)


def meets_budget(marks: Tensor, budget: Budget) -> Tensor:
    """Whether 0/1 marks [n] of all units stay within the budget and leave no room for another unit: a truth value on their device."""
    if budget.parts:
        met = in_parts(lambda own, part, _: meets_budget(own, part).reshape(1), marks, budget)
        return met.all()
    if budget.is_even:
        return marks.sum() == budget.count
    costs = _costs(budget, marks.device)
    room = budget.limit - (costs * marks).sum()
    return (room >= 0) & (room < torch.where(marks > 0, torch.inf, costs).min())


def kept_within(marks: list[float], budget: Budget, floors: Floors = ()) -> bool:
    """`meets_budget` and the floors, of numbers."""
    return bool(meets_budget(torch.tensor(marks), budget)) and meets([mark > 0 for mark in marks], floors)


class _Projection(torch.autograd.Function):
    """See `projected_under_budget`. With slopes a = m (1 - m) / t its Jacobian is diag(a) - (a c)(a c)^T / sum a c²."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, costs: Tensor, limit: float, temperature: float) -> Tensor:
        mask = torch.sigmoid((scores - _threshold(scores, costs, limit, temperature) * costs) / temperature)
        ctx.save_for_backward(mask, costs)
        ctx.temperature = temperature
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        mask, costs = ctx.saved_tensors
        slopes = mask * (1.0 - mask)
        # where no entry is between 0 and 1 a small step changes nothing
        mean = (slopes * costs * gradient).sum() / (slopes * costs.square()).sum().clamp_min(EPSILON)
        found = slopes * (gradient - costs * mean) / ctx.temperature
        return found.clamp(-OVERFLOW_BOUND, OVERFLOW_BOUND), None, None, None


def _threshold(scores: Tensor, costs: Tensor, limit: float, temperature: float) -> Tensor:
    """The threshold at which the costs of the soft choice sum to the limit."""
    densities, total = scores / costs, costs.sum()
    least = temperature / costs.min()
    # Below the first every entry is so near to 1, and above the second so near to 0, that the sum is on the other side of the limit.
    low = densities.min() - least * torch.log(total / (total - limit)) - 1e-9
    high = densities.max() + least * torch.log(total / limit) + 1e-9
    if scores.device.type == "cpu":
        return _looked_for(scores, costs, limit, temperature, float(low), float(high))
    steps = torch.linspace(0.0, 1.0, _SECTIONS + 1, dtype=scores.dtype, device=scores.device)
    for _ in range(_ROUNDS):  # always as many: to stop early, the device would have to be waited for
        thresholds = low + (high - low) * steps
        sums = (costs * torch.sigmoid((scores - thresholds.unsqueeze(1) * costs) / temperature)).sum(dim=1)
        above = (sums >= limit).sum().clamp(1, _SECTIONS) - 1
        low, high = thresholds.index_select(0, torch.stack([above, above + 1])).unbind()
    return 0.5 * (low + high)


def _looked_for(scores: Tensor, costs: Tensor, limit: float, temperature: float, low: float, high: float) -> Tensor:
    """By Newton's steps, and by halves where such a step leaves the bracket or has brought little."""
    found = 0.5 * (low + high)
    for look in range(_LOOKS):
        mask = torch.sigmoid((scores - found * costs) / temperature)
        weighted = costs * mask
        excess = float(weighted.sum()) - limit
        if abs(excess) <= _PRECISION * limit:
            break
        low, high = (found, high) if excess > 0 else (low, found)
        slope = float((weighted * costs * (1.0 - mask)).sum()) / temperature
        step = found + excess / slope if slope > 0 else math.inf
        found = step if low < step < high and look % 4 < 3 else 0.5 * (low + high)
        if not low < found < high:
            break
    return torch.tensor(found, dtype=scores.dtype)


@functools.lru_cache(maxsize=8)
def _known(costs: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, float]:
    with torch.inference_mode(False):
        own = torch.tensor(costs, dtype=torch.float64)
        mean = float(own.mean())
        return own.to(device), (own / mean).to(device), mean


def _costs(budget: Budget, device: torch.device) -> Tensor:
    return _known(budget.costs, device)[0]


def _normalised(budget: Budget, device: torch.device) -> tuple[Tensor, float]:
    _, costs, mean = _known(budget.costs, device)
    return costs, budget.limit / mean
