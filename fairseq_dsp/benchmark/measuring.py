"""Times in turn, medians, and intervals of paired ratios. Knows nothing of models.

On a machine that others use too, two measurements one after the other compare the machine's load. So the runs of a
comparison take turns, and what is compared is the ratio within a turn.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

# Gives the things of a part of the work, one after the other, and shows how many of them are done: (what they are, things).
Watch = Callable[[str, Sequence[Any]], Iterable[Any]]

_CONFIDENCE = 0.95
_WIDEST = 1.5


@dataclass(frozen=True)
class Estimate:
    """A median, and an interval that holds the true one with 95 % certainty or more; see `estimate`.

    Args:
        median: of the values.
        low: the interval's lower end; None where there are fewer than 6 values, which allow no such interval. Likewise:
        high: its upper end.
    """

    median: float
    low: float | None
    high: float | None

    @property
    def too_wide(self) -> bool:
        """Whether the interval's ends are more than a factor of 1.5 apart, so that the median says next to nothing."""
        return self.low is not None and self.high is not None and self.high > _WIDEST * self.low


def unwatched(what: str, things: Sequence[Any]) -> Iterable[Any]:
    """A `Watch` that shows nothing."""
    return things


def timed(run: Callable[[], Any], clock: str, device: str) -> float:
    """Seconds that one call takes, by `wall` clock or by the `cpu` time of this process; waits for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = CLOCKS[clock]()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return CLOCKS[clock]() - start


def take_turns(
    measures: Sequence[Callable[[], float]], pairs: int, warmup: int, watch: Watch = unwatched
) -> list[list[float]]:
    """Calls every measure once a turn; every other turn backwards, so that nobody always comes first.

    Args:
        measures: each returns what it measured, in seconds.
        pairs: turns that count.
        warmup: turns before them that do not.
        watch: is told how far the turns are.

    Returns:
        a list of `pairs` values for every measure.
    """
    values: list[list[float]] = [[] for _ in measures]
    collecting = gc.isenabled()
    try:
        for turn in watch("turns", range(warmup + pairs)):
            order = list(range(len(measures)))
            gc.collect()
            gc.disable()
            for index in reversed(order) if turn % 2 else order:
                seconds = measures[index]()
                if turn >= warmup:
                    values[index].append(seconds)
            if collecting:
                gc.enable()
    finally:
        if collecting:
            gc.enable()
    return values


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def estimate(values: Sequence[float]) -> Estimate:
    """Median, and the interval from the k-th smallest to the k-th largest value.

    Of n independent values these two have the true median between them with a probability of 1 - 2 P(B < k), B binomial with
    n and 1/2, whatever the distribution (the inverted sign test). k is the largest that leaves 95 %: 1 for n = 6 to 8, 2 for
    9 to 11. Resampling promises less than it says of so few: percentiles of resampled medians covered 87.5 % for n = 7.
    """
    tails = itertools.accumulate(math.comb(len(values), below) for below in range(len(values) // 2))
    k = sum(2 * tail <= (1 - _CONFIDENCE) * 2 ** len(values) for tail in tails)
    ordered = sorted(map(float, values))
    return Estimate(median(values), *((ordered[k - 1], ordered[-k]) if k else (None, None)))


def paired_ratio(baseline: Sequence[float], other: Sequence[float]) -> Estimate:
    """Estimate of baseline_i / other_i: above 1 where `other` is faster.

    Args:
        baseline: seconds of every turn.
        other: seconds of the same turns.

    Raises:
        ValueError: not the same number of turns, or none.
    """
    if len(baseline) != len(other) or not len(other):
        raise ValueError(f"pairs must have two sides, but there are {len(baseline)} and {len(other)} values.")
    return estimate([one / another for one, another in zip(baseline, other, strict=True)])


def achieved_share(ratio: float, promised: float) -> float | None:
    """(ratio - 1) / (promised - 1): how much of a promised speed-up came; None where next to nothing is promised.

    Args:
        ratio: speed-up measured.
        promised: speed-up if time went with the floating-point operations.
    """
    return None if not math.isfinite(promised) or promised < 1.02 else (ratio - 1) / (promised - 1)
