"""What the units of a transformer cost: parameters and multiply-adds by formula, from sizes alone; other measures by a table. Pure data.

Letters: S and T source and target tokens of a sentence, b hypotheses, d head size, C the width that a map reads or writes, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import KIND_OF, STACK_OF
from fairseq_dsp.units.layout import Grid, Layout, Site
from fairseq_dsp.units.neurons import NEURONS

PARAMETERS, MACS, LATENCY = "parameters", "macs", "latency"

# What a dense model's time is cut into: a choice under a table is exact in whole numbers, and time is none.
TIME_PARTS = 1 << 16

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Costs:
    """What a model's units cost in a measure.

    Args:
        measure: `count`, `parameters`, `macs` or `latency`.
        grid: the units of the architecture.
        tables: for each site of the grid, what 0, 1, … of its units cost: whole numbers from 0 on, not falling. A sublayer's fixed
            cost, which falls away with its last unit, is in what one unit costs.
        rest: what no unit costs: embeddings, output projection, norms, biases that stay.
        scale: what one of these whole numbers stands for, in the measure's own unit (parameters, multiply-adds, seconds).
        whole: what the model costs before anything goes, where it is not the sum of all this: fairseq's own attention takes other
            time than ours with all heads.
    """

    measure: str
    grid: Grid
    tables: tuple[tuple[int, ...], ...]
    rest: int
    scale: float = 1.0
    whole: int | None = None

    def __post_init__(self) -> None:
        for (_, count), table in zip(self.grid.counts, self.tables, strict=True):
            rises = all(first <= second for first, second in zip(table, table[1:], strict=False))
            if len(table) != count + 1 or table[0] != 0 or not rises:
                raise ValueError(f"a table of costs must rise from 0 to that of {count} units, but is {table}.")

    @classmethod
    def of_units(cls, measure: str, grid: Grid, prices: Mapping[Site, int], rest: int) -> Costs:
        """Costs of a measure in which every unit of a site costs the same."""
        tables = (tuple(prices[site] * taken for taken in range(count + 1)) for site, count in grid.counts)
        return cls(measure, grid, tuple(tables), rest)

    def of_part(self, layout: Layout, grid: Grid) -> Costs:
        """The costs of some sites alone: what a layout keeps at others is part of what no unit costs.

        Args:
            grid: these sites, in their order.
        """
        tables, rest = [], self.rest
        for (site, _), table, (_, kept) in zip(self.grid.counts, self.tables, layout.surviving.counts, strict=True):
            if site in grid.sites:
                tables.append(table)
            else:
                rest += table[kept]
        return replace(self, grid=grid, tables=tuple(tables), rest=rest)

    def counting(self, counts: Callable[[Site], bool]) -> Costs:
        """The costs of some sites as they are, and nothing for units of others."""
        tables = zip(self.grid.sites, self.tables, strict=True)
        return replace(self, tables=tuple(table if counts(site) else (0,) * len(table) for site, table in tables))

    def straight(self) -> Costs:
        """The lowest costs by which all units of a site cost the same, at least 1, and no number of them costs less than here.

        Where a site has all of its units nothing changes. What lies above the line of its units, such as a sublayer's fixed cost, is
        part of what no unit costs: who takes units one by one does not see that it goes with the last.
        """
        tables, rest = [], self.rest
        for table in self.tables:
            most = len(table) - 1
            slopes = [(table[most] - cost) // (most - count) for count, cost in enumerate(table[:most])]
            price = max(min(slopes, default=1), 1)
            rest += max(cost - price * count for count, cost in enumerate(table))
            tables.append(tuple(price * count for count in range(most + 1)))
        return replace(self, tables=tuple(tables), rest=rest)

    @property
    def prunable(self) -> int:
        """What all units of the architecture cost."""
        return sum(table[-1] for table in self.tables)

    @property
    def dense(self) -> int:
        """What the whole model costs with all of its units."""
        return self.rest + self.prunable if self.whole is None else self.whole

    def of(self, layout: Layout) -> int:
        """What a layout's units cost."""
        counts = layout.surviving.counts
        return sum(table[count] for table, (_, count) in zip(self.tables, counts, strict=True))

    def price(self, site: int) -> int | None:
        """What each unit of a site costs, by the site's place in the grid; None where they do not all cost the same."""
        table = self.tables[site]
        return table[1] if all(cost == count * table[1] for count, cost in enumerate(table)) else None

    def step(self, site: int, count: int) -> int:
        """What one unit more costs at a site that has so many."""
        return self.tables[site][count + 1] - self.tables[site][count]

    def cheapest_off(self, layout: Layout, of: Layout | None = None) -> int | None:
        """What the cheapest unit costs that the layout leaves out, at a site that has as many as this one; None where none is out.

        Args:
            of: units that there were; all of the grid's if None.
        """
        before = (of or Layout.full(self.grid)).surviving.counts
        steps = [
            step
            for site, ((_, count), (_, there)) in enumerate(zip(layout.surviving.counts, before, strict=True))
            if count < there and (step := self.step(site, count))
        ]
        return min(steps, default=None)


