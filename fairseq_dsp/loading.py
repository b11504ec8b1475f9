"""Fits a state to a model before it is loaded: names of today, the model's heads, importance variables. Called by `model`.

A state of the same heads passes as it is. A dense one is shrunk to the model's layout, or given fresh importance variables
where training starts on it; what another method kept beside them is left behind. Anything else is refused with the option
that would make it fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.gates import STATE_PREFIX
from fairseq_dsp.surgery import KEPT_MASK, attentions, layout_of_state, shrink_state

if TYPE_CHECKING:
    from fairseq_dsp.model import DspTransformerModel


def fit_state(model: DspTransformerModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as the model's strict loading wants it.

    Args:
        state: may be changed in place.

    Raises:
        Refusal: it has other heads than the model, or lacks importance variables that it should bring.
    """
    model.upgrade_state_dict(state)
    state = _with_heads_of(model, state)
    return _with_gates_of(model, state)


def _with_heads_of(model: DspTransformerModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    sites = dict(attentions(model, model.layout.grid))
    theirs = layout_of_state(state, model.layout.grid)
    has_layout = any(hasattr(attention, KEPT_MASK) for attention in sites.values())
    if theirs is None and has_layout:
        gates = {name: value for name, value in state.items() if name.startswith(STATE_PREFIX)}
        dims = {site: attention.head_dim for site, attention in sites.items()}
        return {**shrink_state(state, model.layout, dims), **gates}
    if theirs is not None and (not has_layout or theirs != model.layout):
        ours = f"other heads ({model.layout})" if has_layout else "all heads"
        raise Refusal(f"the checkpoint keeps {theirs.count} heads and this model {ours}: add `--head-layout {theirs}`.")
    return state


def _with_gates_of(model: DspTransformerModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
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
