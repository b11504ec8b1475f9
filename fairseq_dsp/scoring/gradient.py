"""Importance by the gradient of a head's gate (Michel, Levy and Neubig, NeurIPS 2019)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fairseq_dsp.scoring import Subject


class GradientScorer:
    """The expected size of the loss's derivative by a gate on the head, normalised at every site.

        I_h = E_x |dL(x) / d xi_h|,    score_h = I_h / sqrt(sum of I_j^2 over the heads j of the site)

    (Michel et al. 2019, eq. 2 and section 3.3.) xi_h multiplies the head's context and is 1 (0 for a head removed so
    far). x is one sentence pair, L(x) the sum of its target tokens' negative log-likelihood, without label smoothing and
    dropout; the absolute value is taken sentence by sentence and the expectation is the mean over sentences. One backward
    pass serves a whole batch, because every sentence has gates of its own.
    """

    name: ClassVar[str] = "gradient"
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        sizes = torch.zeros(subject.grid.total, dtype=torch.float64)
        sentences = 0
        spans = dict(subject.grid.spans())
        with _sentence_gates(subject, live) as gates:
            for batch in subject.batches:
                loss = subject.loss(batch)
                if not gates:
                    break  # no head is left
                # without cross-attention heads the encoder's have no say in the loss
                found = torch.autograd.grad(loss.sum(), list(gates.values()), allow_unused=True, materialize_grads=True)
                totals = torch.cat([gradient.abs().sum(dim=0) for gradient in found]).double().cpu()  # waits once
                for site, total in zip(gates, totals.split([gradient.size(1) for gradient in found]), strict=True):
                    sizes[spans[site]] += total
                sentences += len(loss)
        scores = sizes / max(sentences, 1) * live
        for span in spans.values():
            norm = scores[span].norm()
            if norm > 0:
                scores[span] /= norm
        return scores


@contextlib.contextmanager
def _sentence_gates(subject: Subject, live: Tensor) -> Iterator[dict[Any, Tensor]]:
    """While open, every forward pass of the model leaves its gates here: site -> [B, h]."""
    gates: dict[Any, Tensor] = {}
    spans = dict(subject.grid.spans())
    handles = []

    def hook_of(site: Any, head_dim: int) -> Any:
        def scale_context(projection: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            (context,) = inputs  # [T, B, h·d]
            gates[site] = live[spans[site]].to(context).repeat(context.size(1), 1).requires_grad_()
            return context * gates[site].repeat_interleave(head_dim, dim=1)

        return scale_context

    try:
        for site, attention in subject.attentions.items():
            if attention.num_heads:
                hook = hook_of(site, attention.head_dim)
                handles.append(attention.out_proj.register_forward_pre_hook(hook))
        yield gates
    finally:
        for handle in handles:
            handle.remove()
