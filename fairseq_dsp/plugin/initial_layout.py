"""The heads that a model is built with: all of them, those given, or those drawn. Called by `model`."""

from __future__ import annotations

import os

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods import Stratified, method_class
from fairseq_dsp.methods.stratified import counts_of, counts_of_layout, draw_stratified
from fairseq_dsp.plugin.objections import budget_out_of_range
from fairseq_dsp.units.floors import floors_of, objection_to_floor, parse_floor, random_subset_above_floors
from fairseq_dsp.units.layout import HeadGrid, HeadLayout


def initial_layout(grid: HeadGrid, config: PruningConfig) -> HeadLayout:
    """The layout that the options give or draw, before anything is learned.

    Args:
        grid: the heads of the architecture.

    Raises:
        Refusal: the layout does not fit the grid, or budget, floor and counts do not fit each other.
    """
    layout = HeadLayout.full(grid)
    if config.head_layout is not None:
        layout = _looked_up(config.head_layout)
        if layout.grid != grid:
            raise Refusal(f"`--head-layout` must fit the model, whose heads are {_counts(grid)}, but is {layout}.")
    budget, floor = config.budget, parse_floor(config.cross_floor)
    if budget is not None and not 0 <= budget <= layout.count:
        raise Refusal(budget_out_of_range(budget, layout.count))
    if method_class(config).learned or budget is None or layout.count == budget:
        return layout
    if method_class(config) is Stratified:
        return _stratified(grid, budget, config)
    return random_subset_above_floors(layout, budget, config.seed, floors_of(layout.surviving, floor))


def objections_to_floor(layout: HeadLayout, config: PruningConfig) -> list[str]:
    """Sentences on a `--cross-floor` that the model's heads or the budget cannot meet."""
    found = objection_to_floor(layout.surviving, parse_floor(config.cross_floor), config.budget)
    return [] if found is None else [found]


def _stratified(grid: HeadGrid, budget: int, config: PruningConfig) -> HeadLayout:
    text = config.head_counts
    try:
        if text is not None and ("/" in text or os.path.exists(text)):
            counts = counts_of_layout(_looked_up(text))
            if sum(counts.values()) != budget:
                raise ValueError(f"must add up to the budget of {budget}, but the layout keeps {sum(counts.values())}")
        else:
            counts = counts_of(grid, budget, text)
        return draw_stratified(grid, counts, config.seed)
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal(f"{flag('head_counts')} {error}.") from error


def _looked_up(text: str) -> HeadLayout:
    from fairseq_dsp.checkpoints.building import resolve_layout  # which needs the model that this is called for

    return resolve_layout(text)


def _counts(grid: HeadGrid) -> str:
    return f"enc {grid.enc}, dec {grid.dec}, cross {grid.cross}"
