"""Is one method better than another, whatever the seed? Differences that are paired by the seed of training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """An arm against another, over the seeds that both have.

    Attributes:
        seeds: how many these are.
        mean: of arm less other.
        error: standard error of the mean; None with one seed.
        p_value: of Student's paired test, two-sided, not corrected for the number of tests; None with one seed.
    """

    seeds: int
    mean: float
    error: float | None
    p_value: float | None


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """The difference of two arms; None where they share no seed.

    Args:
        one: seed -> value; likewise `other`.
    """
    from scipy import stats  # here: it takes half a second, and few commands compare seeds

    shared = sorted(one.keys() & other.keys())
    if not shared:
        return None
    differences = [one[seed] - other[seed] for seed in shared]
    mean = statistics.mean(differences)
    if len(shared) == 1:
        return Difference(1, mean, None, None)
    error = statistics.stdev(differences) / len(shared) ** 0.5
    if error == 0:
        return Difference(len(shared), mean, 0.0, 1.0 if mean == 0 else 0.0)
    return Difference(len(shared), mean, error, float(2 * stats.t.sf(abs(mean / error), len(shared) - 1)))
