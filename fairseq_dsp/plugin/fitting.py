"""Fits a state to a model before it is loaded: names of today, the model's heads, importance variables. Called by `model`.

A state of the same heads passes as it is. A dense one is shrunk to the model's layout, or given fresh importance variables
where training starts on it; what another method kept beside them is left behind. Anything else is refused with the option
that would make it fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from fairseq_dsp.config import flag
from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.gates import STATE_PREFIX, HeadGates
from fairseq_dsp.modules.surgery import KEPT_MASK, attentions, layout_of_state, shrink_state
from fairseq_dsp.units.layout import Layout


class Fitted(Protocol):
    """What is asked of the model, beside that it is a fairseq model.

    Attributes:
        layout: the heads that it has, of all those of its architecture.
        head_gates: its importance variables; None where nothing is learned.
        adopts_dense_state: whether it may start from a state without importance variables.
    """

    layout: Layout
    head_gates: HeadGates | None
    adopts_dense_state: bool


def fit_state(model: Fitted, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as the model's strict loading wants it.

    Args:
        state: may be changed in place.

    Raises:
        Refusal: it is of another model, has other heads than the model, or lacks importance variables that it should bring.
    """
    model.upgrade_state_dict(state)
    _refuse_other_sizes(model, state)
    state = _with_heads_of(model, state)
    return _with_gates_of(model, state)


def _with_heads_of(model: Fitted, state: dict[str, Tensor]) -> dict[str, Tensor]:
    sites = dict(attentions(model, model.layout.grid))
    theirs = layout_of_state(state, model.layout.grid)
    has_layout = any(hasattr(attention, KEPT_MASK) for attention in sites.values())
    if theirs is None and has_layout:
        gates = {name: value for name, value in state.items() if name.startswith(STATE_PREFIX)}
        return {**shrink_state(state, model.layout), **gates}
    if theirs is not None and (not has_layout or theirs != model.layout):
        ours = f"other heads ({model.layout})" if has_layout else "all heads"
        raise Refusal(f"the checkpoint keeps {theirs.count} heads and this model {ours}: add `--head-layout {theirs}`.")
    return state


def _with_gates_of(model: Fitted, state: dict[str, Tensor]) -> dict[str, Tensor]:
    gates = model.head_gates
    if gates is None:  # asked for explicitly: a layout without a budget
        return {name: value for name, value in state.items() if not name.startswith(STATE_PREFIX)}
    if not any(name.startswith(STATE_PREFIX) for name in state):
        if not model.adopts_dense_state:
            raise Refusal("the checkpoint has no importance variables, though its options say that heads were chosen.")
        return {**state, **{STATE_PREFIX + name: value for name, value in gates.state_dict().items()}}
    if model.adopts_dense_state:  # of another method's checkpoint training takes importance and marks
        ours = {STATE_PREFIX + name: value for name, value in gates.state_dict().items()}
        own = {STATE_PREFIX + name: ours[STATE_PREFIX + name] for name in gates.own_state()}
        state = {name: value for name, value in state.items() if name in ours or not name.startswith(STATE_PREFIX)}
        return {**own, **state}
    return state


def parameter_names(model: nn.Module) -> list[list[str]]:
    """The names of every parameter in a state; those of shared embeddings have several."""
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    return list(shared.values())


def _refuse_other_sizes(model: Fitted, state: dict[str, Tensor]) -> None:
    """Compares what options and dictionaries decide, and weights that are one in the model and two in the state.

    Raises:
        Refusal: the state is of another model.
    """
    ours = _sizes(dict(model.named_parameters(remove_duplicate=False)))
    reasons = [
        f"{what} must be {size}, as the checkpoint's weights are, but is {ours[what]}."
        for what, size in _sizes(state).items()
        if ours.get(what, size) != size
    ]
    for first, *others in parameter_names(model):
        for name in others:
            one, other = state.get(first), state.get(name)
            if one is not None and other is not None and one.shape == other.shape and not torch.equal(one, other):
                reasons.append(
                    f"{first} and {name} must be the same to be shared (`--share-decoder-input-output-embed`, "
                    "`--share-all-embeddings`), but differ in the checkpoint."
                )
    if reasons:
        raise Refusal(*reasons)


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of a model by the option that gives them, or by the dictionary, as far as its weights tell."""
    found = {}
    for side, words in (("encoder", "source"), ("decoder", "target")):
        layers = {name.split(".")[2] for name in weights if name.startswith(f"{side}.layers.")}
        found[flag(f"{side}_layers")] = len(layers)
        for name, what, axis in (
            ("embed_tokens", flag(f"{side}_embed_dim"), 1),
            ("embed_tokens", f"the number of words of the {words} dictionary", 0),
            ("layers.0.fc1", flag(f"{side}_ffn_embed_dim"), 0),
        ):
            weight = weights.get(f"{side}.{name}.weight")
            if weight is not None and weight.dim() == 2:
                found[what] = weight.shape[axis]
    return found
