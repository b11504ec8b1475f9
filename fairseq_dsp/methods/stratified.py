"""The rule that every chooser must beat: so many heads of each attention type, spread over the layers, drawn at random."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods.method import Method
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.layout import HEAD_STACKS, Grid, Layout, Site

RULE, EVEN = "rule", "even"

# Shares of the rule, near those that kept the loss lowest of the rules that were tried at 6 and 12 of 72 heads:
# examples/translation/results/gpu-nvidia-h200-2026-11-26.
_CROSS, _DECODER_OF_REST = 0.7, 0.6


@dataclass(frozen=True)
class Stratified(Method):
    """The model is built with K heads whose number by sublayer is given; which heads of a sublayer, chance decides.

    By rule 70 % of the heads, rounded up, are cross-attention, and 60 % of the rest, rounded up, decoder self-attention.
    Every layer has as many, one more in the last layers (cross-attention) or in the middle (self-attention). With the
    counts of another layout it is the control that tells whether heads matter, or only how many are kept where.
    """

    name: ClassVar[str] = "stratified"
    options: ClassVar[tuple[str, ...]] = ("head_counts",)
    learned: ClassVar[bool] = False
    fixes_at: int | None = None

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        found = super().objections(config)
        if config.unpruned_heads is None and (config.head_layout is None or config.budget is not None):
            found.append(
                f"{flag('unpruned_heads')} must be given for `--head-selection stratified`: how many heads to keep."
            )
        return found

    @classmethod
    def from_config(cls, config: PruningConfig) -> Stratified:
        return cls()

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        raise AssertionError("a model with fixed heads has no gates")


def draw_stratified(grid: Grid, counts: Mapping[Site, int], seed: int) -> Layout:
    """The layout with so many heads at each site, drawn with the seed.

    Raises:
        ValueError: a site has fewer.
    """
    there = dict(grid.counts)
    for site, count in counts.items():
        if count > there.get(site, 0):
            raise ValueError(
                f"must keep no more heads of a sublayer than there are, but keeps {count} of the {there.get(site, 0)} of "
                f"{site.stack} {site.layer}"
            )
    generator = random.Random(seed)
    kept = {
        span.start + head
        for site, span in grid.spans()
        for head in generator.sample(range(grid.size(site)), counts.get(site, 0))
    }
    return Layout(grid, tuple(head in kept for head in range(grid.total)))


def counts_of(grid: Grid, k: int, text: str | None) -> dict[Site, int]:
    """Heads at every site as `--head-counts` words them; a layout's are `counts_of_layout`.

    Args:
        text: `rule` (None too), `even`, or numbers by type such as `enc=0,dec=2,cross=4`.

    Raises:
        ValueError: the text says nothing of this kind, the numbers do not add up to k, or a type has fewer heads.
    """
    if text == EVEN:
        cross_first = [site for stack in reversed(HEAD_STACKS) for site in _by_turn(grid, stack)]
        return _deal(grid, k, cross_first)
    by_type = _rule(grid, k) if text in (None, RULE) else _numbers(text or "")
    if sum(by_type.values()) != k:
        raise ValueError(f"must add up to the budget of {k}, but is {text}")
    found: dict[Site, int] = {}
    for stack, count in by_type.items():
        if count > sum(grid.of(stack)):
            raise ValueError(f"must be at most {sum(grid.of(stack))} for {stack}, but is {count}")
        found |= _deal(grid, count, _by_turn(grid, stack))
    return found


def counts_of_layout(layout: Layout) -> dict[Site, int]:
    """How many heads a layout keeps at every site."""
    return {site: len(layout.units(site)) for site in layout.grid.sites}


def _rule(grid: Grid, k: int) -> dict[str, int]:
    cross = min(math.ceil(_CROSS * k), sum(grid.of("cross")))
    dec = min(math.ceil(_DECODER_OF_REST * (k - cross)), sum(grid.of("dec")))
    enc = min(k - cross - dec, sum(grid.of("enc")))
    dec = min(k - cross - enc, sum(grid.of("dec")))
    return {"enc": enc, "dec": dec, "cross": k - enc - dec}


def _numbers(text: str) -> dict[str, int]:
    if not re.fullmatch(r"(enc|dec|cross)=\d{1,6}(,(enc|dec|cross)=\d{1,6})*", text):
        raise ValueError(
            f"must be rule, even, numbers such as enc=0,dec=2,cross=4, a layout or a checkpoint, but is {text}"
        )
    return {stack: int(count) for stack, count in (part.split("=") for part in text.split(","))}


def _by_turn(grid: Grid, stack: str) -> list[Site]:
    """The sites of a type in the order in which they get one head more than others."""
    layers = range(len(grid.of(stack)))
    middle = (len(layers) - 1) / 2
    turn = reversed(layers) if stack == "cross" else sorted(layers, key=lambda layer: abs(layer - middle))
    return [Site(stack, layer) for layer in turn]


def _deal(grid: Grid, k: int, sites: Sequence[Site]) -> dict[Site, int]:
    """k heads dealt one a round to every site that has more."""
    counts = dict.fromkeys(sites, 0)
    while k > 0:
        open_sites = [site for site in sites if counts[site] < grid.size(site)]
        if not open_sites:
            raise ValueError("must keep no more heads than there are")
        for site in open_sites[:k]:
            counts[site] += 1
        k -= min(k, len(open_sites))
    return counts
