"""What scorers score: the attentions of a finished model, sentences and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairseq_dsp.modules.attention import PrunableAttention
from fairseq_dsp.units.layout import Grid, Site


@dataclass(frozen=True)
class Subject:
    """A finished model, without gates, as scorers see it.

    Attributes:
        grid: the H heads that the model has.
        attentions: the attention of every site.
        batches: what the loss takes; gone over once a scoring.
        loss: a batch's loss, a number a sentence: [B], with gradient.
        seed: for what is drawn.
    """

    grid: Grid
    attentions: dict[Site, PrunableAttention]
    batches: Iterable[Any]
    loss: Callable[[Any], Tensor]
    seed: int
