"""Attention of a model's heads over batches: who attends to what, without padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.scoring.passes import gated, hooks, run
from fairseq_dsp.units.kinds import STACK_OF

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject, Words
    from fairseq_dsp.units.layout import Site


@dataclass(frozen=True)
class Maps:
    """The attention of a site's heads over the sentences of a batch.

    Attributes:
        weights: [h, B, T, S]; 0 where a query does not see a key.
        visible: [B, T, S] bool: which keys a query sees. None is at padding, no query at padding sees any, and in decoder
            self-attention no query sees a later key.
        ends: [B, S] bool: keys that are symbols for the end of a sentence.
        diagonal: [B, T, S] float64: how many keys a key is away from the query's own place, which in cross-attention lies as far
            into the source sentence as the query does into the target sentence.
    """

    weights: Tensor
    visible: Tensor
    ends: Tensor
    diagonal: Tensor

    @classmethod
    def of(cls, weights: Tensor, queries: Words, keys: Words, causal: bool) -> Maps:
        """Of attention weights [h, B, T, S] as an attention gives them, and what stands at queries [B, T] and keys [B, S].

        Args:
            causal: queries do not see later keys.
        """
        visible = queries.there.unsqueeze(2) & keys.there.unsqueeze(1)
        rows, columns = _places(queries.there), _places(keys.there)
        if causal:
            visible = visible & (rows.unsqueeze(2) >= columns.unsqueeze(1))
        lengths = [there.sum(dim=1, keepdim=True).clamp_min(1).double() for there in (queries.there, keys.there)]
        own = (rows + 0.5) * lengths[1] / lengths[0] - 0.5  # of equal lengths: the query's number
        distance = (own.unsqueeze(2) - columns.unsqueeze(1)).abs()
        return cls(weights * visible, visible, keys.ends, distance)

    @property
    def seen(self) -> Tensor:
        """How many keys a query sees: [B, T]; 0 at padding."""
        return self.visible.sum(dim=2)


def attention_maps(subject: Subject, live: Tensor) -> Iterator[dict[Site, Maps]]:
    """The maps of every site that has heads, batch by batch.

    Args:
        live: [H], 1 for heads that are there, 0 for those removed so far, which later layers do not hear any more.

    Raises:
        Refusal: a site attends to the words of both sides at once.
    """
    found: dict[Site, Tensor] = {}

    def ask(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "need_weights": True, "need_head_weights": True}

    def note_as(site: Site) -> Any:
        def note(_: Any, __: Any, output: tuple[Tensor, Tensor]) -> Any:
            found[site] = output[1]
            return output[0], None  # as if nobody had asked

        return note

    with gated(subject, live), hooks() as added:
        for site, count in subject.grid.counts:
            if count:
                attention = subject.modules[site]
                added(attention.register_forward_pre_hook(ask, with_kwargs=True))
                added(attention.register_forward_hook(note_as(site)))
        for batch in subject.batches:
            run(subject, batch)
            words = subject.words(batch)
            yield {site: _maps_of(site, weights, words) for site, weights in found.items()}
            found.clear()


def _maps_of(site: Site, weights: Tensor, words: Any) -> Maps:
    side = STACK_OF[site.stack].side
    queries, keys = words[side], words["encoder" if site.stack == "cross" else side]
    if weights.size(3) != keys.there.size(1):
        raise Refusal(
            "a model whose attention is looked at must attend to one sentence at a time, but "
            f"{STACK_OF[site.stack].title} of this one attends to two (`--cross-self-attention`)."
        )
    return Maps.of(weights, queries, keys, causal=site.stack == "dec")


def _places(there: Tensor) -> Tensor:
    """The place of a word in its sentence, from 0, wherever padding stands: [B, L] float64."""
    return torch.cumsum(there, dim=1).double() - 1
