"""Weights of a training with spectral norms (`--spectral-norm`), as its checkpoint has them, and the plain ones that they stand for.

    W = scale · V / (u^T V v)

V, u and v are torch's (`torch.nn.utils.parametrizations.spectral_norm`), the scale is `modules/spectral`'s. A state that is not folded has
these four in place of a map's weight, and whatever reads weights by their names would miss it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal

_PARTS = ("original", "0._u", "0._v", "1.scale")
_MARK = ".parametrizations.weight."
_APART = 2e-3  # from length 1, of singular vectors: more than a training leaves, in half precision too
_ITERATIONS = 30  # of a start on plain weights; how near u and v come to the largest stretch changes no weight


def is_unfolded(names: Iterable[str]) -> bool:
    """Whether a state with these names has a spectral norm that was not folded."""
    return bool(maps_of(names))


def maps_of(names: Iterable[str]) -> tuple[str, ...]:
    """The maps that have a spectral norm in a state with these names, in their order."""
    return tuple(dict.fromkeys(name.partition(_MARK)[0] for name in names if _MARK in name))


def plain_names(names: Iterable[str]) -> list[str]:
    """The names that parameters have once they are folded."""
    found = [name.replace(_MARK + _PARTS[0], ".weight") for name in names]
    return [name for name in found if _MARK not in name]


def refuse_means(state: Mapping[str, Tensor]) -> None:
    """Raises:
    Refusal: singular vectors have another length than 1, as means of several have; weights made with them would be of another size.
    """
    for name, value in state.items():
        place, _, part = name.partition(_MARK)
        if part in _PARTS[1:3] and isinstance(value, Tensor) and not abs(float(value.double().norm()) - 1) < _APART:
            raise Refusal(
                f"the checkpoint's spectral norm of {place} must have singular vectors of length 1, but has one of "
                f"{float(value.double().norm()):.3g}, as a mean of weights has that were not folded: `fairseq-dsp-average` folds them first."
            )


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with plain weights, in their precision; entries that have no spectral norm are the state's own.

    Raises:
        Refusal: parts of a spectral norm are missing, do not fit each other, or are means of several.
    """
    refuse_means(state)
    found = {name: value for name, value in state.items() if _MARK not in name}
    for name in maps_of(state):
        parts = [state.get(f"{name}{_MARK}{part}") for part in _PARTS]
        there = [part for part in parts if isinstance(part, Tensor)]
        shapes = [part.shape for part in there]
        if len(there) < len(_PARTS) or shapes[0] != (*shapes[1], *shapes[2]) or there[3].numel() != 1:
            raise Refusal(
                f"the checkpoint's spectral norm of {name} must have {', '.join(_PARTS)} that fit each other, but has not."
            )
        weight, u, v, scale = there
        found[f"{name}.weight"] = (weight / torch.vdot(u, torch.mv(weight, v)) * scale).to(weight.dtype)
    return found


def unfolded(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The state as a model with these names has it: plain weights where the model has spectral norms get these, and are what they were.

    Raises:
        Refusal: such a weight is zero, and has no largest stretch to divide by.
    """
    found = dict(state)
    for name in (name for name in names if name.endswith(_MARK + _PARTS[0])):
        place = name.partition(_MARK)[0]
        if (weight := found.pop(f"{place}.weight", None)) is None:
            continue
        if not weight.any():
            raise Refusal(f"`--spectral-norm` must be of maps that are not zero, but {place} of the checkpoint is.")
        u, v = _singular(weight)
        scale = torch.vdot(u, torch.mv(weight, v))
        found |= {f"{place}{_MARK}{part}": value for part, value in zip(_PARTS, (weight, u, v, scale), strict=True)}
    return found


def _singular(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right singular vectors of the largest singular value, nearly; drawn by nothing, so that processes agree."""
    v = weight[weight.norm(dim=1).argmax()]
    for _ in range(_ITERATIONS):
        u = torch.nn.functional.normalize(torch.mv(weight, v), dim=0)
        v = torch.nn.functional.normalize(torch.mv(weight.T, u), dim=0)
    return u, v
