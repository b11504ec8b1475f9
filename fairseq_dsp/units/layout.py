"""Which units a model has and which of them it keeps: pure data, used everywhere, importing nothing of fairseq.

A unit is an attention head, or a group of neurons of a feed-forward network. A `Site` is one sublayer that has units, a `Grid`
is the ordered list of sites with their counts, a `Layout` says which units are kept. A layout is the only thing that passes
from methods to surgery, and its text form is what checkpoints, logs and command lines carry:

    enc:1000.0000.1011/dec:0110.1111.0000/cross:0001.0101.0000

one character a unit, `.` between layers, `/` between stacks. Where feed-forward networks have units too, `/ffn-enc:…/ffn-dec:…`
follows, in which a site of more than 64 units reads `xCOUNT:HEX`, its marks as bits, the first unit's the highest.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import KINDS, STACK_OF
from fairseq_dsp.units.neurons import NEURONS

STACKS = tuple(STACK_OF)
HEAD_STACKS, FFN_STACKS = (tuple(stack.name for stack in kind.stacks) for kind in (HEADS, NEURONS))
STACK_NAMES = {name: stack.title for name, stack in STACK_OF.items()}

# A site of more units is written in hexadecimal; none of more than the second number is read, and no layout of more than the third: a short
# text may say any number.
_LONGEST, _MOST, _MOST_IN_ALL = 64, 1 << 20, 1 << 22


@dataclass(frozen=True)
class Site:
    """One sublayer that has units.

    Args:
        stack: `enc` (encoder self-attention), `dec` (decoder self-attention), `cross` (decoder over encoder), `ffn-enc` or `ffn-dec`
            (feed-forward networks).
        layer: index within the stack, from 0.
    """

    stack: str
    layer: int


@dataclass(frozen=True)
class Grid:
    """The sites of a model, each with its number of units. Their order is the flat order 0..n-1 of all units.

    Args:
        counts: sites in the order of `STACKS`, each stack layer by layer from 0, with their number of units.
    """

    counts: tuple[tuple[Site, int], ...]

    def __post_init__(self) -> None:
        ordered = [Site(stack, layer) for stack in STACKS for layer in range(len(self.of(stack)))]
        if self.sites != ordered or any(count < 0 for _, count in self.counts):
            raise ValueError(f"the sites of a grid must be in order and have 0 or more units, but are {self.counts}.")

    @classmethod
    def of_stacks(cls, **counts: Sequence[int]) -> Grid:
        """A grid of the stacks named, `-` written as `_`: the units of every layer."""
        named = {name.replace("_", "-"): layers for name, layers in counts.items()}
        return cls(tuple((Site(stack, i), count) for stack in STACKS for i, count in enumerate(named.pop(stack, ()))))

    @classmethod
    def of_heads(cls, enc: Sequence[int], dec: Sequence[int], cross: Sequence[int]) -> Grid:
        """A grid of heads alone: those of every layer."""
        return cls.of_stacks(enc=enc, dec=dec, cross=cross)

    @classmethod
    def even(cls, layers: int, heads: int) -> Grid:
        """Encoder and decoder of as many layers, with as many heads at every site."""
        return cls.of_heads((heads,) * layers, (heads,) * layers, (heads,) * layers)

    @property
    def sites(self) -> list[Site]:
        return [site for site, _ in self.counts]

    @property
    def total(self) -> int:
        """n, the number of units in the grid."""
        return sum(count for _, count in self.counts)

    def of(self, stack: str) -> tuple[int, ...]:
        """The units of every layer of a stack."""
        return tuple(count for site, count in self.counts if site.stack == stack)

    def size(self, site: Site) -> int:
        """The number of units at a site."""
        return dict(self.counts)[site]

    def spans(self) -> Iterator[tuple[Site, slice]]:
        """Every site with its slice of the flat order."""
        start = 0
        for site, count in self.counts:
            yield site, slice(start, start + count)
            start += count

    @property
    def noun(self) -> str:
        """What sentences call the units: heads, where there are no others."""
        return "heads" if self.named_stacks == HEAD_STACKS else "units"

    @property
    def named_stacks(self) -> tuple[str, ...]:
        """Stacks that tables and texts name: those of heads always, others where the grid has sites of them."""
        there = {site.stack for site in self.sites}
        return HEAD_STACKS + (FFN_STACKS if there & set(FFN_STACKS) else ())


@dataclass(frozen=True)
class Layout:
    """Which units of a grid are kept. Hashable; ids are the grid's own, so pruning twice never shifts them.

    Args:
        grid: the units that there are.
        kept: one bool a unit in the grid's flat order.
    """

    grid: Grid
    kept: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.kept) != self.grid.total:
            raise ValueError(f"a layout of {self.grid.total} heads cannot hold {len(self.kept)} marks.")

    @classmethod
    def full(cls, grid: Grid) -> Layout:
        return cls(grid, (True,) * grid.total)

    @classmethod
    def of_mask(cls, grid: Grid, mask: Tensor | Sequence[float]) -> Layout:
        """Layout of a 0/1 vector [n] in the grid's flat order."""
        return cls(grid, tuple(bool(mark) for mark in torch.as_tensor(mask).tolist()))

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Reads the text form.

        Raises:
            ValueError: the text is not a layout; the message says what is wrong with it.
        """
        parts = text.strip().split("/")
        names = tuple(part.partition(":")[0] for part in parts)
        if names not in (HEAD_STACKS, STACKS) or any(":" not in part for part in parts):
            raise ValueError(f"a layout reads enc:…/dec:…/cross:…, with 1 or 0 for every head, but is {text!r}.")
        counts: list[tuple[Site, int]] = []
        marks = ""
        for part in parts:
            name, _, body = part.partition(":")
            for layer, written in enumerate(body.split(".") if body else []):
                read = _read_marks(written, name in FFN_STACKS)
                if read is None:
                    raise ValueError(
                        f"the layers of a layout are made of 1 and 0, with dots between, but {name} is {body!r}."
                    )
                counts.append((Site(name, layer), len(read)))
                marks += read
                if len(marks) > _MOST_IN_ALL:
                    raise ValueError(f"a layout must have at most {_MOST_IN_ALL} units, but {text[:80]!r}… has more.")
        return cls(Grid(tuple(counts)), tuple(mark == "1" for mark in marks))

    def __str__(self) -> str:
        texts = dict.fromkeys(self.grid.named_stacks, "")
        for stack, sites in groupby(self.grid.spans(), lambda item: item[0].stack):
            texts[stack] = ".".join(_write_marks(self.kept[span], stack in FFN_STACKS) for _, span in sites)
        return "/".join(f"{stack}:{text}" for stack, text in texts.items())

    @property
    def count(self) -> int:
        """K, the number of units kept."""
        return sum(self.kept)

    def marks(self, site: Site) -> tuple[bool, ...]:
        """One bool a unit of the site."""
        return next(self.kept[span] for other, span in self.grid.spans() if other == site)

    def units(self, site: Site) -> list[int]:
        """Ids of the units that the site keeps."""
        return [unit for unit, mark in enumerate(self.marks(site)) if mark]

    def by_type(self) -> dict[str, tuple[int, int]]:
        """Stack -> (units kept, units there are)."""
        counts = dict.fromkeys(self.grid.named_stacks, (0, 0))
        for site, span in self.grid.spans():
            kept, there = counts[site.stack]
            counts[site.stack] = kept + sum(self.kept[span]), there + span.stop - span.start
        return counts

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """What units of a kind are called -> (those kept, those there are); kinds of which the grid has none are left out."""
        types = self.by_type()
        found = {}
        for kind in KINDS:
            counts = [types[stack.name] for stack in kind.stacks if stack.name in types]
            if counts:
                found[kind.noun] = sum(kept for kept, _ in counts), sum(there for _, there in counts)
        return found

    def counted(self) -> str:
        """The numbers of units as a sentence has them: `18 of 72 heads and 40 of 96 neuron groups`."""
        return " and ".join(f"{kept} of {there} {noun}" for noun, (kept, there) in self.by_kind().items())

    @property
    def surviving(self) -> Grid:
        """The grid of a model that has only the kept units."""
        return Grid(tuple((site, sum(self.kept[span])) for site, span in self.grid.spans()))

    def narrow(self, mask: Tensor | Sequence[float]) -> Layout:
        """The layout that keeps those of this layout's units that `mask` marks.

        Args:
            mask: 0/1 vector over the surviving units, in their flat order.
        """
        survivors = iter(torch.as_tensor(mask).tolist())
        return Layout(self.grid, tuple(bool(next(survivors)) if mark else False for mark in self.kept))

    def also_within(self, other: Layout) -> Layout:
        """The layout of the units that both keep, of one grid."""
        return Layout(self.grid, tuple(ours and theirs for ours, theirs in zip(self.kept, other.kept, strict=True)))

    def within(self, other: Layout) -> bool:
        """Whether `other` has the same grid and keeps every unit that this one keeps."""
        return self.grid == other.grid and all(
            theirs for ours, theirs in zip(self.kept, other.kept, strict=True) if ours
        )

    def random_subset(self, k: int, seed: int) -> Layout:
        """k of the kept units, drawn uniformly; a function of the layout, k and the seed.

        Raises:
            ValueError: k outside 0..count.
        """
        if not 0 <= k <= self.count:
            raise ValueError(f"k must be between 0 and {self.count}, but is {k}.")
        chosen = set(random.Random(seed).sample(range(self.count), k))
        return self.narrow([float(unit in chosen) for unit in range(self.count)])

    def drawing(self) -> str:
        """The layout as a picture of text: a row a layer, a column a head, # kept and · removed; of an FFN the number kept."""
        lines = []
        for site, span in self.grid.spans():
            marks = self.kept[span]
            cells = " ".join("#" if mark else "·" for mark in marks)
            if site.stack in FFN_STACKS:
                cells = f"{sum(marks)}/{len(marks)}"
            lines.append(f"{STACK_NAMES[site.stack]:>12} {site.layer + 1:>2}  {cells}")
        return "\n".join(lines)


def is_layout(value: Any) -> bool:
    """Whether a value, of JSON for example, is a layout's text."""
    try:
        Layout.parse(value)
    except (ValueError, AttributeError):
        return False
    return True


def parse_layout(text: str, option: str) -> Layout:
    """A layout from a command line.

    Raises:
        Refusal: the text is none; the sentence names the option.
    """
    try:
        return Layout.parse(text)
    except ValueError as error:
        raise Refusal(f"`{option}` must be a layout: {error}") from error


def _write_marks(marks: Sequence[bool], may_be_long: bool) -> str:
    text = "".join("01"[mark] for mark in marks)
    return f"x{len(text)}:{int(text, 2):x}" if may_be_long and len(text) > _LONGEST else text


def _read_marks(text: str, may_be_long: bool) -> str | None:
    """Marks as 1 and 0; None where the text is none."""
    if may_be_long and (found := re.fullmatch(r"x(\d{1,7}):([0-9a-f]+)", text)):
        count, value = int(found[1]), int(found[2], 16)
        fits = _LONGEST < count <= _MOST and value < 1 << count
        return f"{value:0{count}b}" if fits and f"{value:x}" == found[2] else None
    return text if text and not set(text) - {"0", "1"} else None
