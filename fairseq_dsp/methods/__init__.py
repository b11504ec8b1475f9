"""How heads are chosen while training: one file a method, found here by the name that `--head-selection` takes.

A method sees a flat vector of importance and nothing of attention or fairseq, so that other units than heads can be
chosen the same way. Adding one: write its file, add its class to `_CLASSES`; the conformance tests pick it up.
"""

from __future__ import annotations

from fairseq_dsp.config import AUTO, PruningConfig, flag
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods.dsp import DifferentiableSubset, StraightThrough
from fairseq_dsp.methods.fixed import Fixed
from fairseq_dsp.methods.function_norm import FunctionNorm
from fairseq_dsp.methods.hard_concrete import HardConcrete
from fairseq_dsp.methods.lagrangian import Lagrangian
from fairseq_dsp.methods.method import Method
from fairseq_dsp.methods.pass_ import Pass
from fairseq_dsp.methods.simple import Simple
from fairseq_dsp.methods.site_threshold import SiteThreshold
from fairseq_dsp.methods.stratified import Stratified

_CLASSES: tuple[type[Method], ...] = (
    DifferentiableSubset,
    StraightThrough,
    HardConcrete,
    Simple,
    Lagrangian,
    Pass,
    FunctionNorm,
    SiteThreshold,
    Fixed,
    Stratified,
)
METHODS = {method.name: method for method in _CLASSES}


def method_class(config: PruningConfig) -> type[Method]:
    """The method that the options ask for; without any word of it, dsp, or the given layout.

    Raises:
        Refusal: `--head-selection` names no method.
    """
    name = config.head_selection
    if name is None:
        given_layout_only = config.head_layout is not None and config.unpruned_heads is None and config.budget is None
        name = Fixed.name if given_layout_only else DifferentiableSubset.name
    if name not in METHODS:
        raise Refusal(f"`--head-selection` must be one of {', '.join(METHODS)}, but is {name}.")
    return METHODS[name]


def objections_to_method(config: PruningConfig) -> list[str]:
    """Sentences on options that the chosen method does not take, or whose values do not fit it; empty if all do.

    Raises:
        Refusal: `--head-selection` names no method.
    """
    method = method_class(config)
    found = method.objections(config)
    for option in dict.fromkeys(option for each in _CLASSES for option in each.options):
        value = getattr(config, option)
        if option not in method.options and value not in (None, False):
            owners = ", ".join(each.name for each in _CLASSES if option in each.options)
            found.append(
                f"{flag(option)} belongs to {owners} and must not be given for `--head-selection {method.name}`, but is {value}."
            )
    if config.unpruned_heads == AUTO and not method.finds_number:
        owners = ", ".join(each.name for each in _CLASSES if each.finds_number)
        found.append(
            f"{flag('unpruned_heads')} must be a whole number for `--head-selection {method.name}`, but is {AUTO}, which only "
            f"{owners} can decide."
        )
    return found