@dataclass(frozen=True)
class Sentence:
    """What operations are counted of: one sentence that is translated.

    Args:
        source: S, tokens of the source, its end included.
        target: T, likewise of the translation.
        beam: b, hypotheses that are searched.
    """

    source: int
    target: int
    beam: int


def parameter_costs(grid: Grid, shapes: Shapes, widths: Mapping[Site, int], present: int, layout: Layout) -> Costs:
    """Parameters: those that a unit owns of every tensor (see `units/kind`).

    Args:
        grid: the units of the architecture.
        shapes: of the model's parameters, by name.
        widths: places that a unit of a site has: d of a head, g of a group of neurons.
        present: parameters that the model has.
        layout: units that it has.
    """
    prices = {
        site: sum(
            owned.width * _others(shapes[name], owned.dim)
            for owned in KIND_OF[site.stack].slices(widths[site])
            if (name := f"{_module(site)}.{owned.name}") in shapes
        )
        for site in grid.sites
    }
    owned = sum(prices[site] * count for site, count in layout.surviving.counts)
    return Costs.of_units(PARAMETERS, grid, prices, present - owned)


def operation_costs(
    grid: Grid, shapes: Shapes, widths: Mapping[Site, int], sentence: Sentence, sees_source: bool = False
) -> Costs:
    """Multiply-adds of matrix products while one sentence is translated, as the beam search of this package computes it.

        a head of the encoder              S · (4 C d) + 2 S² d
        one of the decoder                 b T · (4 C d) + 2 d · b T (T + 1) / 2       keys and values of earlier words are cached
        one that sees the source too       b S · (2 C d) + 2 b T S d more              keys and values once a hypothesis
        one over the encoder               b T · (2 C d) + S · (2 C d) + 2 b T S d     keys and values once a source sentence
        g neurons of encoder, decoder      S · 2 C g,  b T · 2 C g
        none of them                       b T · C V, the output projection, and projections of other widths beside it;
                                           neurons, where they are no units

    Args:
        shapes, widths: as of `parameter_costs`; a model without an adaptive softmax.
        sees_source: the decoder's self-attention is over the encoder's output too (`--cross-self-attention`).
    """
    source, target = sentence.source, sentence.beam * sentence.target
    pairs = {"enc": source * source, "dec": target * (sentence.target + 1) // 2, "cross": target * source}
    pairs["dec"] += sees_source * target * source
    prices = {}
    for site in grid.sites:
        kind, module, width = KIND_OF[site.stack], _module(site), widths[site]
        queries = source if STACK_OF[site.stack].side == "encoder" else target
        keys = source if site.stack == "cross" else queries
        keys += (sees_source and site.stack == "dec") * sentence.beam * source
        prices[site] = 0
        for name in (*kind.makers, *kind.readers):
            tokens = keys if name in ("k_proj", "v_proj") else queries
            shape = shapes[f"{module}.{name}.weight"]
            prices[site] += tokens * width * (shape[1] if name in kind.makers else shape[0])
        if kind is HEADS:
            prices[site] += 2 * pairs[site.stack] * width
    rest = sum(
        target * shapes[name][0] * shapes[name][1]
        for name in (f"decoder.{part}.weight" for part in ("project_in_dim", "project_out_dim", "output_projection"))
        if name in shapes
    )
    counted = {_module(site) for site in grid.sites if KIND_OF[site.stack] is NEURONS}
    for stack, tokens in zip(NEURONS.stacks, (source, target), strict=True):
        layers = (number for number in range(len(shapes)) if f"{stack.module_name(number)}.fc1.weight" in shapes)
        for module in (stack.module_name(number) for number in layers):
            if module not in counted:  # whose neurons are no units
                rest += tokens * sum(
                    shapes[f"{module}.{name}.weight"][0] * shapes[f"{module}.{name}.weight"][1]
                    for name in ("fc1", "fc2")
                )
    return Costs.of_units(MACS, grid, prices, rest)


def _module(site: Site) -> str:
    return STACK_OF[site.stack].module_name(site.layer)


def _others(shape: tuple[int, ...], dim: int) -> int:
    """Numbers in one place of a dimension."""
    size = 1
    for axis, length in enumerate(shape):
        size *= 1 if axis == dim else length
    return size
