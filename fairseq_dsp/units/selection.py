"""Which units to keep, by finished scores under a budget: exact, never above it, and with no room left for another unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairseq_dsp.units.costs import Costs
from fairseq_dsp.units.floors import Floors, meets
from fairseq_dsp.units.knapsack import Floats, Options, best_counts
from fairseq_dsp.units.layout import Layout


class FloorsCostMore(ValueError):
    """What floors ask for costs more than the limit.

    Attributes:
        cost: of the units that floors would keep.
    """

    def __init__(self, cost: int, limit: float) -> None:
        super().__init__(f"the floors cost {cost}, which is more than {limit}.")
        self.cost = cost


def keep_best(scores: Sequence[float], layout: Layout, costs: Costs, limit: float, floors: Floors = ()) -> Layout:
    """The units of the largest sum of scores whose costs stay within the limit.

    Where that choice misses the floors, the best of every floored group come first, and the rest is the best choice beside them. A
    score below 0 counts as 0; room that is left goes to units in falling order of score as long as one fits. Ties go to the lower index.

    A smaller budget's units need not be among those of a larger one.

    Args:
        scores: one for each unit that the layout keeps, in the order of its surviving grid.
        layout: units that there are.
        costs: of its grid.
        limit: the most that kept units may cost together.
        floors: of the layout's surviving grid.

    Raises:
        FloorsCostMore: than the limit.
    """
    there = layout.surviving
    spans = [span for _, span in there.spans()]
    ranked = [sorted(range(span.start, span.stop), key=lambda unit: (-scores[unit], unit)) for span in spans]
    kept = _best(scores, ranked, costs, limit, [0] * len(spans))
    marks = _marks(ranked, kept, there.total)
    if not meets(marks, floors):
        forced = {
            unit for units, count in floors for unit in sorted(units, key=lambda unit: (-scores[unit], unit))[:count]
        }
        least = [sum(unit in forced for unit in units) for units in ranked]
        if (cost := sum(table[count] for table, count in zip(costs.tables, least, strict=True))) > limit:
            raise FloorsCostMore(cost, limit)
        marks = _marks(ranked, _best(scores, ranked, costs, limit, least), there.total)
    return layout.narrow([float(mark) for mark in marks])


def keep_first(densities: Sequence[float], layout: Layout, costs: Costs, limit: float, floors: Floors = ()) -> Layout:
    """The units of the highest densities, each of which is kept if it still fits; what floors ask for comes first.

    A density is worth per cost, as learned importance is: how it is spread over kinds of different cost needs no sum. Arguments as
    of `keep_best`.

    Raises:
        FloorsCostMore: than the limit.
    """
    there = layout.surviving
    places = [place for place, (_, span) in enumerate(there.spans()) for _ in range(span.start, span.stop)]
    order = sorted(range(there.total), key=lambda unit: (-densities[unit], unit))
    marks, counts, spent = [False] * there.total, [0] * len(there.sites), 0
    forced = [unit for units, count in floors for unit in [unit for unit in order if unit in set(units)][:count]]
    for unit in [*forced, *order]:
        step = costs.step(places[unit], counts[places[unit]]) if not marks[unit] else 0
        if not marks[unit] and spent + step <= limit:
            marks[unit], spent = True, spent + step
            counts[places[unit]] += 1
    if not meets(marks, floors):
        least = [sum(places[unit] == place for unit in forced) for place in range(len(there.sites))]
        raise FloorsCostMore(sum(table[count] for table, count in zip(costs.tables, least, strict=True)), limit)
    return layout.narrow([float(mark) for mark in marks])


def _marks(ranked: Sequence[Sequence[int]], kept: Sequence[int], total: int) -> list[bool]:
    chosen = {unit for units, count in zip(ranked, kept, strict=True) for unit in units[:count]}
    return [unit in chosen for unit in range(total)]


def _best(
    scores: Sequence[float], ranked: Sequence[Sequence[int]], costs: Costs, limit: float, least: Sequence[int]
) -> list[int]:
    """How many to keep of every site, of each at least as many as `least` says."""
    counts = list(least)
    left = int(limit) - sum(table[count] for table, count in zip(costs.tables, least, strict=True))
    alike: dict[int, list[int]] = {}  # sites whose units cost the same each, by that cost
    alone = []
    for site, units in enumerate(ranked):
        if len(units) > least[site]:
            price = costs.price(site)
            alike.setdefault(price, []).append(site) if price is not None else alone.append(site)
    places = {unit: site for site, units in enumerate(ranked) for unit in units}
    pools = [
        sorted((unit for site in sites for unit in ranked[site][least[site] :]), key=lambda unit: (-scores[unit], unit))
        for sites in alike.values()
    ]
    groups = [
        Options(_sums([scores[unit] for unit in pool]), price * np.arange(len(pool) + 1, dtype=np.int64))
        for price, pool in zip(alike, pools, strict=True)
    ]
    for site in alone:
        table = costs.tables[site][least[site] : len(ranked[site]) + 1]
        groups.append(
            Options(
                _sums([scores[unit] for unit in ranked[site][least[site] :]]),
                np.array([cost - table[0] for cost in table], dtype=np.int64),
            )
        )
    if groups:
        taken = best_counts(groups, left)
        for pool, count in zip(pools, taken, strict=False):
            for unit in pool[:count]:
                counts[places[unit]] += 1
        for site, count in zip(alone, taken[len(pools) :], strict=True):
            counts[site] += count
    return _filled(scores, ranked, costs, int(limit), counts)


def _filled(
    scores: Sequence[float], ranked: Sequence[Sequence[int]], costs: Costs, limit: int, counts: list[int]
) -> list[int]:
    """Adds units, the best first, as long as one fits: where scores are 0 or below, the best sum leaves some out."""
    spent = sum(costs.tables[site][count] for site, count in enumerate(counts))
    while True:
        fitting = [
            site
            for site, count in enumerate(counts)
            if count < len(ranked[site]) and spent + costs.step(site, count) <= limit
        ]
        if not fitting:
            return counts
        site = min(fitting, key=lambda site: (-scores[ranked[site][counts[site]]], site))
        spent += costs.step(site, counts[site])
        counts[site] += 1


def _sums(scores: Sequence[float]) -> Floats:
    return np.concatenate([[0.0], np.cumsum(np.maximum(np.asarray(scores, dtype=np.float64), 0.0))])
