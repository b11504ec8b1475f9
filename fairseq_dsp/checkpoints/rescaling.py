"""Least squares after a cut: what is kept of a sublayer takes over, as far as it can, what the removed units said.

Called by `rewriting`. No shape changes: the new weights take the place of those of the map that reads what the units computed, the
output projection of an attention and fc2 of a feed-forward network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.modules.surgery import places_within, reader_name, shrink_model
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.floors import floors_of, top_k_above_floors
from fairseq_dsp.units.groups import part_of, with_part
from fairseq_dsp.units.heads import HEADS
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


def cut_and_rescale(model: DspTransformerModel, layout: Layout, moments: dict[Site, Moments]) -> None:
    """Cuts a model without gates to a layout within its own, in place, and fits what stays to what all said.

    Args:
        moments: of its contexts.
    """
    current, before = model.layout, {name: value.clone() for name, value in model.state_dict().items()}
    shrink_model(model, layout, current=current)
    model.layout = layout
    small = dict(model.state_dict())
    rescale_state(before, small, layout, current, moments)
    model.load_state_dict(small)


def cut_in_stages(
    model: DspTransformerModel,
    batches: Sequence[dict[str, Any]],
    k: int,
    stages: int,
    score: Callable[[DspTransformerModel], Tensor],
    floor: int | str | None,
) -> None:
    """Cuts a model without gates to k heads, in place, in stages: scores of what is left, a cut, a fit, and again.

    Stage i of n ends with H (k/H)^(i/n) heads, rounded: each leaves the same share of them (Kwon et al. 2022 score and cut once).

    Args:
        batches: of fairseq, for the fits.
        score: of the heads that the model has at the time, [H], larger matters more.
        floor: cross-attention heads that stay in every stage; see `floors`.
    """
    total = part_of(model.layout, [HEADS.name]).count
    for stage in range(stages if total else 0):
        goal = k if stage == stages - 1 else round(total * (k / total) ** ((stage + 1) / stages))
        heads = part_of(model.layout, [HEADS.name])
        floors = floors_of(heads.surviving, floor) if k else ()
        chosen = top_k_above_floors(score(model).detach().double().cpu(), goal, floors)
        layout = with_part(model.layout, heads.narrow(chosen))
        lost = [site for site in layout.grid.sites if layout.marks(site) != model.layout.marks(site)]
        cut_and_rescale(model, layout, input_moments(model.eval(), batches, lost))
