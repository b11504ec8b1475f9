"""`--recipe`: the settings of a choice, derived from the length of the training. Called by `plugin/settling` and `benchmark`.

    window S = 0.4 N          N updates in all; of `--pipelined`, where weights never train, 0.9 N
    importance learning rate  = reach / S, at most 0.5

The reach is how far Adam can carry an importance within the window, its learning rate times its updates. Gumbel noise has a
standard deviation of 1.28, which differences of importance must be able to outgrow, and a choice that is over after a few
updates is made by noise (design note 14).
"""

from __future__ import annotations

from typing import Any

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods import METHODS, method_class
from fairseq_dsp.methods.dsp import RELAXATIONS, DifferentiableSubset
from fairseq_dsp.methods.schedule import AUTO, CUBIC

PAPER = "paper"
RECIPES = (AUTO, PAPER)

_WINDOW, _WINDOW_OF_IMPORTANCE_ALONE = 0.4, 0.9
_LARGEST_IMPORTANCE_LR = 0.5  # no larger one was ever measured


def recipe_of(config: PruningConfig) -> str:
    """The recipe as given, or by default: `auto`, but `paper` where what is given belongs to the paper's relaxation.

    Temperatures that are given without `--relaxation` were found for the relaxation that there was without a word of it.
    """
    if config.recipe is not None:
        return config.recipe
    temperatures = config.initial_temperature is not None or config.final_temperature is not None
    papers = config.relaxation == next(iter(RELAXATIONS)) or config.relaxation is None and temperatures
    return PAPER if papers and method_class(config) is DifferentiableSubset else AUTO


def objections_to_recipe(config: PruningConfig) -> list[str]:
    """Sentences on a recipe that is none, or that other options contradict; empty if it fits.

    Raises:
        Refusal: `--head-selection` names no method.
    """
    if config.recipe is None:
        return []
    if config.recipe not in RECIPES:
        return [f"`--recipe` must be {' or '.join(RECIPES)}, but is {config.recipe}."]
    method = method_class(config)
    if not method.has_window:
        owners = ", ".join(name for name, each in METHODS.items() if each.has_window)
        return [
            f"`--recipe` belongs to {owners} and must not be given for `--head-selection {method.name}`, but is {config.recipe}."
        ]
    others = {AUTO: ("relaxation", next(iter(RELAXATIONS))), PAPER: ("relaxation", "projection")}
    contradicting = [others[config.recipe], *([("budget_schedule", CUBIC)] if config.recipe == PAPER else [])]
    return [
        f"{flag(name)} must not be {value} with `--recipe {config.recipe}`, which is another: leave one of both out."
        for name, value in contradicting
        if getattr(config, name) == value
    ]


def needs_length(config: PruningConfig) -> bool:
    """Whether the recipe must know how many updates there will be."""
    return recipe_of(config) == AUTO and method_class(config).has_window and config.cooldown_updates is None


def derive(config: PruningConfig, updates: int | None) -> dict[str, Any]:
    """Values of the options that are not given, by their name in `PruningConfig`; none of the paper's recipe.

    Args:
        config: what is given.
        updates: N; None where it is not known, and then what follows from it is left out.
    """
    method = method_class(config)
    if recipe_of(config) == PAPER or not method.has_window:
        return {}
    values: dict[str, Any] = dict(method.recipe)
    window = config.cooldown_updates
    if window is None and updates is not None:
        share = _WINDOW_OF_IMPORTANCE_ALONE if config.pipelined else _WINDOW
        window = values["cooldown_updates"] = max(round(share * updates), 1)
    if window is not None and method.reach is not None:
        values["importance_lr"] = min(float(f"{method.reach / max(window, 1):.3g}"), _LARGEST_IMPORTANCE_LR)
    return {name: value for name, value in values.items() if getattr(config, name) is None}
