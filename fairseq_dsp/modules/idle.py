"""Gradients of zero for what a result does not depend on. Called by `attention` and `site_gates`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
