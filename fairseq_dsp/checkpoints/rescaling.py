"""Least squares after a cut: what is kept of a sublayer takes over, as far as it can, what the removed units said.

Called by `rewriting`. No shape changes: the new weights take the place of those of the map that reads what the units computed, the
output projection of an attention and fc2 of a feed-forward network.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.modules.surgery import places_within, reader_name
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.kind import unit_places
from fairseq_dsp.units.kinds import STACK_OF
from fairseq_dsp.units.layout import Layout, Site


@dataclass
class Moments:
    """First and second moments of what a sublayer's units computed, contexts or activations, over tokens without padding.

    Attributes:
        total: [n] float64, their sum; n = heads of the sublayer · d, or neurons.
        products: [n, n] float64, the sum of their outer products.
        tokens: how many there are.
    """

    total: Tensor
    products: Tensor
    tokens: int

    @property
    def mean(self) -> Tensor:
        """[n]."""
        return self.total / self.tokens

    @property
    def covariance(self) -> Tensor:
        """[n, n]."""
        return self.products / self.tokens - torch.outer(self.mean, self.mean)


@torch.no_grad()
def input_moments(
    model: DspTransformerModel, batches: Iterable[dict[str, Any]], sites: Iterable[Site]
) -> dict[Site, Moments]:
    """The moments of what is read at the sites.

    Args:
        model: without gates, in evaluation mode.
        batches: of fairseq.
        sites: of the model; each has units.
    """
    found: dict[Site, Moments] = {}
    padding: dict[str, Tensor] = {}

    def note(site: Site, reader: Any, inputs: tuple[Tensor]) -> None:
        context = inputs[0][~padding[STACK_OF[site.stack].side].T].double().cpu()  # [tokens, n]
        sums = Moments(context.sum(dim=0), context.T @ context, len(context))
        if site in found:
            found[site].total += sums.total
            found[site].products += sums.products
            found[site].tokens += sums.tokens
        else:
            found[site] = sums

    handles = [
        model.get_submodule(reader_name(site)).register_forward_pre_hook(functools.partial(note, site))
        for site in sites
    ]
    try:
        for batch in batches:
            inputs = batch["net_input"]
            padding["encoder"] = inputs["src_tokens"] == model.encoder.padding_idx
            padding["decoder"] = inputs["prev_output_tokens"] == model.decoder.padding_idx
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def rescaled_projection(weight: Tensor, bias: Tensor, moments: Moments, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The map that reads the kept columns and is nearest to the one that reads all, such as an output projection.

        min over W', b' of E || W c + b - W' c_S - b' ||^2:   W' = W C_:S (C_SS)^+,   b' = b + W m - W' m_S

    c are the contexts (activations), m their mean, C their covariance and S the kept columns (least squares after Kwon et al. 2022, who
    keep W and fit a factor a head; the pseudo-inverse serves contexts that never vary).

    Args:
        weight: W, [C, n].
        bias: b, [C].
        columns: S, indices of the kept ones; may be empty, and the sublayer then says what it said on average.

    Returns:
        W' [C, |S|] and b' [C], in the dtypes of W and b.
    """
    wide, mean, covariance = weight.double().cpu(), moments.mean, moments.covariance
    inverse = torch.linalg.pinv(covariance[columns][:, columns], hermitian=True)
    kept = wide @ covariance[:, columns] @ inverse
    offset = bias.double().cpu() + wide @ mean - kept @ mean[columns]
    return kept.to(weight), offset.to(bias)


def rescale_state(
    state: dict[str, Tensor],
    small: dict[str, Tensor],
    layout: Layout,
    current: Layout,
    moments: dict[Site, Moments],
) -> None:
    """Gives a cut state, in place, the reading maps that are nearest to those of the whole one.

    Args:
        state: of the model that the moments are of.
        small: what `surgery.shrink_state` made of it; only sites that lost a unit change.
        layout: units that `small` has.
        current: units that `state` has.
        moments: of these sites at least.
    """
    for site, found in moments.items():
        existing, places = current.units(site), places_within(site, layout, current)
        if len(places) == len(existing):
            continue
        weight, bias = (f"{reader_name(site)}.{kind}" for kind in ("weight", "bias"))
        columns = unit_places(places, state[weight].size(1) // len(existing))
        small[weight], small[bias] = rescaled_projection(state[weight], state[bias], found, columns)
