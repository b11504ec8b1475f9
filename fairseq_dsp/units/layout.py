"""Which heads a model has and which of them it keeps: pure data, used everywhere, importing nothing of fairseq.

A `Site` is one attention sublayer, a `HeadGrid` says how many heads every site has, a `HeadLayout` which of them are
kept. A layout is the only thing that passes from methods to surgery, and its text
form is what checkpoints, logs and command lines carry:

    enc:1000.0000.1011/dec:0110.1111.0000/cross:0001.0101.0000

one character a head, `.` between layers, `/` between attention types.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal

STACKS = ("enc", "dec", "cross")
STACK_NAMES = {"enc": "encoder self", "dec": "decoder self", "cross": "cross"}


@dataclass(frozen=True)
class Site:
    """One attention sublayer.

    Args:
        stack: `enc` (encoder self-attention), `dec` (decoder self-attention) or `cross` (decoder over encoder).
        layer: index within the stack, from 0.
    """

    stack: str
    layer: int


@dataclass(frozen=True)
class HeadGrid:
    """The number of heads at every site; owns the flat order 0..H-1: enc, dec, cross, each layer by layer.

    Args:
        enc: heads of every encoder layer's self-attention.
        dec: heads of every decoder layer's self-attention.
        cross: heads of every decoder layer's cross-attention.
    """

    enc: tuple[int, ...]
    dec: tuple[int, ...]
    cross: tuple[int, ...]

    @classmethod
    def even(cls, layers: int, heads: int) -> HeadGrid:
        """Encoder and decoder of as many layers, with as many heads at every site."""
        return cls((heads,) * layers, (heads,) * layers, (heads,) * layers)

    @property
    def sites(self) -> list[Site]:
        return [Site(stack, layer) for stack in STACKS for layer in range(len(getattr(self, stack)))]

    @property
    def total(self) -> int:
        """H, the number of heads in the grid."""
        return sum(self.enc) + sum(self.dec) + sum(self.cross)

    def heads(self, site: Site) -> int:
        return getattr(self, site.stack)[site.layer]

    def spans(self) -> Iterator[tuple[Site, slice]]:
        """Every site with its slice of the flat order."""
        start = 0
        for site in self.sites:
            yield site, slice(start, start + self.heads(site))
            start += self.heads(site)


@dataclass(frozen=True)
class HeadLayout:
    """Which heads of a grid are kept. Hashable; ids are the grid's own, so pruning twice never shifts them.

    Args:
        grid: the heads that there are.
        kept: one bool a head in the grid's flat order.
    """

    grid: HeadGrid
    kept: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.kept) != self.grid.total:
            raise ValueError(f"a layout of {self.grid.total} heads cannot hold {len(self.kept)} marks.")

    @classmethod
    def full(cls, grid: HeadGrid) -> HeadLayout:
        return cls(grid, (True,) * grid.total)

    @classmethod
    def of_mask(cls, grid: HeadGrid, mask: Tensor | Sequence[float]) -> HeadLayout:
        """Layout of a 0/1 vector [H] in the grid's flat order."""
        return cls(grid, tuple(bool(mark) for mark in torch.as_tensor(mask).tolist()))

    @classmethod
    def parse(cls, text: str) -> HeadLayout:
        """Reads the text form.

        Raises:
            ValueError: the text is not a layout; the message says what is wrong with it.
        """
        parts = text.strip().split("/")
        names = [part.partition(":")[0] for part in parts]
        if names != list(STACKS) or any(":" not in part for part in parts):
            raise ValueError(f"a layout reads enc:…/dec:…/cross:…, with 1 or 0 for every head, but is {text!r}.")
        counts: dict[str, tuple[int, ...]] = {}
        marks = ""
        for part in parts:
            name, _, body = part.partition(":")
            layers = body.split(".") if body else []
            if any(not layer or set(layer) - {"0", "1"} for layer in layers):
                raise ValueError(
                    f"the layers of a layout are made of 1 and 0, with dots between, but {name} is {body!r}."
                )
            counts[name] = tuple(len(layer) for layer in layers)
            marks += "".join(layers)
        return cls(HeadGrid(**counts), tuple(mark == "1" for mark in marks))

    def __str__(self) -> str:
        stacks = []
        for stack in STACKS:
            layers = [site for site in self.grid.sites if site.stack == stack]
            text = ".".join("".join("01"[mark] for mark in self.marks(site)) for site in layers)
            stacks.append(f"{stack}:{text}")
        return "/".join(stacks)

    @property
    def count(self) -> int:
        """K, the number of heads kept."""
        return sum(self.kept)

    def marks(self, site: Site) -> tuple[bool, ...]:
        """One bool a head of the site."""
        return next(self.kept[span] for other, span in self.grid.spans() if other == site)

    def heads(self, site: Site) -> list[int]:
        """Ids of the heads that the site keeps."""
        return [head for head, mark in enumerate(self.marks(site)) if mark]

    def by_type(self) -> dict[str, tuple[int, int]]:
        """Attention type -> (heads kept, heads there are)."""
        return {
            stack: (
                sum(len(self.heads(site)) for site in self.grid.sites if site.stack == stack),
                sum(getattr(self.grid, stack)),
            )
            for stack in STACKS
        }

    @property
    def surviving(self) -> HeadGrid:
        """The grid of a model that has only the kept heads."""
        counts = {stack: [] for stack in STACKS}  # type: dict[str, list[int]]
        for site in self.grid.sites:
            counts[site.stack].append(len(self.heads(site)))
        return HeadGrid(*(tuple(counts[stack]) for stack in STACKS))

    def narrow(self, mask: Tensor | Sequence[float]) -> HeadLayout:
        """The layout that keeps those of this layout's heads that `mask` marks.

        Args:
            mask: 0/1 vector over the surviving heads, in their flat order.
        """
        survivors = iter(torch.as_tensor(mask).tolist())
        return HeadLayout(self.grid, tuple(bool(next(survivors)) if mark else False for mark in self.kept))

    def within(self, other: HeadLayout) -> bool:
        """Whether `other` has the same grid and keeps every head that this one keeps."""
        return self.grid == other.grid and all(
            theirs for ours, theirs in zip(self.kept, other.kept, strict=True) if ours
        )

    def random_subset(self, k: int, seed: int) -> HeadLayout:
        """k of the kept heads, drawn uniformly; a function of the layout, k and the seed.

        Raises:
            ValueError: k outside 0..count.
        """
        if not 0 <= k <= self.count:
            raise ValueError(f"k must be between 0 and {self.count}, but is {k}.")
        chosen = set(random.Random(seed).sample(range(self.count), k))
        return self.narrow([float(head in chosen) for head in range(self.count)])

    def drawing(self) -> str:
        """The layout as a picture of text: a row a layer, a column a head, # kept and · removed."""
        lines = []
        for stack in STACKS:
            for site in (site for site in self.grid.sites if site.stack == stack):
                cells = " ".join("#" if mark else "·" for mark in self.marks(site))
                lines.append(f"{STACK_NAMES[stack]:>12} {site.layer + 1:>2}  {cells}")
        return "\n".join(lines)


def parse_layout(text: str, option: str) -> HeadLayout:
    """A layout from a command line.

    Raises:
        Refusal: the text is none; the sentence names the option.
    """
    try:
        return HeadLayout.parse(text)
    except ValueError as error:
        raise Refusal(f"`{option}` must be a layout: {error}") from error


def head_rows(heads: Sequence[int], head_dim: int) -> Tensor:
    """Rows of q, k and v (columns of the output projection) that belong to the heads: [len(heads) · d]."""
    starts = torch.tensor(list(heads), dtype=torch.long).unsqueeze(1) * head_dim
    return (starts + torch.arange(head_dim)).flatten()
