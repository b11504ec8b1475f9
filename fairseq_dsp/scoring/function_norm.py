"""Importance by how much a head adds to the residual stream (after SNIP, Lin et al., Findings of EMNLP 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.scoring.passes import gated, hooks, refuse_other_than_heads, run
from fairseq_dsp.units.kinds import STACK_OF

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject
    from fairseq_dsp.units.layout import Site

NORMS = ("absolute", "relative")


def norms_of_heads(contexts: Tensor, grams: Tensor) -> Tensor:
    """|O_i c_i| of every head i: sqrt(c_i^T (O_i^T O_i) c_i), without a vector of C numbers for a head: [..., h].

    Args:
        contexts: c, [..., h, d].
        grams: O_i^T O_i, [h, d, d].
    """
    return (torch.einsum("...hi,hij->...hj", contexts, grams) * contexts).sum(dim=-1).clamp_min(0).sqrt()


def grams_of(weight: Tensor, heads: int) -> Tensor:
    """O_i^T O_i of every head's columns O_i of an output projection [C, h·d]: [h, d, d]."""
    columns = weight.detach().unflatten(1, (heads, -1)).movedim(1, 0)  # [h, C, d]
    return columns.mT @ columns


class FunctionNormScorer:
    """The mean norm of what the head adds to the residual stream, over positions x that are not padding.

        absolute:  E_x |F_i(x)| / sqrt(C)        relative:  E_x ( |F_i(x)| / |x| )        F_i(x) = O_i c_i(x)

    c_i [d] is the head's context and O_i [C, d] its columns of the output projection, whose bias is nobody's. x is the stream that the
    sublayer adds to. The relative norm can be compared between layers and between pre-norm and post-norm models.

    After Lin et al. (2020), who rank residual modules by the norm of their function. Their equations could not be reached: the
    mean over positions, the scale and the relative form are choices of this package (design note 15). No gradient is taken, and
    neither padding nor the size of batches changes a score.

    Args:
        norm: `absolute` or `relative`; None for `absolute`.

    Raises:
        Refusal: neither.
    """

    name: ClassVar[str] = "function-norm"
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("norm",)

    def __init__(self, norm: str | None = None) -> None:
        if norm not in (None, *NORMS):
            raise Refusal(f"`--norm` must be {' or '.join(NORMS)}, but is {norm}.")
        self.relative = norm == "relative"

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        refuse_other_than_heads(subject, self.name)
        spans = dict(subject.grid.spans())
        totals = torch.zeros(subject.grid.total, dtype=torch.float64)
        positions = torch.zeros_like(totals)
        streams: dict[Site, Tensor] = {}  # of a pass: |x| / sqrt(C), [T, B]
        norms: dict[Site, Tensor] = {}  # likewise: |F| / sqrt(C), [T, B, h]

        def note_stream(site: Site) -> Any:
            def note(_: Any, args: Any, kwargs: dict[str, Tensor]) -> None:
                streams[site] = _length(args[0] if args else kwargs["query"])

            return note

        def note_contexts(site: Site, heads: int, scale: float, grams: Tensor) -> Any:
            def note(_: Any, inputs: tuple[Tensor]) -> None:
                norms[site] = norms_of_heads(inputs[0].unflatten(2, (heads, -1)), grams) / scale

            return note

        with gated(subject, live), hooks() as added:
            for site, attention in subject.attentions.items():
                if attention.num_heads:
                    weight = attention.out_proj.weight
                    note = note_contexts(
                        site, attention.num_heads, len(weight) ** 0.5, grams_of(weight, attention.num_heads)
                    )
                    added(attention.out_proj.register_forward_pre_hook(note))
                    added(
                        subject.streams[site].register_forward_pre_hook(
                            note_stream(site), prepend=True, with_kwargs=True
                        )
                    )
            for batch in subject.batches:
                run(subject, batch)
                words = subject.words(batch)
                for site, found in norms.items():
                    there = words[STACK_OF[site.stack].side].there.T  # [T, B]
                    found = found / streams[site].unsqueeze(2) if self.relative else found
                    totals[spans[site]] += found[there].double().sum(dim=0).cpu()
                    positions[spans[site]] += there.sum().cpu()
        return totals / positions.clamp_min(1) * live


def _length(stream: Tensor) -> Tensor:
    """|x| / sqrt(C) of every position's x: [T, B, C] -> [T, B]."""
    return stream.norm(dim=2) / stream.size(2) ** 0.5
