"""Least squares after a cut: what is kept of a sublayer takes over, as far as it can, what the removed heads said.

Called by `rewriting`. No shape changes: the new weights take the place of the output projection's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.modules.surgery import attentions, places_within, shrink_model, site_name
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.floors import floors_of, top_k_above_floors
from fairseq_dsp.units.kind import unit_places
from fairseq_dsp.units.layout import Layout, Site


@dataclass
class Moments:
    """First and second moments of a sublayer's contexts, what its output projection reads, over tokens without padding.

    Attributes:
        total: [n] float64, their sum; n = heads of the sublayer · d.
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
def context_moments(model: DspTransformerModel, batches: Iterable[dict[str, Any]]) -> dict[Site, Moments]:
    """The moments of every site that has heads.

    Args:
        model: without gates, in evaluation mode.
        batches: of fairseq.
    """
    found: dict[Site, Moments] = {}
    padding: dict[str, Tensor] = {}

    def note(site: Site, projection: Any, inputs: tuple[Tensor]) -> None:
        context = inputs[0][~padding["enc" if site.stack == "enc" else "dec"].T].double().cpu()  # [tokens, n]
        sums = Moments(context.sum(dim=0), context.T @ context, len(context))
        if site in found:
            found[site].total += sums.total
            found[site].products += sums.products
            found[site].tokens += sums.tokens
        else:
            found[site] = sums

    sites = [(site, attention) for site, attention in attentions(model, model.layout.grid) if attention.num_heads]
    handles = [attention.out_proj.register_forward_pre_hook(functools.partial(note, site)) for site, attention in sites]
    try:
        for batch in batches:
            inputs = batch["net_input"]
            padding["enc"] = inputs["src_tokens"] == model.encoder.padding_idx
            padding["dec"] = inputs["prev_output_tokens"] == model.decoder.padding_idx
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def rescaled_projection(weight: Tensor, bias: Tensor, moments: Moments, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The output projection of the kept columns that is nearest to the whole one.

        min over W', b' of E || W c + b - W' c_S - b' ||^2:   W' = W C_:S (C_SS)^+,   b' = b + W m - W' m_S

    c are the contexts, m their mean, C their covariance and S the kept columns (least squares after Kwon et al. 2022, who
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
    """Gives a cut state, in place, the output projections that are nearest to those of the whole one.

    Args:
        state: of the model whose contexts the moments are.
        small: what `surgery.shrink_state` made of it; only sites that lost a head change.
        layout: heads that `small` has.
        current: heads that `state` has.
    """
    for site, found in moments.items():
        existing, places = current.units(site), places_within(site, layout, current)
        if len(places) == len(existing):
            continue
        weight, bias = (f"{site_name(site)}.out_proj.{kind}" for kind in ("weight", "bias"))
        dim = state[weight].size(1) // len(existing)
        columns = unit_places(places, dim)
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
    total = model.layout.count
    for stage in range(stages):
        goal = k if stage == stages - 1 else round(total * (k / total) ** ((stage + 1) / stages))
        left = model.layout.surviving
        chosen = top_k_above_floors(score(model).detach().double().cpu(), goal, floors_of(left, floor) if k else ())
        cut_and_rescale(model, model.layout.narrow(chosen), context_moments(model.eval(), batches))
