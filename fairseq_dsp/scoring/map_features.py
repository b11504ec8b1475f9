"""What a trained scorer knows of a head: numbers that do not depend on how long sentences are, how many layers, how many heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fairseq_dsp.scoring.attention_maps import Maps, attention_maps
from fairseq_dsp.scoring.attention_statistics import STATISTICS
from fairseq_dsp.units.layout import HEAD_STACKS

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject

# Means over queries; then of the site: where it is, and how deep from 0 to 1.
FEATURES = (*STATISTICS, "distance", "ends", "twin", *HEAD_STACKS, "depth")


def map_features(subject: Subject, live: Tensor) -> Tensor:
    """The features of every head: [H, F] float64, in the order of `FEATURES`.

        the statistics of `attention_statistics`;
        distance:  sum_s a_ts |s - s_t| / n_t, how far it looks;      ends:  sum of a_ts over s that end a sentence;
        twin:      the largest of mean_t sum_s min(a_ts, a'_ts) over the other heads a' of the site: 1 where one does the same

    Args:
        live: [H], 1 for heads that are there, 0 for those removed so far.
    """
    sums = {site: torch.zeros(count, len(STATISTICS) + 2, dtype=torch.float64) for site, count in subject.grid.counts}
    counts = {site: torch.zeros(len(STATISTICS) + 2, dtype=torch.float64) for site in sums}
    overlaps = {site: torch.zeros(count, count, dtype=torch.float64) for site, count in subject.grid.counts}
    for maps_of in attention_maps(subject, live):
        for site, maps in maps_of.items():
            queries = (maps.seen > 0).sum()
            found = [statistic(maps) for statistic in STATISTICS.values()]
            found += [(_distance(maps), queries), (_ends(maps), queries)]
            sums[site] += torch.stack([total for total, _ in found], dim=1).cpu()
            counts[site] += torch.stack([count for _, count in found]).cpu()
            overlaps[site] += _overlaps(maps.weights).cpu()
    rows = [torch.zeros(0, len(FEATURES), dtype=torch.float64)]
    for (site, count), (_, span) in zip(subject.grid.counts, subject.grid.spans(), strict=True):
        if count == 0:
            continue
        others = overlaps[site] / counts[site][-1].clamp_min(1) * live[span].double().unsqueeze(0)
        twin = others.fill_diagonal_(0).amax(dim=1)
        layers = len(subject.grid.of(site.stack))
        place = [float(site.stack == stack) for stack in HEAD_STACKS] + [site.layer / max(layers - 1, 1)]
        of_site = torch.tensor(place, dtype=torch.float64).expand(count, -1)
        rows.append(torch.cat([sums[site] / counts[site].clamp_min(1), twin.unsqueeze(1), of_site], dim=1))
    return torch.cat(rows)


def _distance(maps: Maps) -> Tensor:
    away = maps.diagonal / maps.seen.clamp_min(1).unsqueeze(2)
    return (maps.weights * away).double().flatten(1).sum(dim=1)


def _ends(maps: Maps) -> Tensor:
    return (maps.weights * maps.ends.unsqueeze(1)).double().flatten(1).sum(dim=1)


def _overlaps(weights: Tensor) -> Tensor:
    """sum over queries of sum_s min(a_ts, a'_ts) for every two heads: [h, h]. A head at a time: h^2 maps are large."""
    return torch.stack([torch.minimum(weights, head).double().flatten(1).sum(dim=1) for head in weights])
