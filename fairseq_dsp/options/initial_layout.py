"""The heads that a model is built with, all of them, those given, or those drawn, and the gates on them. Called by `model`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import torch

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods import Stratified, method_class
from fairseq_dsp.methods.nested import Nested
from fairseq_dsp.methods.stratified import RULE, counts_of, counts_of_layout, draw_stratified
from fairseq_dsp.modules.gates import HeadGates
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.options.kinds import chosen_of, refuse_heads_of_other_kinds
from fairseq_dsp.options.objections import budget_out_of_range, range_outside
from fairseq_dsp.units.budget import COUNT, Budget
from fairseq_dsp.units.chosen import Chosen
from fairseq_dsp.units.floors import (
    Floors,
    floors_of,
    meets,
    objection_to_floor,
    parse_floor,
    random_subset_above_floors,
)
from fairseq_dsp.units.groups import Neurons, group_of, has_neurons, with_all_of, with_groups
from fairseq_dsp.units.layout import HEAD_STACKS, Grid, Layout
from fairseq_dsp.units.prices import read_prices
from fairseq_dsp.units.weighted import hard_under_budget, meets_budget


def initial_layout(grid: Grid, neurons: Neurons, config: PruningConfig, look_up: Callable[[str], Layout]) -> Layout:
    """The layout that the options give or draw, before anything is learned.

    Neurons are units of it where the options say in which groups.

    Args:
        grid: the heads of the architecture.
        neurons: of its feed-forward networks.
        look_up: the layout of a text or of a checkpoint that an option names.

    Raises:
        Refusal: the layout does not fit the grid, or budget, floor and counts do not fit each other.
    """
    layout = given_layout(grid, neurons, config, look_up)
    chosen = chosen_of(config, layout)
    there = chosen.grid
    budget, floors = config.kept_heads, floors_of(there, parse_floor(config.cross_floor))
    if budget is not None and not 0 <= budget <= there.total:
        raise Refusal(budget_out_of_range(budget, there.total))
    if config.budget_range is not None and not config.budget_range[1] <= there.total:
        raise Refusal(range_outside(config.budget_range, there.total))
    fewest = budget if config.budget_range is None else config.budget_range[0]
    if (objection := objection_to_floor(there, parse_floor(config.cross_floor), fewest, chosen.noun)) is not None:
        raise Refusal(objection)
    if config.prices is not None:
        return _within(chosen, config, floors)
    if method_class(config).learned or budget is None or there.total == budget:
        return layout
    refuse_heads_of_other_kinds(chosen, config)
    if method_class(config) is Stratified:
        drawn = _stratified(there, budget, config, look_up)
        if not meets(drawn.kept, floors):
            raise Refusal(
                f"`--head-counts` must leave the cross-attention heads of `--cross-floor {config.cross_floor}`, but is "
                f"{config.head_counts or RULE}, which keeps {drawn.by_type()['cross'][0]}."
            )
        return chosen.keep([float(mark) for mark in drawn.kept])
    return chosen.keep(
        [float(mark) for mark in random_subset_above_floors(Layout.full(there), budget, config.seed, floors).kept]
    )


def given_layout(grid: Grid, neurons: Neurons, config: PruningConfig, look_up: Callable[[str], Layout]) -> Layout:
    """The layout that the options give, all units where they give none. Arguments as of `initial_layout`.

    Raises:
        Refusal: it does not fit the grid.
    """
    given = None if config.head_layout is None else look_up(config.head_layout)
    group = config.ffn_group
    if group is None and given is not None and has_neurons(given.grid):
        group = group_of(given.grid, neurons, "--head-layout")
    if group is not None:
        grid = with_groups(grid, neurons, group)
    layout = Layout.full(grid) if given is None else with_all_of(given, grid)
    if layout.grid != grid:
        raise Refusal(f"`--head-layout` must fit the model, whose {grid.noun} are {_counts(grid)}, but is {layout}.")
    return layout


def _within(chosen: Chosen, config: PruningConfig, floors: Floors) -> Layout:
    """The layout, or what a draw leaves of it, under a budget of unequal costs.

    Raises:
        Refusal: what the floor keeps costs more, or there are fewer units.
    """
    layout, there = chosen.layout, chosen.grid
    budget = read_prices(str(config.prices), there)
    for part in budget.parts or (budget,):
        if part.measure == COUNT and part.limit > part.total:
            raise Refusal(f"`--budget` must be at most the {part.total} units that there are, but is {config.budget}.")
    order = list(range(there.total))
    random.Random(config.seed).shuffle(order)
    try:
        drawn = hard_under_budget(torch.tensor(order, dtype=torch.float64), budget, floors)
    except ValueError as error:
        raise Refusal(
            f"`--cross-floor {config.cross_floor}` must fit `--budget {config.budget}`, but costs more than it leaves for heads."
        ) from error
    if (
        method_class(config).learned
        or config.head_layout is not None
        and bool(meets_budget(torch.ones(there.total), budget))
    ):
        return layout
    return chosen.keep(drawn)


def _stratified(grid: Grid, budget: int, config: PruningConfig, look_up: Callable[[str], Layout]) -> Layout:
    """Heads drawn with the counts that the options name.

    Args:
        grid: the heads that there are.

    Raises:
        Refusal: the counts do not fit the budget, or what there is.
    """
    text = config.head_counts
    try:
        if text is not None and ("/" in text or os.path.exists(text)):
            counts = {
                site: count for site, count in counts_of_layout(look_up(text)).items() if site.stack in HEAD_STACKS
            }
            if sum(counts.values()) != budget:
                raise ValueError(f"must add up to the budget of {budget}, but the layout keeps {sum(counts.values())}")
        else:
            counts = counts_of(grid, budget, text)
        return draw_stratified(grid, counts, config.seed)
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal(f"{flag('head_counts')} {error}.") from error


def _counts(grid: Grid) -> str:
    return ", ".join(f"{stack} {grid.of(stack)}" for stack in grid.named_stacks)


def gates_of(config: PruningConfig, layout: Layout) -> HeadGates:
    """The gates of a fresh model whose units a method is choosing.

    Args:
        layout: units that the model has.
    """
    chosen, method = chosen_of(config, layout), method_class(config).from_config(config)
    grid, floors = chosen.grid, floors_of(chosen.grid, parse_floor(config.cross_floor))
    nested = Nested.from_config(config)
    gates = (
        HeadGates(grid, budget_of(config, grid), method, floors)
        if nested is None
        else NestedGates(grid, nested, method, floors)
    )
    gates.chosen = chosen
    return gates


def budget_of(config: PruningConfig, grid: Grid) -> Budget | None:
    """What the kept units may cost together; None where the method finds their number itself.

    Args:
        grid: the units that the model has.

    Raises:
        ValueError: what a `--budget` comes to is no such text.
    """
    if config.prices is not None:
        return read_prices(config.prices, grid)
    return None if config.kept_heads is None else Budget.of_units(config.kept_heads, grid.total)
