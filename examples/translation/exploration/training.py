"""Updates of the weights, and the loss on the validation set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_dsp.modules.label_smoothing import label_smoothed_nll
from fairseq_dsp.plugin.model import DspTransformerModel

from .data import Batch, Data

SMOOTHING = 0.1


def order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation that is a function of its arguments alone."""
    return np.random.RandomState((seed * 1000003 + epoch) % 2**31).permutation(count).tolist()


def drawn(batches: Sequence[Batch], count: int, seed: int, purpose: int) -> list[Batch]:
    """Some of the batches; another purpose draws others."""
    return [batches[index] for index in order(len(batches), seed, purpose)[:count]]


def loss_of(model: DspTransformerModel, batch: Batch) -> tuple[Tensor, Tensor, int]:
    """The label-smoothed loss and the negative log-likelihood, summed over the target's tokens, and their number."""
    logits, target = model(**batch["net_input"])[0], batch["target"]
    padding = model.decoder.padding_idx
    loss, nll = label_smoothed_nll(logits.flatten(0, -2), target.flatten(), SMOOTHING, padding)
    return loss, nll, batch["ntokens"]


@torch.no_grad()
def nats(model: DspTransformerModel, batches: Sequence[Batch]) -> float:
    """Mean negative log-likelihood of a target token."""
    model.eval()
    total, tokens = 0.0, 0
    for _, nll, count in (loss_of(model, batch) for batch in batches):
        total, tokens = total + nll.double(), tokens + count
    return float(total) / tokens


class Training:
    """Adam over the weights of a model.

    Args:
        seed: of the order of the batches.
        total: updates, at the last of which a linear schedule reaches zero.
        lr: the largest learning rate, after `warm` updates.
        schedule: `linear` or `isqrt`.
        start: updates that count as done: of the schedule and of the batches, not of Adam's moments.
    """

    def __init__(
        self, model: DspTransformerModel, data: Data, seed: int, total: int, lr: float, warm: int, schedule: str = "linear",
        start: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.batches, self.seed = model, data.train, seed
        self.total, self.lr, self.warm, self.schedule, self.done = total, lr, warm, schedule, start
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(weights, lr, betas=(0.9, 0.98), eps=1e-8, fused=data.device == "cuda")

    def rate(self, update: int) -> float:
        """Learning rate of an update."""
        if update < self.warm:
            return self.lr * (update + 1) / self.warm
        if self.schedule == "isqrt":
            return self.lr * math.sqrt(self.warm / (update + 1))
        return self.lr * max(1 - (update - self.warm) / (self.total - self.warm), 0)

    def batch(self, update: int) -> Batch:
        epoch, place = divmod(update, len(self.batches))
        return self.batches[order(len(self.batches), self.seed, epoch)[place]]

    def step(
        self,
        after_backward: Callable[[], Any] | None = None,
        teacher: Teacher | None = None,
        penalty: Callable[[], Tensor | None] | None = None,
    ) -> None:
        """One update.

        Args:
            after_backward: what else uses the gradient, before the weights move.
            teacher: see `Teacher`.
            penalty: what is added to the loss per target token, once the pass is over.
        """
        self.model.train()
        batch = self.batch(self.done)
        loss = loss_of(self.model, batch)[0] if teacher is None else teacher.loss(self.model, batch)
        loss = loss / batch["ntokens"]
        if penalty is not None and (more := penalty()) is not None:
            loss = loss + more
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.done)
        if after_backward is not None:
            after_backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1


class Teacher:
    """Word-level distillation: alpha · KL(dense, model) + (1 - alpha) · label-smoothed loss.

    Args:
        model: the dense one.
        alpha: share of the divergence.
    """

    def __init__(self, model: DspTransformerModel, alpha: float) -> None:
        self.model, self.alpha = model.eval(), alpha

    def loss(self, model: DspTransformerModel, batch: Batch) -> Tensor:
        """Summed over the target's tokens; the teacher's own entropy, a constant, is left out."""
        logits, target = model(**batch["net_input"])[0], batch["target"]
        padding = model.decoder.padding_idx
        with torch.no_grad():
            taught = F.softmax(self.model(**batch["net_input"])[0].float(), dim=-1)
        own, _ = label_smoothed_nll(logits.flatten(0, -2), target.flatten(), SMOOTHING, padding)
        divergence = -(taught * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)
        return (1 - self.alpha) * own + self.alpha * divergence.masked_fill(target == padding, 0.0).sum()
