"""The best units that a budget buys: a multiple-choice knapsack over sites, solved exactly. Called by `selection`.

A site's best n units are its n highest scores, so a site offers a value and a cost for every n, and one n is chosen for each. Sites
whose units all cost the same are one list of units in falling order, for no exchange between them changes the cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Choices from all groups but the largest, and entries of the table over all budgets, that fit memory and seconds.
_MOST_PAIRS, _MOST_STATES = 30_000_000, 4_000_000
_AT_ONCE = 4_000_000  # pairs of a state and a choice

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Options(NamedTuple):
    """What can be taken of one group: value and cost of taking 0, 1, … of it, both not falling, the first 0."""

    values: Floats
    costs: Integers


def best_counts(groups: Sequence[Options], limit: int) -> list[int]:
    """How many to take of every group: the largest sum of values whose costs are at most the limit together.

    Two ways, both exact: all states that no other state beats in value and in cost at once (few groups), or a table of the best
    value at every cost (many groups whose costs have a large divisor in common, or are small).

    Args:
        limit: at least 0.
    """
    divisor = math.gcd(*(int(cost) for group in groups for cost in group.costs)) or 1
    groups = [Options(group.values, group.costs // divisor) for group in groups]
    limit //= divisor
    total = sum(int(group.costs[-1]) for group in groups)
    if limit >= total:
        return [len(group.costs) - 1 for group in groups]
    states = math.prod(sorted(len(group.costs) for group in groups)[:-1])
    if states > _MOST_PAIRS and limit < _MOST_STATES:
        return _by_table(groups, limit)
    return _by_frontier(groups, limit)


def _by_table(groups: Sequence[Options], limit: int) -> list[int]:
    """best[c], the largest value at a cost of at most c, group by group; the choice of every group is noted for every c."""
    best = np.zeros(limit + 1)
    choices = []
    for group in groups:
        improved, choice = best.copy(), np.zeros(limit + 1, dtype=np.int32)
        for taken in range(1, len(group.costs)):
            cost = int(group.costs[taken])
            if cost > limit:
                break
            candidate = best[: limit + 1 - cost] + group.values[taken]
            better = candidate > improved[cost:]
            improved[cost:][better] = candidate[better]
            choice[cost:][better] = taken
        best = improved
        choices.append(choice)
    counts, left = [], limit
    for group, choice in zip(reversed(groups), reversed(choices), strict=True):
        counts.append(int(choice[left]))
        left -= int(group.costs[counts[-1]])
    return counts[::-1]


def _by_frontier(groups: Sequence[Options], limit: int) -> list[int]:
    """States that nothing beats, group by group; the largest group last, of which each state takes as much as fits."""
    order = sorted(range(len(groups)), key=lambda number: len(groups[number].costs))
    costs, values = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[Integers, Integers]] = []
    for number in order[:-1]:
        costs, values, taken, before = _joined(costs, values, groups[number], limit)
        steps.append((taken, before))
    last = groups[order[-1]]
    fitting = np.searchsorted(last.costs, limit - costs, side="right") - 1
    state = int(np.argmax(values + last.values[fitting]))
    counts = {order[-1]: int(fitting[state])}
    for number, (taken, before) in zip(reversed(order[:-1]), reversed(steps), strict=True):
        counts[number], state = int(taken[state]), int(before[state])
    return [counts[number] for number in range(len(groups))]


def _joined(costs: Integers, values: Floats, group: Options, limit: int) -> tuple[Integers, Floats, Integers, Integers]:
    """Every state with every choice of a group, without those that are beaten: costs, values, choice, state before."""
    found: tuple[Integers, Floats, Integers, Integers] | None = None
    step = max(_AT_ONCE // len(costs), 1)
    for first in range(0, len(group.costs), step):
        part = slice(first, first + step)
        number = len(group.costs[part])
        taken = np.repeat(np.arange(first, first + number), len(costs))
        before = np.tile(np.arange(len(costs)), number)
        all_costs, all_values = costs[before] + group.costs[taken], values[before] + group.values[taken]
        new = (all_costs, all_values, taken, before)
        if found is not None:
            new = tuple(np.concatenate(each) for each in zip(found, new, strict=True))  # type: ignore[assignment]
        found = _unbeaten(new, limit)
    assert found is not None
    return found


def _unbeaten(
    states: tuple[Integers, Floats, Integers, Integers], limit: int
) -> tuple[Integers, Floats, Integers, Integers]:
    costs, values, *_ = states
    order = np.lexsort((-values, costs))
    order = order[costs[order] <= limit]
    rising = np.maximum.accumulate(values[order])
    keep = np.ones(len(order), dtype=bool)
    keep[1:] = values[order][1:] > rising[:-1]
    order = order[keep]
    return tuple(each[order] for each in states)  # type: ignore[return-value]
