"""The choice under a budget against brute force: exact, never above, no room for another unit, top-K where costs are equal."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import many_examples

from fairseq_dsp.units import knapsack
from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.costs import Costs
from fairseq_dsp.units.floors import floors_of, meets
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.selection import keep_best

GRIDS = st.builds(
    lambda enc, dec, cross, ffn: Grid.of_stacks(enc=enc, dec=dec, cross=cross, ffn_enc=ffn[:1], ffn_dec=ffn[1:]),
    *[st.lists(st.integers(0, 2), max_size=2)] * 3,
    st.lists(st.integers(0, 3), max_size=2),
)


def any_costs(grid: Grid, seed: int, kind: str) -> Costs:
    """Costs of a kind: equal, by site, or any rising table with a fixed cost of a site that is not empty."""
    draw = random.Random(seed)
    prices = {site: 1 if kind == "equal" else draw.randint(1, 9) for site in grid.sites}
    if kind != "table":
        return Costs.of_units(COUNT, grid, prices, draw.randint(0, 5))
    tables = []
    for _, count in grid.counts:
        steps = [draw.randint(0, 9) for _ in range(count)]
        tables.append(tuple(itertools.accumulate([0, *steps])))
    return Costs(COUNT, grid, tuple(tables), draw.randint(0, 5))


def by_brute_force(scores: list[float], layout: Layout, costs: Costs, limit: int) -> float:
    total = layout.count
    return max(
        sum(max(scores[unit], 0) for unit in range(total) if marks[unit])
        for marks in itertools.product((0.0, 1.0), repeat=total)
        if costs.of(layout.narrow(marks)) <= limit
    )


def value(scores: list[float], layout: Layout, chosen: Layout) -> float:
    there = [mark for mark, was in zip(chosen.kept, layout.kept, strict=True) if was]
    return sum(max(score, 0) for score, mark in zip(scores, there, strict=True) if mark)


@pytest.mark.parametrize("kind", ["equal", "site", "table"])
@pytest.mark.parametrize("way", ["frontier", "table"])
@given(grid=GRIDS, seed=st.integers(0, 10**6), share=st.floats(0, 1), whole=st.booleans())
@many_examples
def test_is_the_best_that_the_budget_buys(kind, way, grid, seed, share, whole):
    draw = random.Random(seed)
    layout = Layout(grid, tuple(whole or draw.random() < 0.8 for _ in range(grid.total)))
    if layout.count > 10:
        layout = layout.random_subset(10, seed)
    costs = any_costs(grid, seed, kind)
    scores = [draw.choice([draw.random(), round(draw.random(), 1), 0.0, -draw.random()]) for _ in range(layout.count)]
    limit = int(share * costs.prunable)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "_MOST_PAIRS", 10**9 if way == "frontier" else 0)
        chosen = keep_best(scores, layout, costs, limit)
    assert chosen.within(layout)
    assert costs.of(chosen) <= limit
    assert value(scores, layout, chosen) == pytest.approx(by_brute_force(scores, layout, costs, limit), abs=1e-12)
    steps = [
        costs.step(site, count)
        for site, ((_, count), (_, there)) in enumerate(
            zip(chosen.surviving.counts, layout.surviving.counts, strict=True)
        )
        if count < there
    ]
    assert all(costs.of(chosen) + step > limit for step in steps)


@given(seed=st.integers(0, 10**6), k=st.integers(0, 18))
@many_examples
def test_is_the_top_k_where_costs_are_equal(seed, k):
    layout, draw = Layout.full(Grid.even(2, 3)), random.Random(seed)
    scores = [round(draw.random(), 1) for _ in range(18)]
    best = sorted(range(18), key=lambda unit: (-scores[unit], unit))[:k]
    chosen = keep_best(scores, layout, any_costs(layout.grid, seed, "equal"), k)
    assert chosen.kept == tuple(unit in best for unit in range(18))


@given(seed=st.integers(0, 10**6), floor=st.sampled_from([1, 2, "layer"]))
@many_examples
def test_leaves_what_a_floor_asks_for(seed, floor):
    draw = random.Random(seed)
    layout = Layout.full(Grid.even(2, 2))
    costs = any_costs(layout.grid, seed, "site")
    scores = [draw.random() * (0.01 if unit >= 8 else 1) for unit in range(12)]
    floors = floors_of(layout.grid, floor)
    limit = max(costs.tables[4][2] + costs.tables[5][2], costs.prunable // 2)
    chosen = keep_best(scores, layout, costs, limit, floors)
    assert meets(chosen.kept, floors)
    assert costs.of(chosen) <= limit
    free = keep_best(scores, layout, costs, limit)
    assert chosen == free or not meets(free.kept, floors)


def test_a_floor_above_the_budget_is_an_error():
    layout = Layout.full(Grid.even(1, 2))
    with pytest.raises(ValueError, match="floors"):
        keep_best([1.0] * 6, layout, any_costs(layout.grid, 3, "site"), 0, floors_of(layout.grid, 1))


@given(seed=st.integers(0, 10**6))
@many_examples
def test_both_ways_find_the_same_value(seed):
    draw = np.random.default_rng(seed)
    groups = [
        knapsack.Options(
            np.concatenate([[0], draw.random(count).cumsum()]), np.concatenate([[0], draw.integers(1, 40, count).cumsum()])
        )
        for count in draw.integers(1, 12, 5)
    ]  # fmt: skip
    limit = int(draw.integers(0, 400))
    found = []
    for way in (knapsack._by_frontier, knapsack._by_table):
        counts = way(groups, limit)
        assert sum(group.costs[count] for group, count in zip(groups, counts, strict=True)) <= limit
        found.append(sum(group.values[count] for group, count in zip(groups, counts, strict=True)))
    assert found[0] == pytest.approx(found[1])
