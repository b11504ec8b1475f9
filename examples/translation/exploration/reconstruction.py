"""Choices by what a sublayer can still say after least squares, and cuts that are fitted so (optimal brain surgeon by sublayer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.checkpoints.batches import loss_of
from fairseq_dsp.checkpoints.rescaling import Moments, cut_and_rescale, cut_in_stages, input_moments
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.kind import unit_places
from fairseq_dsp.units.layout import Layout, Site

from .data import Batch, Data
from .scores import score
from .training import Training

_RIDGE = 1e-6  # of the mean variance of a site's contexts


def moments_of(model: DspTransformerModel, batches: Sequence[Batch]) -> dict[Site, Moments]:
    """The moments of the contexts of every site that has heads."""
    sites = [site for site, heads in model.layout.surviving.counts if heads]
    return input_moments(model.eval(), batches, sites)


def by_reconstruction(
    model: DspTransformerModel,
    data: Data,
    batches: Sequence[Batch],
    seed: int,
    k: int,
    options: dict[str, Any],
    lr: float,
) -> int:
    """Cuts the model to k heads, in place, in one stage or several.

    A site's heads go in the order in which least squares loses least; then all sites are given the numbers of heads that
    lose least together, one cross-attention head at least.

    Options:
        stages: the number of heads falls by the same factor in each.
        adapt: updates of all weights after every stage, at a quarter of the learning rate.

    Returns:
        updates used.
    """
    total, stages, used = model.layout.grid.total, options.get("stages", 1), 0
    for stage in range(stages):
        goal = max(k, round(total * (k / total) ** ((stage + 1) / stages)))
        moments = moments_of(model, batches)
        chosen = _cheapest_layout(model, moments, _output_gradients(model, batches), goal)
        cut_and_rescale(model, chosen, moments)
        if options.get("adapt"):
            training = Training(model, data, seed, 10**9, lr / 4, warm=5, start=used)
            for _ in range(options["adapt"]):
                training.step()
            used = training.done
    return used


def by_stages(model: DspTransformerModel, batches: Sequence[Batch], seed: int, k: int, stages: int, name: str) -> None:
    """Cuts the model to k heads, in place, in stages by scores of what is left, as `fairseq-dsp-prune --scorer` does."""
    cut_in_stages(model, batches, k, stages, lambda left: score(left, batches, seed, name), floor=1)


@dataclass(frozen=True)
class _Curvature:
    """Second moment of the loss's gradient by a site's output, [C, C] float64, and its tokens for every target token."""

    moment: Tensor
    tokens: float


def _output_gradients(model: DspTransformerModel, batches: Sequence[Batch]) -> dict[Site, _Curvature]:
    """The curvature at every site that has heads, over tokens without padding; the loss is that of scoring."""
    model.eval()
    sites = {site: each for site, each in attentions(model, model.layout.grid) if each.num_heads}
    sums: dict[Site, Tensor] = {}
    tokens = dict.fromkeys(sites, 0)
    targets = 0
    for batch in batches:
        outputs: dict[Site, Tensor] = {}

        def catch(site: Site, outputs: dict[Site, Tensor]) -> Any:
            return lambda module, inputs, output: outputs.__setitem__(site, output)

        handles = [each.out_proj.register_forward_hook(catch(site, outputs)) for site, each in sites.items()]
        try:
            loss = loss_of(model, batch).sum()
        finally:
            for handle in handles:
                handle.remove()
        found = torch.autograd.grad(loss, list(outputs.values()), allow_unused=True, materialize_grads=True)
        targets += int((batch["target"] != model.decoder.padding_idx).sum())
        for site, gradient in zip(outputs, found, strict=True):
            words = batch["net_input"]["src_tokens" if site.stack == "enc" else "prev_output_tokens"]
            rows = gradient[(words != model.decoder.padding_idx).T].double().cpu()  # [tokens, C]
            sums[site] = sums.get(site, 0.0) + rows.T @ rows
            tokens[site] += len(rows)
    return {site: _Curvature(total / tokens[site], tokens[site] / targets) for site, total in sums.items()}


def _cheapest_layout(
    model: DspTransformerModel, moments: dict[Site, Moments], curvature: dict[Site, _Curvature], k: int
) -> Layout:
    orders: dict[Site, tuple[list[float], list[list[int]]]] = {}
    for site, attention in attentions(model, model.layout.grid):
        weight = attention.out_proj.weight.detach().double().cpu()
        found = (moments[site], curvature[site]) if attention.num_heads else None
        orders[site] = _order_of_site(weight, found, attention.num_heads, attention.head_dim)
    numbers = allocate({site: costs for site, (costs, _) in orders.items()}, k)
    kept = {(site, model.layout.units(site)[place]) for site in orders for place in orders[site][1][numbers[site]]}
    grid = model.layout.grid
    return Layout(grid, tuple((site, head) in kept for site in grid.sites for head in range(grid.size(site))))


def _order_of_site(
    weight: Tensor, found: tuple[Moments, _Curvature] | None, heads: int, head_dim: int
) -> tuple[list[float], list[list[int]]]:
    """Costs, in nats a target token, and the best places found, of keeping 0, 1, ... heads."""
    keep = list(range(heads))
    costs, places = [0.0], [list(keep)]
    while keep and found is not None:
        moments, curve = found
        outer, covariance = weight.T @ curve.moment @ weight, moments.covariance
        trials = []
        for head in keep:
            rows = unit_places([other for other in keep if other != head], head_dim)
            trials.append((float((outer * _unexplained(covariance, rows)).sum()), head))
        cost, worst = min(trials)
        keep.remove(worst)
        costs.append(0.5 * curve.tokens * cost)
        places.append(list(keep))
    return costs[::-1], places[::-1]


def _unexplained(covariance: Tensor, rows: Tensor) -> Tensor:
    """The covariance that is left when the contexts are predicted from some of them: [n, n]."""
    if not len(rows):
        return covariance
    own = covariance[rows][:, rows]
    own = own + _RIDGE * own.diagonal().mean() * torch.eye(len(rows), dtype=own.dtype)
    return covariance - covariance[:, rows] @ torch.linalg.solve(own, covariance[rows])


def allocate(costs: dict[Site, list[float]], k: int, floor: int = 1) -> dict[Site, int]:
    """The numbers of heads, k together, whose costs add up to least.

    Args:
        costs: of keeping 0, 1, ... heads of each site.
        floor: cross-attention heads, at least.
    """
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}  # (heads, cross up to floor)
    for site, each in costs.items():
        found: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (heads, cross), (cost, numbers) in best.items():
            for number, more in enumerate(each[: k - heads + 1]):
                key = (heads + number, min(cross + (number if site.stack == "cross" else 0), floor))
                if key not in found or cost + more < found[key][0]:
                    found[key] = (cost + more, (*numbers, number))
        best = found
    return dict(zip(costs, best[k, floor][1], strict=True))
