"""Forward passes of a model that is scored, some of its heads gated, and what its attentions read and say in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import KIND_OF, STACK_OF

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject
    from fairseq_dsp.units.layout import Site


def refuse_other_than_heads(subject: Subject, scorer: str) -> None:
    """Of what a scorer that looks at attention cannot look at.

    Raises:
        Refusal: a site of the grid has units that are no heads, or none has a unit.
    """
    names = [STACK_OF[site.stack].title for site, count in subject.grid.counts if count and not _is_of_heads(site)]
    if names:
        raise Refusal(f"`--scorer {scorer}` must be given sites of attention, but {names[0]} is none.")
    if not subject.grid.total:
        raise Refusal(f"`--scorer {scorer}` must be given a model that has attention heads, but this one has none.")


@contextlib.contextmanager
def gated(subject: Subject, gates: Tensor) -> Iterator[None]:
    """While open, what every unit computed, a head's context or a group's activations, is multiplied by its gate, in every forward pass.

    Args:
        gates: [n], in the grid's flat order; gradient flows to them.
    """

    def scale_by(of_site: Tensor, width: int) -> Any:
        def scale(_: Any, inputs: tuple[Tensor]) -> Tensor:
            (computed,) = inputs  # [T, B, units · width]
            return computed * of_site.to(computed).repeat_interleave(width)

        return scale

    with hooks() as added:
        for site, span in subject.grid.spans():
            if span.stop > span.start:
                scale = scale_by(gates[span], subject.width(site))
                added(subject.reader(site).register_forward_pre_hook(scale))
        yield


@contextlib.contextmanager
def hooks() -> Iterator[Callable[[Any], None]]:
    """Takes the handles of hooks, and removes these at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda handle: stack.callback(handle.remove)


@torch.no_grad()
def run(subject: Subject, batch: Any) -> None:
    """One pass over a batch, for what hooks note of it."""
    subject.loss(batch)


def _is_of_heads(site: Site) -> bool:
    return KIND_OF[site.stack] is HEADS
