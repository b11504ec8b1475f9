"""The heads that a checkpoint keeps, read from its options and its state: no model is built. Called by `model`, `rewriting` and the benchmark."""

from __future__ import annotations

import os
from typing import Any

import torch

from fairseq_dsp.config import PruningConfig, architecture_of
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import family_of, read_checkpoint
from fairseq_dsp.methods import method_class
from fairseq_dsp.methods.decision import decided
from fairseq_dsp.modules.gates import STATE_PREFIX
from fairseq_dsp.options.fitting import layout_to_cut, refuse_lack_of_importance
from fairseq_dsp.options.initial_layout import budget_of, initial_layout
from fairseq_dsp.options.kinds import chosen_of
from fairseq_dsp.options.objections import budget_of_a_range, objections
from fairseq_dsp.options.records import TransformerOptions, completed
from fairseq_dsp.options.stored_options import fitting_its_own_options, refuse_unfit_options
from fairseq_dsp.units.floors import floors_of, parse_floor
from fairseq_dsp.units.layout import Layout, parse_layout


def resolve_layout(text: str, option: str = "--head-layout") -> Layout:
    """The layout that an option names: a text, or a checkpoint whose heads are meant.

    Raises:
        Refusal: neither.
    """
    if os.path.exists(text) or text.endswith(".pt"):
        try:
            return stored_layout(read_checkpoint(text))
        except Refusal as refusal:
            raise Refusal(*(f"`{option}`: {reason}" for reason in refusal.reasons)) from refusal
    return parse_layout(text, option)


def stored_layout(state: dict[str, Any]) -> Layout:
    """The heads that evaluation and rewriting keep of a checkpoint's model, in original ids.

    The importance variables decide, where it has some, and marks of fixed heads before them; else the marks of the heads that
    there are; else the layout in the options; else all heads are kept.

    Args:
        state: as `read_checkpoint` gives it.

    Raises:
        Refusal: options and state contradict each other.
    """
    weights = state["model"]
    refuse_unfit_options(state["cfg"].model, weights)
    with fitting_its_own_options():
        cfg = completed(state["cfg"].model)
        options = TransformerOptions.of(cfg)
        grid = options.grid
        assert grid is not None  # the options are complete now
        if family_of(architecture_of(cfg)) == "transformer":
            return Layout.full(grid)
        if reasons := objections(cfg):
            raise Refusal(*reasons)
        config = PruningConfig.from_model_cfg(cfg)
        method = method_class(config)
        layout = initial_layout(grid, options.neurons or {}, config, resolve_layout)
        layout_to_cut(weights, layout, config.head_layout is not None or not method.learned)
        if not method.learned:
            return layout
        importance = weights.get(f"{STATE_PREFIX}importance")
        if importance is None:
            refuse_lack_of_importance()
        chosen = chosen_of(config, layout)
        there = chosen.grid
        if importance.shape != (there.total,):
            raise ValueError(f"importance is of {importance.numel()} heads and not {there.total}")
        if config.budget_range is not None:
            raise Refusal(budget_of_a_range(*config.budget_range))
        budget = budget_of(config, there)
        fixed = weights.get(f"{STATE_PREFIX}fixed_mask", torch.full((there.total,), -1.0))
        floors = floors_of(there, parse_floor(config.cross_floor))
        way = method.from_config(config).of_sites([count for _, count in there.counts])
        own = {
            name: weights.get(STATE_PREFIX + name, value)
            for name, value in {**way.variables(), **way.records()}.items()
        }
        return chosen.keep(decided(way, importance, fixed, budget, floors, own))
