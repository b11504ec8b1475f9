"""Importance by a statistic of a head's attention, in one pass and without gradients (after Voita et al., 2019, and others)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.scoring.attention_maps import Maps, attention_maps
from fairseq_dsp.scoring.passes import refuse_other_than_heads

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject


def sharpness(maps: Maps) -> tuple[Tensor, Tensor]:
    """1 - H(a_t) / log n_t, H the entropy in nats: 0 of a query that attends evenly, 1 of one that attends to a key alone.
    Queries that see one key are left out."""
    of_some = maps.seen >= 2
    even = torch.where(of_some, maps.seen, 2).double().log()
    values = 1 - torch.special.entr(maps.weights).sum(dim=3).double() / even
    return _total(values * of_some), of_some.sum()


def confidence(maps: Maps) -> tuple[Tensor, Tensor]:
    """The largest weight of a query, keys that end a sentence left out, and queries that see no others."""
    words = maps.visible & ~maps.ends.unsqueeze(1)
    of_some = words.any(dim=2)
    return _total((maps.weights * words).amax(dim=3) * of_some), of_some.sum()


def coverage(maps: Maps) -> tuple[Tensor, Tensor]:
    """The share of all attention in a sentence that goes where it would go if every query attended evenly:
    sum_s min(sum_t a_ts, sum_t e_ts) / T, e_ts = 1 / n_t."""
    even = (maps.visible.double() / maps.seen.clamp_min(1).unsqueeze(2)).sum(dim=1)  # [B, S]
    received = maps.weights.double().sum(dim=2)
    return _total(torch.minimum(received, even)), (maps.seen > 0).sum()


def diagonal(maps: Maps) -> tuple[Tensor, Tensor]:
    """The weight of keys at most one place away from the query's own."""
    return _total((maps.weights * (maps.diagonal <= 1)).sum(dim=3)), (maps.seen > 0).sum()


def _total(values: Tensor) -> Tensor:
    """[h, …] -> [h], in float64."""
    return values.double().flatten(1).sum(dim=1)


# Each gives its sum over the queries of a batch, [h] float64, and how many queries these are.
STATISTICS: dict[str, Callable[[Maps], tuple[Tensor, Tensor]]] = {
    "entropy": sharpness,
    "confidence": confidence,
    "coverage": coverage,
    "diagonal": diagonal,
}


class AttentionStatisticsScorer:
    """The mean of a statistic over all queries t that are not padding, of all sentences alike.

        entropy:     1 - H(a_t) / log n_t
        confidence:  max_s a_ts over words s, without the end of the sentence (Voita et al. 2019, section 4)
        coverage:    sum_s min(sum_t a_ts, sum_t e_ts) / T, a sentence's
        diagonal:    sum of a_ts over |s - s_t| <= 1

    a_ts is the weight with which query t attends to key s, n_t the number of keys that it sees, e_ts = 1 / n_t even attention and s_t the
    key at the query's own place. All lie from 0 to 1. A head with a larger value matters more: it looks at something, is sure, leaves
    nothing out, stays near. Confidence is as its authors define it; the others are after what goes by these names
    (design note 17). No gradient is taken, and neither padding nor the size of batches changes a score.

    Args:
        statistic: the name of one.

    Raises:
        Refusal: there is none of this name, or none is named.
    """

    name: ClassVar[str] = "attention-statistics"
    comparable: ClassVar[bool] = False
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True
    heads_alone: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("statistic",)

    def __init__(self, statistic: str | None = None) -> None:
        if statistic not in STATISTICS:
            what = "not given" if statistic is None else statistic
            raise Refusal(f"`--statistic` must be one of {', '.join(STATISTICS)}, but is {what}.")
        self.statistic = STATISTICS[statistic]

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        refuse_other_than_heads(subject, self.name)
        spans = dict(subject.grid.spans())
        totals = torch.zeros(subject.grid.total, dtype=torch.float64)
        queries = torch.zeros_like(totals)
        for maps_of in attention_maps(subject, live):
            for site, maps in maps_of.items():
                total, count = self.statistic(maps)
                totals[spans[site]] += total.cpu()
                queries[spans[site]] += count.cpu()
        return totals / queries.clamp_min(1) * live
