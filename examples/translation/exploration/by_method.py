"""Choices by methods of the package that need more than gates of a vector: variables of their own, a penalty, or norms that are measured."""

from __future__ import annotations

from typing import Any

import torch

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods import METHODS
from fairseq_dsp.modules.gates import HeadGates
from fairseq_dsp.modules.surgery import install_gates, remove_gates
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.floors import floors_of
from fairseq_dsp.units.layout import Layout

from .training import Training

_REACH = 25.0  # learning rate of the importance times window, where the method asks for none


def learn_by(
    model: DspTransformerModel, training: Training, seed: int, k: int, window: int, name: str, options: dict[str, Any]
) -> Layout:
    """Trains weights and what the method learns for `window` updates; the K heads that it would fix then, one of them in cross-attention.

    Args:
        training: made before, so that it moves the weights alone.
        name: of `--head-selection`.
        options: of the method, as `PruningConfig` names them.
    """
    grid = model.layout.grid
    config = PruningConfig(head_selection=name, unpruned_heads=k, seed=seed, cooldown_updates=window, **options)
    method = METHODS[name].from_config(config)
    gates = HeadGates(grid, Budget.of_units(k, grid.total), method, floors_of(grid, 1))
    install_gates(model, grid, gates)
    rate = (METHODS[name].reach or _REACH) / window
    optimizer = torch.optim.Adam(gates.parameters(), rate, betas=(0.9, 0.98))
    for update in range(window):
        gates.set_num_updates(update)
        training.step(after_backward=optimizer.step, penalty=gates.penalty)
        optimizer.zero_grad(set_to_none=True)
        gates.end_update()
    layout = gates.layout()
    remove_gates(model, grid)
    return layout
