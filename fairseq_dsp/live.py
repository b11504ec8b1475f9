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

from fairseq_dsp.heads import head_rows

if TYPE_CHECKING:
    from fairseq_dsp.attention import PrunableAttention


class Selection:
    """A linear map over some rows (or columns) of another's weight: what a small attention has for a projection."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class LiveHeads:
    """The small attention within a gated one.

    Args:
        attention: the gated attention.
        heads: those of its heads that are live.
    """

    def __init__(self, attention: PrunableAttention, heads: Sequence[int]) -> None:
        self.heads = tuple(heads)
        self.rows = head_rows(heads, attention.head_dim)
        self.selected_from: tuple[Any, ...] | None = None
        projections = {name: Selection() for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        names = ("embed_dim", "head_dim", "self_attention", "encoder_decoder_attention", "dropout_module")
        same = {name: getattr(attention, name) for name in names}
        self.small = type(attention)(SimpleNamespace(num_heads=len(heads), **same, **projections))
        self.small.cache_key = attention.cache_key  # one cache, which the gated attention reorders

    def attend(self, attention: PrunableAttention, *args: Any) -> tuple[Tensor, Tensor | None]:
        """What the gated attention returns for the arguments of its forward pass."""
        small = self.small
        differentiable = torch.is_grad_enabled()
        weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight, attention.out_proj.weight]
        # Evaluation selects once for as long as the weights stay what they are. The version counts changes in place.
        source = tuple((weight.data_ptr(), weight._version, weight.dtype) for weight in weights)
        if differentiable or attention.training or source != self.selected_from:
            self._select(attention)
            self.selected_from = None if differentiable or attention.training else source
        if differentiable:
            small.out_proj.bias = self._tie(attention)
        return small(*args)

    def forget(self) -> None:
        """Drops the selections of evaluation: the weights are about to change."""
        self.selected_from = None

    def _select(self, attention: PrunableAttention) -> None:
        if self.rows.device != attention.out_proj.weight.device:
            self.rows = self.rows.to(attention.out_proj.weight.device)
        for name in ("q_proj", "k_proj", "v_proj"):
            full, selection = getattr(attention, name), getattr(self.small, name)
            selection.weight = full.weight.index_select(0, self.rows)
            selection.bias = None if full.bias is None else full.bias.index_select(0, self.rows)
        self.small.out_proj.weight = attention.out_proj.weight.index_select(1, self.rows)
        self.small.out_proj.bias = attention.out_proj.bias

    def _tie(self, attention: PrunableAttention) -> Tensor | None:
        """The output bias, through which everything that is not computed gets a zero gradient, as a gate of 0 would give it."""
        idle = [attention.gates()]
        if not self.heads:
            idle += [p for name, p in attention.named_parameters() if name != "out_proj.bias"]
        bias = attention.out_proj.bias
        return bias if bias is None else tie(bias, *idle)


def tie(used: Tensor, *idle: Tensor) -> Tensor:
    """`used`, through which `idle` tensors that the result does not depend on get gradients of zero.

    DistributedDataParallel waits for the gradient of every parameter, and momentum should not depend on what is skipped.
    """
    return _Tied.apply(used, *idle)


class _Tied(torch.autograd.Function):
    """See `tie`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *idle: Tensor) -> Tensor:
        ctx.save_for_backward(*idle)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *(torch.zeros_like(tensor) if tensor.requires_grad else None for tensor in ctx.saved_tensors)
