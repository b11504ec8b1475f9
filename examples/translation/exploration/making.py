"""Makes the jobs of a plan that share a budget, a seed and a learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .setting import Job

LOW, HIGH = 1e-3, 4e-3  # learning rates of the first plan, and of the others
PAPER = {"budget": "constant", "relax": "succ", "t": (0.1, 1e-8), "ilr": 0.2, "floor": 0}
GENTLE = {"budget": "constant", "relax": "succ", "t": (0.5, 0.01), "ilr": 0.05, "floor": 0}
RECIPE = {"budget": "constant", "window": 0.4}

# Heads in cross-attention and in the decoder's self-attention of the rules that did well at first, by budget; the one that did best at
# the learning rate HIGH comes first, for a plan that has room for one takes it.
LATER_RULES = {6: ((5, 1), (4, 2)), 12: ((8, 4), (8, 2), (6, 6)), 24: ((12, 6),)}


class Arms:
    """Makes the jobs of one budget, seed and learning rate."""

    def __init__(self, kept: int, seed: int, lr: float) -> None:
        self.kept, self.seed, self.lr = kept, seed, lr

    def __call__(self, arm: str, family: str, **options: Any) -> Job:
        return Job(arm, self.kept, self.seed, family, options, self.lr)

    def fitted(self, score: str) -> Job:
        """One scoring, and what it cuts fitted."""
        return self(f"{score}-recut", "scored", by=score, recut=1)

    def staged(self) -> Job:
        """Scores of the whole Fisher information in four stages, each cut and fitted."""
        return self("staged-full", "staged", by="fisher-full", stages=4)

    def rule(self, cross: int, dec: int) -> Job:
        return self(f"strat{cross}+{dec}", "fixed", cross=cross, dec=dec)


def rules(kept: int, seed: int, lr: float, which: dict[int, tuple[tuple[int, int], ...]]) -> Iterator[Job]:
    """Heads drawn with given counts by type, spread over the layers."""
    for cross, dec in which[kept]:
        yield Arms(kept, seed, lr).rule(cross, dec)
