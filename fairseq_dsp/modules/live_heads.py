"""`LiveHeads`: computes only the heads of a gated attention whose gates are 1, when all gates are constants.

That is so in evaluation, and in training once the cooldown is over: a masked model then costs what the rewritten one
costs, while its parameters and the optimizer's state keep their shapes. The live heads are a small `PrunableAttention`
over selections of the gated one's weights, so there is one way of attending.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_dsp.modules.idle import tie
from fairseq_dsp.units.layout import head_rows

if TYPE_CHECKING:
    from fairseq_dsp.modules.attention import PrunableAttention

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Selection:
    """A linear map over some rows (or columns) of another's weight: what a small attention has for a projection.

    It holds tensors only while the small attention computes. Kept longer, they would outlive a change of the weights, and a copy
    of the model would be made in the middle of a graph.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)


Selected = list[tuple[Tensor, Tensor | None]]  # weight and bias of the four projections


class LiveHeads:
    """The small attention within a gated one.

    Args:
        attention: the gated attention.
        heads: those of its heads that are live.
    """

    def __init__(self, attention: PrunableAttention, heads: Sequence[int]) -> None:
        self.heads = tuple(heads)
        with torch.inference_mode(False):  # for an evaluation may make what training uses
            self.rows = head_rows(heads, attention.head_dim)
        projections = {name: Selection() for name in _PROJECTIONS}
        names = ("embed_dim", "head_dim", "self_attention", "encoder_decoder_attention", "dropout_module")
        same = {name: getattr(attention, name) for name in names}
        self.small = type(attention)(SimpleNamespace(num_heads=len(heads), **same, **projections))
        self.small.cache_key = attention.cache_key  # one cache, which the gated attention reorders

    def attend(
        self,
        attention: PrunableAttention,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None,
        search: dict[str, Any] | None,
        *rest: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """What the gated attention returns for the arguments of its forward pass."""
        _, selected = (search or {}).get(_name(attention), (None, None))
        if selected is None:
            selected = self._select(attention)
            if search is not None:  # selected once a search, and gone with it
                search[_name(attention)] = self.heads, selected
        projections = [getattr(self.small, name) for name in _PROJECTIONS]
        for projection, (weight, bias) in zip(projections, selected, strict=True):
            projection.weight, projection.bias = weight, bias
        if torch.is_grad_enabled():
            projections[-1].bias = self._tie(attention)
        try:
            return self.small(query, key, value, key_padding_mask, search, *rest)
        finally:
            for projection in projections:
                projection.weight = projection.bias = None

    def _select(self, attention: PrunableAttention) -> Selected:
        if self.rows.device != attention.out_proj.weight.device:
            with torch.inference_mode(False):
                self.rows = self.rows.to(attention.out_proj.weight.device)
        selected: Selected = []
        for name in _PROJECTIONS[:-1]:
            full = getattr(attention, name)
            bias = None if full.bias is None else full.bias.index_select(0, self.rows)
            selected.append((full.weight.index_select(0, self.rows), bias))
        selected.append((attention.out_proj.weight.index_select(1, self.rows), attention.out_proj.bias))
        return selected

    def _tie(self, attention: PrunableAttention) -> Tensor | None:
        """The output bias, through which everything that is not computed gets a zero gradient, as a gate of 0 would give it."""
        idle = [attention.gates()] if attention.training else []  # constants elsewhere
        if not self.heads:
            idle += [p for name, p in attention.named_parameters() if name != "out_proj.bias"]
        bias = attention.out_proj.bias
        return bias if bias is None or not idle else tie(bias, *idle)


def live_part(attention: PrunableAttention, search: dict[str, Any] | None) -> LiveHeads | None:
    """What computes a gated attention's live heads, which stay what they are throughout a search; None where all are computed."""
    heads, _ = (search or {}).get(_name(attention), (None, None))
    if heads is None:
        heads = attention.gates.live_heads(searching=search is not None)
    if heads is None:
        return None
    if attention.live is None or attention.live.heads != heads:
        attention.live = LiveHeads(attention, heads)
    return attention.live


def _name(attention: PrunableAttention) -> str:
    return f"{attention.cache_key}.live"
