"""Gates on groups of neurons of a feed-forward network, whose layer of fairseq calls its two linear maps itself.

    FFN(x) = sum_j  g_j · W2_j f(W1_j x + b1_j)  +  b2

j runs over the groups that exist, W1_j are a group's rows of fc1, W2_j its columns of fc2, f the activation and g_j the group's
gate. The gates scale the columns of fc2, as those of heads scale the columns of the output projection (see `attention`). Where
all gates are constant 0 or 1, fc1 computes the live rows alone, and fc2 takes the live columns.

Only a gated layer holds these maps. Without gates it has plain ones of whatever width is left; none left is the sublayer that
adds its bias. Shapes: T length, B batch, C embedding, F neurons that exist, n groups of g.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.site_gates import Gates
from fairseq_dsp.modules.slicing import keep_units
from fairseq_dsp.units.kind import Slice
from fairseq_dsp.units.neurons import NEURONS

_MAPS = ("fc1", "fc2")


def gate_neurons(layer: nn.Module, gates: Gates, groups: int) -> None:
    """Puts gated maps over the same parameters into a layer of fairseq, in place.

    Args:
        gates: what yields the gates [n].
        groups: n, at least 1.
    """
    ungate_neurons(layer)
    group = layer.fc1.out_features // groups
    layer.fc1, layer.fc2 = _GatedRows(layer.fc1, gates, "fc1", group), _GatedColumns(layer.fc2, gates, "fc2", group)


def ungate_neurons(layer: nn.Module) -> None:
    """Undoes `gate_neurons`; leaves a layer without gates as it is."""
    for name in _MAPS:
        if isinstance(gated := getattr(layer, name), _Gated):
            setattr(layer, name, _with_parameters_of(nn.Linear.__new__(nn.Linear), gated))


def keep_neurons(layer: nn.Module, group: int, groups: Sequence[int]) -> None:
    """Removes all other groups from a layer of fairseq without gates, for good.

    Args:
        group: g, neurons of a group.
        groups: which of the groups that exist to keep, in increasing order; may be empty.
    """
    keep_units(layer, NEURONS.slices(group), groups)
    if not groups:
        layer.fc2 = _with_parameters_of(_BiasAlone.__new__(_BiasAlone), layer.fc2)


class _BiasAlone(nn.Linear):
    """fc2 where no neuron is left: [T, B, 0] -> [T, B, C], the bias.

    A class of its own is all that it is for: torch quantises maps of the class `nn.Linear`, and its int8 map of no inputs
    returns memory that nobody wrote.
    """


class _Gated(nn.Linear):
    """A linear map over another's parameters, with gates that it shares with the other map of its network.

    Args:
        linear: whose parameters these are.
        gates: see `gate_neurons`.
        name: of the map in its layer.
        group: g, neurons of a unit.
    """

    def __init__(self, linear: nn.Linear, gates: Gates, name: str, group: int) -> None:
        _with_parameters_of(self, linear)
        self.gates, self.group = gates, group
        owned = [slice_ for slice_ in NEURONS.slices(group) if slice_.name.startswith(f"{name}.")]
        self.slices = [Slice(of.name.removeprefix(f"{name}."), of.dim, of.width) for of in owned]

    def __prepare_scriptable__(self) -> _Gated:
        """What `torch.jit.script` asks first."""
        raise Refusal("`torch.jit.script` must have a model without gates: call `model.bake()` first.")


class _GatedRows(_Gated):
    """fc1: [T, B, C] -> [T, B, neurons that are computed]."""

    def forward(self, x: Tensor) -> Tensor:
        live = self.gates.live(self, None)
        return super().forward(x) if live is None else F.linear(x, live["weight"], live.get("bias"))


class _GatedColumns(_Gated):
    """fc2: [T, B, neurons that are computed] -> [T, B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        live = self.gates.live(self, None, begins=False)
        return self._scaled(x) if live is None else F.linear(x, live["weight"], live.get("bias"))

    def _scaled(self, x: Tensor) -> Tensor:
        gates, weight = self.gates(), self.weight
        self.gates.see(x, weight)
        columns = gates.repeat_interleave(self.group)
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
