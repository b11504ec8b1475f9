"""Heads removed one after the other: of the trained model, or while its weights train. What is removed stays so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.layout import Grid, Layout

from .data import Batch, Data
from .models import VectorGates
from .scores import keep_top, score
from .training import Training, loss_of

_FEW = 4  # batches of a round of `by_scores`
_CANDIDATES = 6  # of a round of `by_loss`


class Remaining:
    """Which heads are left; the last cross-attention head never goes.

    Attributes:
        mask: [H], 0/1, on the CPU.
        count: how many are left.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.mask = torch.ones(grid.total)
        self.count = grid.total
        self._cross = [h for site, span in grid.spans() if site.stack == "cross" for h in range(span.start, span.stop)]

    def candidates(self, scores: Tensor) -> list[int]:
        """The heads that may go, the one of the lowest score first; of equals the lower index."""
        last = int(self.mask[self._cross].sum()) <= 1
        left = [h for h in range(len(self.mask)) if self.mask[h] and not (last and h in self._cross)]
        return sorted(left, key=lambda head: float(scores[head]))

    def remove(self, head: int) -> None:
        self.mask[head] = 0.0
        self.count -= 1

    @property
    def layout(self) -> Layout:
        return Layout.of_mask(self.grid, self.mask)


@torch.no_grad()
def cheapest(
    model: DspTransformerModel, gates: VectorGates, left: Remaining, heads: Sequence[int], batch: Batch
) -> int:
    """That of the heads without which the loss on the batch is lowest."""
    model.eval()
    losses = []
    for head in heads:
        mask = left.mask.clone()
        mask[head] = 0.0
        gates.vector = mask.to(gates.vector)
        losses.append((float(loss_of(model, batch)[1]), head))
    return min(losses)[1]


def by_scores(model: DspTransformerModel, batches: Sequence[Batch], seed: int, k: int) -> Layout:
    """Removes the head of the lowest Fisher score, scores what is left, and so on."""
    left = Remaining(model.layout.grid)
    while left.count > k:
        left.remove(left.candidates(score(model, batches[:_FEW], seed, "fisher", left.mask))[0])
    return left.layout


def by_loss(model: DspTransformerModel, data: Data, batches: Sequence[Batch], seed: int, k: int) -> Layout:
    """Removes that of the six heads of the lowest Fisher scores without which the loss is lowest; a batch for each of both."""
    left = Remaining(model.layout.grid)
    while left.count > k:
        scored = [batches[left.count % len(batches)]]
        heads = left.candidates(score(model, scored, seed, "fisher", left.mask))[:_CANDIDATES]
        gates = VectorGates(model, data.device)
        head = cheapest(model, gates, left, heads, batches[(left.count * 7 + 3) % len(batches)])
        gates.remove()
        left.remove(head)
    return left.layout


def kept_at(update: int, start: int, end: int, total: int, k: int, schedule: str = "cubic") -> int:
    """Heads of an update: all before `start`, k from `end` on; between them the number falls with the cube of what is left.

    Args:
        schedule: `cubic`, or `constant` for k throughout.
    """
    if schedule == "constant" or update >= end:
        return k
    if update < start:
        return total
    return k + round((total - k) * (1 - (update - start) / (end - start)) ** 3)


def while_training(
    model: DspTransformerModel, data: Data, training: Training, seed: int, k: int, window: int, options: dict[str, Any]
) -> Layout:
    """Trains for `window` updates while heads go by a moving average of what each costs.

    Options:
        score: `sq`, the squared derivative of the update's loss by the head's gate; `abs`, its size; `sentence`, the mean over sentences of the square, every
            second update.
        probe: of so many heads of the lowest averages, that goes without which the loss on one batch is lowest.
    """
    grid, kind, beta = model.layout.grid, options.get("score", "sq"), 0.95
    left, average = Remaining(grid), torch.zeros(grid.total, dtype=torch.float64)
    gates = VectorGates(model, data.device)
    for update in range(window):
        k_now = kept_at(update + 1, training.warm, window, grid.total, k)
        while left.count > k_now:
            heads = left.candidates(average)
            if "probe" in options:
                batch = training.batch(training.done + 17)
                head = cheapest(model, gates, left, heads[: options["probe"]], batch)
            else:
                head = heads[0]
            left.remove(head)
        gate = left.mask.clone().to(data.device).requires_grad_()
        gates.vector = gate * gate.detach()  # no gradient where a head is gone
        training.step()
        if kind == "sentence":
            if update % 2:
                continue
            gates.remove()
            found = score(model, [training.batch(training.done)], seed, "fisher", left.mask)
            gates = VectorGates(model, data.device)
        else:
            assert gate.grad is not None
            derivative = gate.grad.double().cpu()
            found = derivative.abs() if kind == "abs" else derivative.square()
        average = beta * average + (1 - beta) * found
    gates.remove()
    return left.layout


def in_order(model: DspTransformerModel, data: Data, training: Training, scores: Tensor, k: int, window: int) -> Layout:
    """Trains to the end while heads go in an order that is known before: their number falls over `window` updates from all to k.

    The model keeps its size, and its gates are those of the layout at the end.
    """
    grid = model.layout.grid
    layout = keep_top(grid, scores, k)
    kept = torch.tensor(layout.kept, dtype=torch.float64)
    raised = scores.double() + kept * (scores.max() - scores.min() + 1)  # above all others, the floor's included
    rank = (-raised).argsort(stable=True).argsort(stable=True).to(data.device)
    gates = VectorGates(model, data.device)
    for update in range(training.total):
        gates.vector = (rank < kept_at(update + 1, 0, window, grid.total, k)).float()
        training.step()
    return layout
