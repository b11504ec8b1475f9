"""Fits a state to a model before it is loaded: names of today, the model's heads, importance variables. Called by `model`.

A state of the same heads passes as it is. A dense one is shrunk to the model's layout, or given fresh importance variables
where training starts on it; what another method kept beside them is left behind. Anything else is refused with the option
that would make it fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from fairseq_dsp.config import flag
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.spectral import folded, is_unfolded, unfolded
from fairseq_dsp.modules.gates import STATE_PREFIX, HeadGates
from fairseq_dsp.modules.surgery import layout_of_state, marks_name, shrink_state
from fairseq_dsp.units.groups import Neurons
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.neurons import NEURONS

# The sentence on weights of a training with spectral norms, for a model without.
UNFOLDED = (
    "the checkpoint has a spectral norm that was not folded into its weights: rewrite it first (`fairseq-dsp-prune`), or add the "
    "`--spectral-norm` that it was trained with."
)


@dataclass(frozen=True)
class Receiver:
    """What a state is fitted to: all that is asked of a model.

    Attributes:
        parameters: its parameters, shared ones by each of their names.
        layout: the units that it has, of all those of its architecture.
        neurons: those that the feed-forward networks of its architecture have.
        is_marked: whether its state says which units it has, as it does where they are those of a layout.
        gates: its importance variables; None where nothing is learned.
        adopts_dense_state: whether it may start from a state without importance variables.
    """

    parameters: Mapping[str, Tensor]
    layout: Layout
    neurons: Neurons
    is_marked: bool
    gates: HeadGates | None
    adopts_dense_state: bool


def fit_state(receiver: Receiver, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as the model's strict loading wants it.

    Args:
        state: upgraded to today's parameter names.

    Raises:
        Refusal: it is of another model, has other heads than the model, or lacks importance variables that it should bring.
    """
    _refuse_other_sizes(receiver, state)
    if is_unfolded(state) and not is_unfolded(receiver.parameters):
        raise Refusal(UNFOLDED)
    return unfolded(_with_gates_of(receiver, _with_units_of(receiver, state)), receiver.parameters)


def layout_to_cut(state: Mapping[str, Tensor], ours: Layout, is_marked: bool) -> Layout | None:
    """The layout of a state of which a model has a part; None where it has the state's own.

    The model may have some of the units of a kind that the state does not mark, and thus has all of: heads, neurons, or both.

    Args:
        ours: the model's units.
        is_marked: whether the model's own state has marks.

    Raises:
        Refusal: the state has other units.
    """
    theirs = layout_of_state(state, ours.grid)
    if theirs is None and not is_marked or theirs == ours and is_marked:
        return None
    theirs = theirs or Layout.full(ours.grid)
    if is_marked and theirs.grid == ours.grid:
        if all(theirs.marks(site) == ours.marks(site) for site in ours.grid.sites if marks_name(site) in state):
            return theirs
    other = f"other {ours.grid.noun} ({ours})" if is_marked else f"all {ours.grid.noun}"
    raise Refusal(
        f"the checkpoint keeps {theirs.count} {theirs.grid.noun} and this model {other}: add `--head-layout {theirs}`."
    )


def refuse_lack_of_importance() -> NoReturn:
    """Raises:
    Refusal: of a state that should bring importance variables.
    """
    raise Refusal("the checkpoint has no importance variables, though its options say that heads were chosen.")


def _with_units_of(receiver: Receiver, state: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = layout_to_cut(state, receiver.layout, receiver.is_marked)
    if theirs is None:
        return state
    gates = {name: value for name, value in state.items() if name.startswith(STATE_PREFIX)}
    return {**shrink_state(folded(state), receiver.layout, theirs), **gates}


def _with_gates_of(receiver: Receiver, state: dict[str, Tensor]) -> dict[str, Tensor]:
    gates = receiver.gates
    if gates is None:  # asked for explicitly: a layout without a budget
        return {name: value for name, value in state.items() if not name.startswith(STATE_PREFIX)}
    if not any(name.startswith(STATE_PREFIX) for name in state):
        if not receiver.adopts_dense_state:
            refuse_lack_of_importance()
        return {**state, **{STATE_PREFIX + name: value for name, value in gates.state_dict().items()}}
    if receiver.adopts_dense_state:  # of another method's checkpoint training takes importance and marks
        ours = {STATE_PREFIX + name: value for name, value in gates.state_dict().items()}
        own = {STATE_PREFIX + name: ours[STATE_PREFIX + name] for name in gates.own_state()}
        state = {name: value for name, value in state.items() if name in ours or not name.startswith(STATE_PREFIX)}
        return {**own, **state}
    return state


def names_of(parameters: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of every parameter in a state; those of shared embeddings have several."""
    shared: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        shared.setdefault(id(parameter), []).append(name)
    return list(shared.values())


def _refuse_other_sizes(receiver: Receiver, state: dict[str, Tensor]) -> None:
    """Compares what options and dictionaries decide, and weights that are one in the model and two in the state.

    Raises:
        Refusal: the state is of another model.
    """
    ours = _sizes(receiver.parameters)
    for stack in NEURONS.stacks:  # whatever is left of them
        if neurons := receiver.neurons[stack.name]:
            ours[flag(f"{stack.side}_ffn_embed_dim")] = neurons[0]
    reasons = [
        f"{what} must be {size}, as the checkpoint's weights are, but is {ours[what]}."
        for what, size in _sizes(state).items()
        if ours.get(what, size) != size
    ]
    for first, *others in names_of(receiver.parameters):
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
            cut = name.endswith("fc1") and f"{side}.layers.0.{NEURONS.marks}" in weights
            if weight is not None and weight.dim() == 2 and not cut:
                found[what] = weight.shape[axis]
    return found
