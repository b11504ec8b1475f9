"""Packs the kept heads of a sublayer into the number of heads that CTranslate2 wants for a whole stack.

In CTranslate2 all attention sublayers of a stack have the same number N of query heads, but each may have its own number
of key and value heads, which groups of N / n query heads share. Of h kept heads:

    n = the least divisor of N that is at least h (and at least 1)
    keys and values: the h heads, then n - h zeros
    queries: each of these n, N / n times over; the output projection reads the first of each group, and zeros of the others

which computes exactly the h heads. The size of a head may differ between sublayers too, so one without heads gets small zero
heads, and costs next to nothing. Copied queries cost nothing more than zeros would, and make the mean over the first
h · N / n heads' attention that of the h heads, which is what an alignment is taken from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fairseq_dsp.modules.attention import PrunableAttention

# Size of a head where none is kept. Not 1: kernels for whole numbers like multiples of 4.
EMPTY_SIZE = 8
NEURONS_AT_ONCE = 16

Affine = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class PackedAttention:
    """An attention sublayer of N query and n key and value heads of size d.

    Attributes:
        query: weight [N·d, C] and bias [N·d].
        key: weight [n·d, C of the keys] and bias.
        value: as the key.
        output: weight [C, N·d] and bias [C].
        size: d.
        groups: n.
        aligning: how many query heads, from the first, are real ones or copies of them.
    """

    query: Affine
    key: Affine
    value: Affine
    output: Affine
    size: int
    groups: int
    aligning: int


def group_count(kept: int, heads: int) -> int:
    """n, the least divisor of `heads` that is at least `kept` and at least 1."""
    return next(n for n in range(max(kept, 1), heads + 1) if heads % n == 0)


def pack(attention: PrunableAttention, heads: int) -> PackedAttention:
    """The sublayer with `heads` query heads.

    Args:
        attention: h heads, none included.
        heads: N, at least max(h, 1).
    """
    kept = attention.num_heads
    size = attention.head_dim if kept else min(EMPTY_SIZE, attention.head_dim)
    groups = group_count(kept, heads)
    copies = heads // groups
    out = attention.out_proj.weight.detach()
    output = out.new_zeros(out.size(0), heads, size)
    output[:, : kept * copies : copies] = out.view(out.size(0), kept, size)
    return PackedAttention(
        query=_heads(attention.q_proj, kept, size, copies, heads),
        key=_heads(attention.k_proj, kept, size, 1, groups),
        value=_heads(attention.v_proj, kept, size, 1, groups),
        output=(output.view(out.size(0), heads * size), _copy(attention.out_proj.bias)),
        size=size,
        groups=groups,
        aligning=kept * copies,
    )


def pad_neurons(layer: nn.Module) -> tuple[Affine, Affine]:
    """fc1 and fc2 of a layer with zero neurons up to a multiple of `NEURONS_AT_ONCE`, at least one such multiple.

    CTranslate2 takes a width of its own for every layer, but none of zero, and its kernels for whole numbers multiples of 16.
    """
    width = layer.fc1.out_features
    more = -width % NEURONS_AT_ONCE if width else NEURONS_AT_ONCE
    bias = layer.fc1.bias
    rows = nn.functional.pad(layer.fc1.weight.detach(), (0, 0, 0, more))
    columns = nn.functional.pad(layer.fc2.weight.detach(), (0, more))
    return (rows, None if bias is None else nn.functional.pad(bias.detach(), (0, more))), (columns, layer.fc2.bias)


def _heads(projection: nn.Module, kept: int, size: int, copies: int, heads: int) -> Affine:
    """Every head `copies` times over, then zeros: weight [heads·size, C] and bias [heads·size]."""
    rows = torch.arange(kept).repeat_interleave(copies)

    def spread(tensor: Tensor) -> Tensor:
        rest = tensor.shape[1:]
        wide = tensor.new_zeros(heads, size, *rest)
        wide[: len(rows)] = tensor.detach().reshape(kept, size, *rest)[rows]
        return wide.reshape(heads * size, *rest)

    return spread(projection.weight), None if projection.bias is None else spread(projection.bias)


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()
