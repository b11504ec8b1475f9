"""What scorers score: the sublayers of a finished model, sentences and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fairseq_dsp.units.kinds import KIND_OF
from fairseq_dsp.units.layout import Grid, Site


@dataclass(frozen=True)
class Subject:
    """A finished model, without gates, as scorers see it.

    Attributes:
        grid: the n units that the model has and that are scored.
        modules: the module of every site: an attention, or the layer that a feed-forward network belongs to.
        batches: what the loss takes; gone over once a scoring.
        loss: a batch's loss, a number a sentence: [B], with gradient.
        seed: for what is drawn.
    """

    grid: Grid
    modules: Mapping[Site, nn.Module]
    batches: Iterable[Any]
    loss: Callable[[Any], Tensor]
    seed: int

    def reader(self, site: Site) -> nn.Linear:
        """The linear map that reads what the site's units computed, each a part of its input: [..., units · width]."""
        return self.modules[site].get_submodule(KIND_OF[site.stack].readers[0])  # type: ignore[return-value]

    def width(self, site: Site) -> int:
        """Places of the reader's input a unit: d of a head, g of a group of neurons. The site must have units."""
        return self.reader(site).in_features // self.grid.size(site)
