"""Padding and causal masks of an attention, as its kernels want them."""

from __future__ import annotations

import torch
from torch import Tensor


def additive_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores: [T, S] or [B, 1, T or 1, S]; None without masks.

    Args:
        attn_mask: [T, S], added; where it is boolean (or uint8, as of old) true hides a position, as in torch's and fairseq's
            own attention.
        key_padding_mask: [B, S], true at padding.
        q: queries, whose precision and device the mask has.
    """
    mask = attn_mask
    if mask is not None:
        if mask.dtype == torch.bool or mask.dtype == torch.uint8:
            hidden = mask.to(torch.bool)
            mask = torch.zeros(mask.size(), dtype=q.dtype, device=q.device).masked_fill(hidden, float("-inf"))
        mask = mask.to(q.dtype)
        if (
            mask.is_inference()
        ):  # fairseq keeps its causal mask, and a backward pass may not save one made in inference mode
            mask = mask.clone()
    if key_padding_mask is not None:
        padding = key_padding_mask.to(torch.bool)[:, None, None, :]
        if mask is None:
            mask = torch.zeros(padding.size(), dtype=q.dtype, device=q.device)
        mask = mask.masked_fill(padding, float("-inf"))
    return mask


def join_padding(
    past: Tensor | None, new: Tensor | None, batch: int, past_length: int, new_length: int
) -> Tensor | None:
    """Padding masks of cached and new positions, either of which may be absent, as one: [B, S]."""
    if past is None and new is None:
        return None
    if new is not None and new.size(1) == past_length + new_length:
        return new  # covers the cached positions already
    template = past if past is not None else new
    assert template is not None
    if past is None:
        past = torch.zeros([batch, past_length], dtype=template.dtype, device=template.device)
    if new is None:
        new = torch.zeros([batch, new_length], dtype=template.dtype, device=template.device)
    return torch.cat([past, new], dim=1)
