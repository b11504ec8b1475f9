"""Where K heads may lie when nobody has trained: spread over all sublayers, or packed into few."""

from __future__ import annotations

from collections.abc import Callable

from fairseq_dsp.units.layout import HEAD_STACKS, Grid, Layout, Site


def spread(grid: Grid, k: int) -> Layout:
    """k heads as evenly over all sublayers as they go: one head in each of 18 where k is 18."""
    counts = dict.fromkeys(grid.sites, 0)
    while k:
        open_sites = [site for site in grid.sites if counts[site] < grid.size(site)]
        given = min(k, len(open_sites))
        for number in range(given):  # what does not go evenly is given out at equal distances
            counts[open_sites[(2 * number + 1) * len(open_sites) // (2 * given)]] += 1
        k -= given
    return _first_heads(grid, counts)


def packed(grid: Grid, k: int) -> Layout:
    """k heads in as few sublayers as possible, whole sublayers in this order: cross, decoder self, encoder self, each
    from the lowest layer. Cross-attention comes first because no translation is possible without it."""
    counts = dict.fromkeys(grid.sites, 0)
    for stack in reversed(HEAD_STACKS):
        for site in (site for site in grid.sites if site.stack == stack):
            counts[site] = min(grid.size(site), k)
            k -= counts[site]
    return _first_heads(grid, counts)


PLACEMENTS: dict[str, Callable[[Grid, int], Layout]] = {"spread": spread, "packed": packed}


def _first_heads(grid: Grid, counts: dict[Site, int]) -> Layout:
    marks = [float(head < counts[site]) for site in grid.sites for head in range(grid.size(site))]
    return Layout.of_mask(grid, marks)
