"""Importance variables trained together with the weights for a window of updates: the family of differentiable subset pruning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods import METHODS
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.layout import Layout

from .data import Data
from .models import VectorGates
from .removal import kept_at
from .scores import keep_top
from .training import Training

_SUM_OF_STEPS = 25  # learning rate times window, where an arm gives no rate
_SPREAD_OF_START = 0.1


def learn(
    model: DspTransformerModel, data: Data, training: Training, seed: int, k: int, window: int, options: dict[str, Any],
    start: Tensor | None = None,
) -> Layout:  # fmt: skip
    """Trains weights and importance for `window` updates, then takes the K most important heads.

    Options:
        relax: `succ` for the paper's successive softmax; the projection otherwise.
        t: first and last temperature (1, 0.1).
        ilr: learning rate of the importance; 25 / window otherwise.
        budget: `constant`, or `cubic`: falls from H, from the end of the warm-up to the end of the window.
        norm: `shared` divides all importance gradients by one second moment instead of each by its own.
        decay: weight decay of the importance.
        floor: cross-attention heads that stay, or `layer` for one in every decoder layer (1; 0 for none).

    Args:
        start: importance before the first update, [H]; drawn from -0.1 to 0.1 if None.
    """
    grid = model.layout.grid
    initial, final = options.get("t", (1.0, 0.1))
    relaxation = "successive-softmax" if options.get("relax") == "succ" else "projection"
    method = METHODS["dsp"].from_config(
        PruningConfig(
            seed=seed, initial_temperature=initial, final_temperature=final, relaxation=relaxation, cooldown_updates=window
        )
    )  # fmt: skip
    if start is None:
        start = (torch.rand(grid.total, device=data.device) * 2 - 1) * _SPREAD_OF_START
    rate = options.get("ilr", _SUM_OF_STEPS / window)
    importance = Importance(start, rate, options.get("norm") == "shared", options.get("decay", 0.0))
    gates = VectorGates(model, data.device)
    for update in range(window):
        kept = kept_at(update, training.warm, window, grid.total, k, options.get("budget", "cubic"))
        gates.vector = method.gates(importance.values, Budget.of_units(kept, grid.total), update)
        training.step(after_backward=importance.step)
    gates.remove()
    return keep_top(grid, importance.values, k, options.get("floor", 1))


class Importance:
    """Importance variables and Adam over them; `shared` divides by the mean of the second moments.

    Args:
        start: [H].
        rate: learning rate, constant.
        decay: decoupled weight decay.
    """

    def __init__(self, start: Tensor, rate: float, shared: bool, decay: float) -> None:
        self.values = start.clone().requires_grad_()
        self.rate, self.shared, self.decay = rate, shared, decay
        self.first, self.second = torch.zeros_like(start), torch.zeros_like(start)
        self.updates = 0

    @torch.no_grad()
    def step(self) -> None:
        """One update by the gradient that the last backward pass has left."""
        gradient = self.values.grad
        assert gradient is not None
        self.updates += 1
        self.first.mul_(0.9).add_(gradient, alpha=0.1)
        self.second.mul_(0.98).addcmul_(gradient, gradient, value=0.02)
        first = self.first / (1 - 0.9**self.updates)
        second = self.second / (1 - 0.98**self.updates)
        if self.shared:
            second = second.mean().expand_as(second)
        self.values.sub_(self.rate * (first / (second.sqrt() + 1e-10) + self.decay * self.values))
        self.values.grad = None
