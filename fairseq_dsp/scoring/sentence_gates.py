"""A gate a unit and a sentence: what the scorers that read data differentiate the loss by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject
    from fairseq_dsp.units.layout import Site


def loss_derivatives(subject: Subject, live: Tensor) -> Iterator[Tensor]:
    """dL(x) / d xi_u of every sentence x and unit u, a tensor a batch: [B, n], of the loss's dtype, on its device.

    xi_u multiplies what the unit computed, a head's context or a group's activations, and is 1, or 0 for a unit removed so far. One
    backward pass serves a whole batch, because every sentence has gates of its own.

    Args:
        live: [n], 1 for units that are there, 0 for those removed so far.
    """
    with _sentence_gates(subject, live) as gates:
        for batch in subject.batches:
            loss = subject.loss(batch)
            found: list[Tensor] = []
            if gates:
                # without cross-attention heads the encoder's have no say in the loss
                found = list(
                    torch.autograd.grad(loss.sum(), list(gates.values()), allow_unused=True, materialize_grads=True)
                )
            by_site = dict(zip(gates, found, strict=True))
            empty = loss.new_zeros(len(loss), 0)
            yield torch.cat([by_site.get(site, empty) for site, _ in subject.grid.spans()], dim=1)


def mean_over_sentences(subject: Subject, live: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over all sentences of what `of` makes of their derivatives: float64, on the CPU; a 0 without shape
    where there is no sentence.

    Args:
        live: see `loss_derivatives`.
        of: a batch's derivatives [B, n] -> their sum over the sentences, of any shape.
    """
    total, sentences = torch.zeros((), dtype=torch.float64), 0
    for derivatives in loss_derivatives(subject, live):
        total = total + of(derivatives).double().cpu()  # waits for the device once a batch
        sentences += len(derivatives)
    return total / max(sentences, 1)


def information_by_site(subject: Subject, live: Tensor) -> dict[Site, Tensor]:
    """F = E_x [d(x) d(x)^T] of every site's units, with d(x)_u = dL(x) / d xi_u: [units, units] float64, on the CPU.

    Args:
        live: see `loss_derivatives`.
    """
    spans = dict(subject.grid.spans())
    sums = {site: torch.zeros(count, count, dtype=torch.float64) for site, count in subject.grid.counts}
    sentences = 0
    for derivatives in loss_derivatives(subject, live):
        sentences += len(derivatives)
        for site, span in spans.items():
            wide = derivatives[:, span].double()
            sums[site] = sums[site].to(wide.device).addmm_(wide.T, wide)
    return {site: each.cpu() / max(sentences, 1) for site, each in sums.items()}


@contextlib.contextmanager
def _sentence_gates(subject: Subject, live: Tensor) -> Iterator[dict[Any, Tensor]]:
    """While open, every forward pass of the model leaves its gates here: site -> [B, units]."""
    gates: dict[Any, Tensor] = {}
    spans = dict(subject.grid.spans())
    handles = []

    def hook_of(site: Any, width: int) -> Any:
        def scale_input(reader: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            (computed,) = inputs  # [T, B, units · width]
            gates[site] = live[spans[site]].to(computed).repeat(computed.size(1), 1).requires_grad_()
            return computed * gates[site].repeat_interleave(width, dim=1)

        return scale_input

    try:
        for site, count in subject.grid.counts:
            if count:
                hook = hook_of(site, subject.width(site))
                handles.append(subject.reader(site).register_forward_pre_hook(hook))
        yield gates
    finally:
        for handle in handles:
            handle.remove()
