"""A translation task of three lookups, of which it is known what heads it needs. Trained on by `choosing`.

    target_t = (a(source_t), b(source_p(t)), c(target_t-3)),    p a permutation without fixed points

a, b and c are random tables from words to the four values of a digit, and the three digits name one of 64 words. Each digit
needs one head that finds its position: two of cross-attention and one of decoder self-attention. A cross-attention head can
be replaced by one of encoder self-attention, as long as another one reads what that brings. Without the head its digit is a
guess among four: a quarter of the accuracy, log 4 = 1.386 nats a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.units.layout import Grid, Layout, Site

VALUES = 4  # of a digit
WORDS = VALUES**3
SPECIAL = 4  # symbols that fairseq's dictionaries begin with
DISTANCE = 3
Head = tuple[Site, int]
_END = 2  # what fairseq feeds a decoder first


@dataclass(frozen=True)
class Lookup:
    """One instance of the task; tables and permutation are functions of the seed.

    Attributes:
        tables: [3, WORDS], the digit that a word at each of the three places yields; every value as often.
        permutation: [length], p.
    """

    tables: Tensor
    permutation: Tensor

    @classmethod
    def draw(cls, seed: int, length: int) -> Lookup:
        """The instance of a seed. `length`, at least 2, counts the words of every sentence."""
        generator = torch.Generator().manual_seed(seed)
        tables = torch.stack([torch.randperm(WORDS, generator=generator) % VALUES for _ in range(3)])
        permutation = torch.randperm(length, generator=generator)
        while (permutation == torch.arange(length)).any():
            permutation = torch.randperm(length, generator=generator)
        return cls(tables, permutation)

    def target(self, source: Tensor) -> Tensor:
        """The only right target, [B, length] words from 0, of a source [B, length]."""
        here, there = self.tables[0][source], self.tables[1][source[:, self.permutation]]
        found: list[Tensor] = []
        for place in range(source.size(1)):
            earlier = self.tables[2][found[place - DISTANCE]] if place >= DISTANCE else torch.zeros_like(here[:, 0])
            found.append((here[:, place] * VALUES + there[:, place]) * VALUES + earlier)
        return torch.stack(found, dim=1)

    def batch(self, sentences: int, generator: torch.Generator) -> dict[str, Any]:
        """A batch of random sources as fairseq's criterions take it."""
        length = len(self.permutation)
        source = torch.randint(WORDS, (sentences, length), generator=generator)
        target = self.target(source) + SPECIAL
        start = torch.full((sentences, 1), _END)
        inputs = {
            "src_tokens": source + SPECIAL,
            "src_lengths": torch.full((sentences,), length),
            "prev_output_tokens": torch.cat([start, target[:, :-1]], dim=1),
        }
        return {"net_input": inputs, "target": target, "ntokens": target.numel(), "nsentences": sentences}


def digits(tokens: Tensor) -> Tensor:
    """The three digits of dictionary entries [...]: [3, ...]. Special symbols have digits that no word has."""
    words = tokens - SPECIAL
    found = torch.stack([words // VALUES**2, words // VALUES % VALUES, words % VALUES])
    return found.where(words >= 0, -1)


def needed_heads(grid: Grid) -> tuple[Head, Head, Head]:
    """Heads for the three digits where all heads of a site can learn the same."""
    return (
        (Site("cross", len(grid.of("cross")) - 1), 0),
        (Site("cross", 0), int(len(grid.of("cross")) == 1)),
        (Site("dec", 0), 0),
    )


def sufficient_layout(grid: Grid, k: int, needed: Sequence[Head]) -> Layout:
    """k heads that suffice: the needed ones, then others of cross-attention, dealt over the layers from the last.

    Raises:
        ValueError: k is less than are needed, or more than these and cross-attention.
    """
    layers = range(len(grid.of("cross")))
    cross = [(Site("cross", layer), head) for head in range(max(grid.of("cross"))) for layer in reversed(layers)]
    others = [each for each in cross if each not in needed and each[1] < grid.size(each[0])]
    if not len(needed) <= k <= len(needed) + len(others):
        raise ValueError(f"k must be between {len(needed)} and {len(needed) + len(others)}, but is {k}.")
    kept = {*needed, *others[: k - len(needed)]}
    return Layout(grid, tuple((site, head) in kept for site in grid.sites for head in range(grid.size(site))))
