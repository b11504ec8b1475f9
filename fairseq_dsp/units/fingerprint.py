"""What tells a model's weights from others: a digest for each precision that they can be kept in.

    digest_p = BLAKE2b-128 of name, shape and bytes of every parameter, rounded to precision p, in the order of their names

Of weights in float32 there are three, so that a copy in half precision, and what is scored on such a copy, is known again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}  # the finest first
SIZE = 16  # bytes


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Digests of weights, a hexadecimal number by the name of the precision.

    Args:
        weights: parameters by name, in any order and precision; importance variables are none.

    Returns:
        one where all are in one half precision, which others can only be rounded to once more; otherwise all three.
    """
    named = sorted(weights, key=lambda item: item[0])
    kinds = {weight.dtype for _, weight in named}
    half = next((name for name, kind in PRECISIONS.items() if kind != torch.float32 and kinds == {kind}), None)
    return {name: _digest(named, PRECISIONS[name]) for name in ([half] if half else PRECISIONS)}


def agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two fingerprints are of the same weights, as far as the finest precision shows that both have."""
    shared = [name for name in PRECISIONS if name in one and name in other]
    return bool(shared) and one[shared[0]] == other[shared[0]]


def _digest(weights: list[tuple[str, Tensor]], kind: torch.dtype) -> str:
    digest = hashlib.blake2b(digest_size=SIZE)
    for name, weight in weights:
        digest.update(f"{name} {tuple(weight.shape)};".encode())
        digest.update(weight.detach().to("cpu", kind).flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]  # its stubs know no arrays
    return digest.hexdigest()
