"""Grids of heads to which the neurons of feed-forward networks are added, in groups. Called by `plugin` and `checkpoints`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.kinds import KIND_OF
from fairseq_dsp.units.layout import FFN_STACKS, Grid, Layout, Site
from fairseq_dsp.units.neurons import NEURONS

Neurons = Mapping[str, Sequence[int]]  # F of every layer, by the stack of feed-forward networks


def has_neurons(grid: Grid) -> bool:
    """Whether neurons are units of the grid."""
    return any(KIND_OF[site.stack] is NEURONS for site in grid.sites)


def with_groups(grid: Grid, neurons: Neurons, group: int) -> Grid:
    """The grid of heads with the neurons in groups of so many.

    Raises:
        Refusal: they cannot be divided so.
    """
    counts = [(Site(stack, i), count) for stack in FFN_STACKS for i, count in enumerate(neurons.get(stack, ()))]
    for _, count in counts:
        if group < 1 or count % group:
            raise Refusal(f"`--ffn-group` must divide the {count} neurons of a feed-forward network, but is {group}.")
    heads = [item for item in grid.counts if KIND_OF[item[0].stack] is not NEURONS]
    return Grid((*heads, *((site, count // group) for site, count in counts)))


def group_of(grid: Grid, neurons: Neurons, option: str) -> int:
    """g, the neurons of a group in a grid that has them.

    Args:
        neurons: of the model that the grid is meant for.
        option: names the grid in a refusal.

    Raises:
        Refusal: the grid does not fit these neurons, or its groups are of several sizes.
    """
    sizes = set()
    for stack in FFN_STACKS:
        there, wanted = grid.of(stack), tuple(neurons.get(stack, ()))
        if len(there) != len(wanted) or any(
            not count or size % count for count, size in zip(there, wanted, strict=True)
        ):
            raise Refusal(
                f"`{option}` must divide the neurons of every feed-forward network into groups, and they are {list(wanted)} in "
                f"{stack}, but its groups are {list(there)}."
            )
        sizes |= {size // count for count, size in zip(there, wanted, strict=True)}
    if len(sizes) != 1:
        raise Refusal(f"the groups of `{option}` must be of one size, but are of {sorted(sizes)} neurons.")
    return sizes.pop()


def part_of(layout: Layout, kinds: Sequence[str]) -> Layout:
    """The part of a layout that has units of these kinds: a grid of their sites alone."""
    spans = [(site, span) for site, span in layout.grid.spans() if KIND_OF[site.stack].name in kinds]
    kept = tuple(mark for _, span in spans for mark in layout.kept[span])
    return Layout(Grid(tuple((site, span.stop - span.start) for site, span in spans)), kept)


def with_part(layout: Layout, part: Layout) -> Layout:
    """The layout with another choice at the sites of `part`; the inverse of `part_of`."""
    kept, of_part = list(layout.kept), dict(part.grid.spans())
    for site, span in layout.grid.spans():
        if site in of_part:
            kept[span] = part.kept[of_part[site]]
    return Layout(layout.grid, tuple(kept))


def with_all_of(layout: Layout, grid: Grid) -> Layout:
    """The layout over a grid that has the same heads, and neurons too: all of these are kept where the layout knows none."""
    if (
        has_neurons(layout.grid)
        or not has_neurons(grid)
        or grid.counts[: len(layout.grid.counts)] != layout.grid.counts
    ):
        return layout
    return Layout(grid, layout.kept + (True,) * (grid.total - layout.grid.total))
