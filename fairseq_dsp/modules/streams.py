"""Where the residual stream can be seen that a sublayer adds to. Called by `scoring` and `surgery`."""

from __future__ import annotations

from torch import nn

from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import KIND_OF, STACK_OF
from fairseq_dsp.units.layout import Grid, Site


def streams(model: nn.Module, grid: Grid) -> dict[Site, nn.Module]:
    """The module of every site whose first input is the stream x, where the sublayer's output is x + F(x).

    With normalisation before a sublayer (pre-norm) that is the sublayer's norm. With normalisation after it (post-norm) it is what begins
    the sublayer: the attention, whose query is x, or the network's first map.

    Args:
        grid: of the model's sites.
    """
    found = {}
    for site in grid.sites:
        layer = getattr(model, STACK_OF[site.stack].side).layers[site.layer]
        heads = KIND_OF[site.stack] is HEADS
        norm = f"{STACK_OF[site.stack].module}_layer_norm" if heads else "final_layer_norm"
        first = getattr(layer, STACK_OF[site.stack].module) if heads else layer.fc1
        found[site] = getattr(layer, norm) if layer.normalize_before else first
    return found
