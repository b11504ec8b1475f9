"""Gates on groups of neurons of a feed-forward network, whose layer of fairseq calls its two linear maps itself.

    FFN(x) = sum_j  g_j · W2_j f(W1_j x + b1_j)  +  b2

j runs over the groups that exist, W1_j are a group's rows of fc1, W2_j its columns of fc2, f the activation and g_j the group's
gate. The gates scale the columns of fc2, as those of heads scale the columns of the output projection (see `attention`). Where
all gates are constant 0 or 1, fc1 computes the live rows alone, and fc2 takes the live columns.

Only a gated layer holds these maps. Without gates it has plain ones of whatever width is left; none left is the sublayer that
adds its bias. Shapes: T length, B batch, C embedding, F neurons that exist, n groups of g.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.attention import Gates
from fairseq_dsp.modules.idle import tie
from fairseq_dsp.units.kind import unit_places

_MAPS = ("fc1", "fc2")


def gate_neurons(layer: nn.Module, gates: Gates, groups: int) -> None:
    """Puts gated maps over the same parameters into a layer of fairseq, in place.

    Args:
        gates: what yields the gates [n].
        groups: n, at least 1.
    """
    ungate_neurons(layer)
    shared = _SharedGates(gates, layer.fc1.out_features // groups, groups)
    layer.fc1, layer.fc2 = _GatedRows(layer.fc1, shared), _GatedColumns(layer.fc2, shared)


def ungate_neurons(layer: nn.Module) -> None:
    """Undoes `gate_neurons`; leaves a layer without gates as it is."""
    for name in _MAPS:
        if isinstance(gated := getattr(layer, name), _Gated):
            setattr(layer, name, _with_parameters_of(nn.Linear.__new__(nn.Linear), gated))


class _SharedGates:
    """The gates of one feed-forward network, as both of its maps ask for them.

    Args:
        gates: see `gate_neurons`.
        group: g, neurons of a unit.
        groups: n, how many units there are.
    """

    def __init__(self, gates: Gates, group: int, groups: int) -> None:
        self.gates, self.group, self.groups = gates, group, groups
        self._live: tuple[int, ...] | None = None
        self._places = torch.empty(0)

    def live_places(self, like: Tensor, begins: bool) -> Tensor | slice | None:
        """The neurons that need to be computed, where gates are constant; all of them as a slice. None before.

        Args:
            like: on the device that wants to know.
            begins: the first of both maps asks, and a pass may begin with it.
        """
        live = self.gates.live_heads(searching=not begins)
        if live is None or len(live) == self.groups:
            return None if live is None else slice(None)
        if live != self._live or self._places.device != like.device:
            with torch.inference_mode(False):  # for an evaluation may make what training uses
                self._live, self._places = live, unit_places(live, self.group).to(like.device)
        return self._places


class _Gated(nn.Linear):
    """A linear map over another's parameters, with gates that it shares with the other map of its network."""

    def __init__(self, linear: nn.Linear, shared: _SharedGates) -> None:
        _with_parameters_of(self, linear)
        self.shared = shared

    def __prepare_scriptable__(self) -> _Gated:
        """What `torch.jit.script` asks first."""
        raise Refusal("`torch.jit.script` must have a model without gates: call `model.bake()` first.")


class _GatedRows(_Gated):
    """fc1: [T, B, C] -> [T, B, neurons that are computed]."""

    def forward(self, x: Tensor) -> Tensor:
        places = self.shared.live_places(self.weight, begins=True)
        if places is None or isinstance(places, slice):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.index_select(0, places)
        return F.linear(x, self.weight.index_select(0, places), bias)


class _GatedColumns(_Gated):
    """fc2: [T, B, neurons that are computed] -> [T, B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        places = self.shared.live_places(self.weight, begins=False)
        if places is None:
            return self._scaled(x)
        bias = self.bias
        if self.training and torch.is_grad_enabled() and bias is not None:
            bias = tie(bias, self.shared.gates())  # a gradient of zero for the gates, which have no say any more
        weight = self.weight if isinstance(places, slice) else self.weight.index_select(1, places)
        return F.linear(x, weight, bias)

    def _scaled(self, x: Tensor) -> Tensor:
        gates, weight = self.shared.gates(), self.weight
        columns = gates.repeat_interleave(self.shared.group)
        # Float32 gates make these float32 products in a half-precision model: the gradient of a gate sums very many.
        if gates.requires_grad and not weight.requires_grad:
            # A frozen weight needs no gradient, and to make one for the gates alone costs more than to scale what it reads.
            x = (x * columns).to(x.dtype)
        else:
            weight = (weight * columns).to(weight.dtype)
        return F.linear(x, weight, self.bias)


def _with_parameters_of(new: nn.Linear, linear: nn.Linear) -> nn.Linear:
    nn.Module.__init__(new)
    new.in_features, new.out_features = linear.in_features, linear.out_features
    new.weight, new.bias = linear.weight, linear.bias
    return new.train(linear.training)
