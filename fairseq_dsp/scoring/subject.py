"""What scorers score: the sublayers of a finished model, sentences and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from fairseq_dsp.modules.streams import streams
from fairseq_dsp.modules.surgery import modules_at
from fairseq_dsp.units.kinds import KIND_OF
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
        grid: the n units that the model has and that are scored.
        modules: the module of every site: an attention, or the layer that a feed-forward network belongs to.
        batches: what the loss takes; gone over once a scoring.
        loss: a batch's loss, a number a sentence: [B], with gradient.
        seed: for what is drawn.
        words: a batch's words, those of `encoder` and those of `decoder`, on the model's device.
        sublayers: whether units are whole sublayers, one a site.
        streams: the module of every site whose first input is the residual stream that the site's sublayer adds to.
    """

    grid: Grid
    modules: Mapping[Site, nn.Module]
    batches: Iterable[Any]
    loss: Callable[[Any], Tensor]
    seed: int
    words: Callable[[Any], Mapping[str, Words]]
    streams: Mapping[Site, nn.Module]
    sublayers: bool = False

    @classmethod
    def of(
        cls,
        model: Any,
        batches: Iterable[Any],
        loss: Callable[[Any], Tensor],
        words: Callable[[Any], Mapping[str, tuple[Tensor, Tensor]]],
        seed: int,
        grid: Grid | None = None,
        sublayers: bool = False,
    ) -> Subject:
        """A model of ours without gates, in evaluation mode.

        Args:
            grid: units to score, of those that the model has; all of its layout if None. The other arguments are as above.
        """
        grid = grid or model.layout.surviving
        return cls(
            grid=grid,
            modules=modules_at(model, grid),
            batches=batches,
            loss=loss,
            seed=seed,
            words=lambda batch: {side: Words(*found) for side, found in words(batch).items()},
            streams=streams(model, grid),
            sublayers=sublayers,
        )

    def reader(self, site: Site) -> nn.Linear:
        """The linear map that reads what the site's units computed, each a part of its input: [..., units · width]."""
        return self.modules[site].get_submodule(KIND_OF[site.stack].readers[0])  # type: ignore[return-value]

    def width(self, site: Site) -> int:
        """Places of the reader's input a unit: d of a head, g of a group of neurons. The site must have units."""
        return self.reader(site).in_features // self.grid.size(site)
