"""Importance by how much a unit adds to the residual stream (after SNIP, Lin et al., Findings of EMNLP 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.scoring.passes import gated, hooks, run
from fairseq_dsp.units.kinds import STACK_OF
from fairseq_dsp.units.norms import RELATIVE, grams_of, length_of_stream, norms_of_units, objection_to_norm

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject
    from fairseq_dsp.units.layout import Site


class FunctionNormScorer:
    """The mean norm of what the unit adds to the residual stream, over positions x that are not padding.

        absolute:  E_x |F_u(x)| / sqrt(C)        relative:  E_x ( |F_u(x)| / |x| )        F_u(x) = O_u c_u(x)

    c_u [d] is a head's context, or a group's activations, and O_u [C, d] the unit's columns of the map that reads them, whose bias is
    nobody's. x is the stream that the sublayer adds to. The relative norm can be compared between layers and between pre-norm and post-norm models.

    After Lin et al. (2020), who rank residual modules by the norm of their function. Their equations could not be reached: the
    mean over positions, the scale and the relative form are choices of this package (design note 17). No gradient is taken, and
    neither padding nor the size of batches changes a score.

    Args:
        norm: `absolute` or `relative`; None for `absolute`.

    Raises:
        Refusal: neither.
    """

    name: ClassVar[str] = "function-norm"
    comparable: ClassVar[bool] = True
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True
    heads_alone: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("norm",)

    def __init__(self, norm: str | None = None) -> None:
        if (objection := objection_to_norm(norm)) is not None:
            raise Refusal(objection)
        self.relative = norm == RELATIVE

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        spans = dict(subject.grid.spans())
        totals = torch.zeros(subject.grid.total, dtype=torch.float64)
        positions = torch.zeros_like(totals)
        streams: dict[Site, Tensor] = {}  # of a pass: |x| / sqrt(C), [T, B]
        norms: dict[Site, Tensor] = {}  # likewise: |F| / sqrt(C), [T, B, n]

        def note_stream(site: Site) -> Any:
            def note(_: Any, args: Any, kwargs: dict[str, Tensor]) -> None:
                streams[site] = length_of_stream(args[0] if args else kwargs["query"])

            return note

        def note_norms(site: Site, units: int) -> Any:
            weight = subject.reader(site).weight
            grams, scale = grams_of(weight.detach(), units), len(weight) ** 0.5

            def note(_: Any, inputs: tuple[Tensor]) -> None:
                norms[site] = norms_of_units(inputs[0].unflatten(2, (units, -1)), grams) / scale

            return note

        with gated(subject, live), hooks() as added:
            for site, count in subject.grid.counts:
                if count:
                    added(subject.reader(site).register_forward_pre_hook(note_norms(site, count)))
                    stream, note = subject.streams[site], note_stream(site)
                    added(stream.register_forward_pre_hook(note, prepend=True, with_kwargs=True))
            for batch in subject.batches:
                run(subject, batch)
                words = subject.words(batch)
                for site, found in norms.items():
                    there = words[STACK_OF[site.stack].side].there.T  # [T, B]
                    found = found / streams[site].unsqueeze(2) if self.relative else found
                    totals[spans[site]] += found[there].double().sum(dim=0).cpu()
                    positions[spans[site]] += there.sum().cpu()
        return totals / positions.clamp_min(1) * live
