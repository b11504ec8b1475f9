"""The maths of how much units add to the residual stream. Called by `modules/unit_norms` and the scorer `function-norm`."""

from __future__ import annotations

import torch
from torch import Tensor

# What `--norm` takes; the first is the default.
ABSOLUTE, RELATIVE = NORMS = ("absolute", "relative")


def objection_to_norm(norm: str | None) -> str | None:
    """The sentence on a `--norm` that is none; None where it is one, or not given."""
    return None if norm in (None, *NORMS) else f"`--norm` must be {' or '.join(NORMS)}, but is {norm}."


def norms_of_units(computed: Tensor, grams: Tensor) -> Tensor:
    """|O_u c_u| of every unit u: sqrt(c_u^T (O_u^T O_u) c_u), without a vector of C numbers for a unit: [..., n].

    Where a unit adds nothing, whatever it computed, the gradient is 0: of all slopes that a norm has there the one that asks for no
    change.

    Args:
        computed: c, [..., n, d].
        grams: O_u^T O_u, [n, d, d].
    """
    return _root((torch.einsum("...ui,uij->...uj", computed, grams) * computed).sum(dim=-1))


def norms_of_functions(computed: Tensor, weight: Tensor, units: int) -> Tensor:
    """`norms_of_units` by the map itself; of units that are wider than what they add, by what they add: [..., n].

    Args:
        computed: [..., n·d].
        weight: [C, n·d].
    """
    of_units = computed.unflatten(-1, (units, -1))
    if of_units.size(-1) > weight.size(0):
        added = torch.einsum("...ui,cui->...uc", of_units, weight.unflatten(1, (units, -1)))
        return _root(added.square().sum(dim=-1))
    return norms_of_units(of_units, grams_of(weight, units))


def grams_of(weight: Tensor, units: int) -> Tensor:
    """O_u^T O_u of every unit's columns O_u of the map [C, n·d] that reads what it computed: [n, d, d]."""
    columns = weight.unflatten(1, (units, -1)).movedim(1, 0)  # [n, C, d]
    return columns.mT @ columns


def _root(squares: Tensor) -> Tensor:
    above = squares > 0
    return torch.where(above, squares, 1.0).sqrt() * above


def length_of_stream(stream: Tensor) -> Tensor:
    """|x| / sqrt(C) of every position's x: [T, B, C] -> [T, B]."""
    return stream.norm(dim=2) / stream.size(2) ** 0.5
