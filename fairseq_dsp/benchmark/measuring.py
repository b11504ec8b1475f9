"""Times in turn, medians, and intervals of paired ratios. Knows nothing of models.

On a machine that others use too, two measurements one after the other compare the machine's load. So the runs of a
comparison take turns, and what is compared is the ratio within a turn.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A median and its 95 % interval."""

    median: float
    low: float
    high: float


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
    measures: Sequence[Callable[[], float]], pairs: int, warmup: int, done: Callable[[], Any] = lambda: None
) -> list[list[float]]:
    """Calls every measure once a turn; every other turn backwards, so that nobody always comes first.

    Args:
        measures: each returns what it measured, in seconds.
        pairs: turns that count.
        warmup: turns before them that do not.
        done: called after every turn.

    Returns:
        a list of `pairs` values for every measure.
    """
    values: list[list[float]] = [[] for _ in measures]
    collecting = gc.isenabled()
    try:
        for turn in range(warmup + pairs):
            order = list(range(len(measures)))
            gc.collect()
            gc.disable()
            for index in reversed(order) if turn % 2 else order:
                seconds = measures[index]()
                if turn >= warmup:
                    values[index].append(seconds)
            if collecting:
                gc.enable()
            done()
    finally:
        if collecting:
            gc.enable()
    return values


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def paired_ratio(baseline: Sequence[float], other: Sequence[float], seed: int = 0) -> Estimate:
    """Median of baseline_i / other_i: above 1 where `other` is faster; the interval by percentile bootstrap over the pairs.

    Args:
        baseline: seconds of every turn.
        other: seconds of the same turns.

    Raises:
        ValueError: not the same number of turns, or none.
    """
    if len(baseline) != len(other) or not len(other):
        raise ValueError(f"pairs must have two sides, but there are {len(baseline)} and {len(other)} values.")
    ratios = np.asarray(baseline) / np.asarray(other)
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5))
    return Estimate(float(np.median(ratios)), float(low), float(high))


def achieved_share(ratio: float, promised: float) -> float | None:
    """(ratio - 1) / (promised - 1): how much of a promised speed-up came; None where next to nothing is promised.

    Args:
        ratio: speed-up measured.
        promised: speed-up if time went with the floating-point operations.
    """
    return None if not math.isfinite(promised) or promised < 1.02 else (ratio - 1) / (promised - 1)
