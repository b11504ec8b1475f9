"""`Chosen`: what is chosen among in a model: its units of some kinds, or whole sublayers. Pure data.

A choice is a 0/1 vector over the `grid` of what is chosen, whose sites are some of the model's. Where they have as many units as the
model's, a unit is one of these; a whole sublayer is one unit at its site. What the choice leaves is a layout of the model's units.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.costs import Costs
from fairseq_dsp.units.groups import has_neurons
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import CHOICES, KIND_OF
from fairseq_dsp.units.layout import Grid, Layout, Site
from fairseq_dsp.units.neurons import NEURONS
from fairseq_dsp.units.sublayers import SUBLAYERS


@dataclass(frozen=True)
class Chosen:
    """What is chosen among.

    Args:
        layout: units that the model has.
        kinds: names of the kinds that are chosen; units of others stay.
    """

    layout: Layout
    kinds: tuple[str, ...]

    @functools.cached_property
    def grid(self) -> Grid:
        """What is chosen among, site by site: the units that the site has, or 1 for all of them together."""
        return Grid(tuple((site, min(count, 1) if self._whole else count) for site, count in self._sites()))

    def keep(self, mask: Tensor | Sequence[float]) -> Layout:
        """The layout of what a choice leaves.

        Args:
            mask: 0/1 vector over `grid`, in its flat order.
        """
        kept = dict(zip(self.grid.sites, self._marks_by_site(mask), strict=True))
        marks: list[float] = []
        for site, count in self.layout.surviving.counts:
            chosen = kept.get(site, [1.0] * count)
            marks += chosen * count if self._whole else chosen
        return self.layout.narrow(marks)

    def costs(self, costs: Costs) -> Costs:
        """The costs of what is chosen: what other units of the model cost is part of what no unit costs.

        Args:
            costs: of the units of the layout's grid.
        """
        there = dict(self.layout.surviving.counts)
        part = costs.of_part(
            self.layout, Grid(tuple((s, c) for s, c in self.layout.grid.counts if s in self.grid.sites))
        )
        tables = [
            ((0, table[there[site]])[: count + 1]) if self._whole else table[: count + 1]
            for (site, count), table in zip(self.grid.counts, part.tables, strict=True)
        ]
        return replace(part, grid=self.grid, tables=tuple(tables))

    def in_sublayers(self, costs: Costs) -> Costs:
        """Costs in which what is chosen as a whole costs so from its first unit on, 1 where units are counted; others are as they are."""
        if not self._whole:
            return costs
        tables = []
        for (_, there), table in zip(self.layout.surviving.counts, costs.tables, strict=True):
            if costs.measure == COUNT:
                tables.append((0, *(1,) * (len(table) - 1)))
            else:
                tables.append((0, *(table[there],) * there, *table[there + 1 :]))
        return replace(costs, tables=tuple(tables))

    def places(self) -> dict[str, slice]:
        """Where the units of every kind lie in the flat order of `grid`."""
        if self._whole:
            return {SUBLAYERS.name: slice(0, self.grid.total)}
        found: dict[str, slice] = {}
        for site, span in self.grid.spans():
            kind = KIND_OF[site.stack].name
            found[kind] = slice(found.get(kind, span).start, span.stop)
        return found

    @property
    def _whole(self) -> bool:
        return SUBLAYERS.name in self.kinds

    def _sites(self) -> Iterator[tuple[Site, int]]:
        for site, count in self.layout.surviving.counts:
            if self._whole or KIND_OF[site.stack].name in self.kinds:
                yield site, count

    def _marks_by_site(self, mask: Tensor | Sequence[float]) -> Iterator[list[float]]:
        marks = mask.tolist() if isinstance(mask, Tensor) else list(mask)
        for _, span in self.grid.spans():
            yield marks[span]


def parse_rates(text: str | None, option: str) -> dict[str, float]:
    """Numbers for kinds, such as `heads=0.5,ffn=0.1`; none of no text.

    Raises:
        Refusal: it does not read so, or numbers are no finite ones of at least 0.
    """
    found: dict[str, float] = {}
    for kind, given, number in (part.partition("=") for part in (text or "").split(",") if text is not None):
        try:
            rate = float(number) if given and kind in [each.name for each in CHOICES] and kind not in found else -1.0
        except ValueError:
            rate = -1.0
        if not 0 <= rate < float("inf"):
            names = ", ".join(each.name for each in CHOICES)
            raise Refusal(f"`{option}` must read KIND=RATE, with commas, for {names}, of at least 0, but is {text}.")
        found[kind] = rate
    return found


def default_kinds(grid: Grid) -> tuple[str, ...]:
    """The kinds that are chosen where nobody says which: all of which the grid has units."""
    return (HEADS.name, NEURONS.name) if has_neurons(grid) else (HEADS.name,)


def default_group(head_sizes: Collection[int], neurons: Collection[int], kinds: tuple[str, ...]) -> int:
    """Neurons that are one unit where nobody says: as many as cost what a head costs, twice its size.

    Where that does not divide the neurons of all networks, whole sublayers take the largest number that does: any would do for them.

    Args:
        head_sizes: of all attentions.
        neurons: of all feed-forward networks.

    Raises:
        Refusal: of other kinds, where it does not divide, or heads are of several sizes.
    """
    group = 2 * min(head_sizes)
    if len(set(head_sizes)) == 1 and not any(count % group for count in neurons):
        return group
    if kinds == (SUBLAYERS.name,):
        return math.gcd(*neurons)
    raise Refusal(
        "`--ffn-group` must be given where twice the size of a head does not divide the neurons of every feed-forward network "
        f"({', '.join(map(str, sorted(neurons)))}), or heads are of several sizes, but heads are of size "
        f"{', '.join(map(str, sorted(head_sizes)))}."
    )


def parse_kinds(text: str, option: str) -> tuple[str, ...]:
    """Kinds, with commas between, in the order of a grid.

    Raises:
        Refusal: others are named, one is named twice, or sublayers beside what they are made of.
    """
    known, named = [kind.name for kind in CHOICES], text.split(",")
    if set(named) - set(known) or len(set(named)) < len(named):
        raise Refusal(f"`{option}` must be kinds of units ({', '.join(known)}) with commas between, but is {text}.")
    if SUBLAYERS.name in named and len(named) > 1:
        raise Refusal(
            f"`{option}` must not name {SUBLAYERS.name} beside other kinds, for what a sublayer costs would depend on which of its units are "
            f"on, but is {text}."
        )
    return tuple(name for name in known if name in named)
