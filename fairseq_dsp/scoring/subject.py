"""What scorers score: the attentions of a finished model, sentences and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from fairseq_dsp.modules.attention import PrunableAttention
from fairseq_dsp.modules.streams import streams
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.units.layout import Grid, Site


class Words(NamedTuple):
    """What stands where in the sentences of one side of a batch.

    Attributes:
        there: [B, L] bool, false at padding.
        ends: [B, L] bool, true at symbols for the end of a sentence, with which a decoder's input begins.
    """

    there: Tensor
    ends: Tensor


@dataclass(frozen=True)
class Subject:
    """A finished model, without gates, as scorers see it.

    Attributes:
        grid: the H heads that the model has.
        attentions: the attention of every site.
        batches: what the loss takes; gone over once a scoring.
        loss: a batch's loss, a number a sentence: [B], with gradient.
        seed: for what is drawn.
        words: a batch's words, those of `encoder` and those of `decoder`, on the model's device.
        streams: the module of every site whose first input is the residual stream that the site's sublayer adds to.
    """

    grid: Grid
    attentions: dict[Site, PrunableAttention]
    batches: Iterable[Any]
    loss: Callable[[Any], Tensor]
    seed: int
    words: Callable[[Any], Mapping[str, Words]]
    streams: Mapping[Site, nn.Module]

    @classmethod
    def of(
        cls,
        model: Any,
        batches: Iterable[Any],
        loss: Callable[[Any], Tensor],
        words: Callable[[Any], Mapping[str, tuple[Tensor, Tensor]]],
        seed: int,
    ) -> Subject:
        """A model of ours without gates, in evaluation mode; the other arguments as above."""
        return cls(
            grid=model.layout.surviving,
            attentions=dict(attentions(model, model.layout.grid)),
            batches=batches,
            loss=loss,
            seed=seed,
            words=lambda batch: {side: Words(*found) for side, found in words(batch).items()},
            streams=streams(model, model.layout.grid),
        )
