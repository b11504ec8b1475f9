"""fairseq's attention and ours with the same parameters, and what they are asked with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from models import randomise
from torch import Tensor

from fairseq_dsp.modules.attention import PrunableAttention

EMBED, HEADS, BATCH, QUERIES, KEYS = 12, 3, 4, 5, 6


def pair(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[MultiheadAttention, PrunableAttention]:
    """fairseq's attention and ours, with the same random parameters."""
    stock = MultiheadAttention(EMBED, HEADS, **options).double().eval()
    randomise(stock)
    return stock.to(dtype), PrunableAttention(copy.deepcopy(stock)).to(dtype).eval()


def states(length: int = QUERIES, batch: int = BATCH, size: int = EMBED, seed: int = 1) -> Tensor:
    return torch.randn(length, batch, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padding(lengths: list[int], length: int) -> Tensor:
    return torch.arange(length) >= torch.tensor(lengths)[:, None]
