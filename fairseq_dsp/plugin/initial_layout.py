"""The heads that a model is built with: all of them, those given, or those drawn. Called by `model`."""

from __future__ import annotations

import os
from collections.abc import Callable

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods import Stratified, method_class
from fairseq_dsp.methods.stratified import RULE, counts_of, counts_of_layout, draw_stratified
from fairseq_dsp.plugin.objections import budget_out_of_range
from fairseq_dsp.units.floors import floors_of, meets, objection_to_floor, parse_floor, random_subset_above_floors
from fairseq_dsp.units.layout import Grid, Layout


def initial_layout(grid: Grid, config: PruningConfig, look_up: Callable[[str], Layout]) -> Layout:
    """The layout that the options give or draw, before anything is learned.

    Args:
        grid: the heads of the architecture.
        look_up: the layout of a text or of a checkpoint that an option names.

    Raises:
        Refusal: the layout does not fit the grid, or budget, floor and counts do not fit each other.
    """
    layout = Layout.full(grid)
    if config.head_layout is not None:
        layout = look_up(config.head_layout)
        if layout.grid != grid:
            raise Refusal(f"`--head-layout` must fit the model, whose heads are {_counts(grid)}, but is {layout}.")
    budget, floors = config.budget, floors_of(layout.surviving, parse_floor(config.cross_floor))
    if budget is not None and not 0 <= budget <= layout.count:
        raise Refusal(budget_out_of_range(budget, layout.count))
    if (objection := objection_to_floor(layout.surviving, parse_floor(config.cross_floor), budget)) is not None:
        raise Refusal(objection)
    if method_class(config).learned or budget is None or layout.count == budget:
        return layout
    if method_class(config) is Stratified:
        drawn = _stratified(grid, budget, config, look_up)
        if not meets(drawn.kept, floors):
            raise Refusal(
                f"`--head-counts` must leave the cross-attention heads of `--cross-floor {config.cross_floor}`, but is "
                f"{config.head_counts or RULE}, which keeps {drawn.by_type()['cross'][0]}."
            )
        return drawn
    return random_subset_above_floors(layout, budget, config.seed, floors)


def _stratified(grid: Grid, budget: int, config: PruningConfig, look_up: Callable[[str], Layout]) -> Layout:
    text = config.head_counts
    try:
        if text is not None and ("/" in text or os.path.exists(text)):
            counts = counts_of_layout(look_up(text))
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
