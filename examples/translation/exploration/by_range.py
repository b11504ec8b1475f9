"""One training for every K of a range (`--unpruned-heads 6..72`): an order of heads, of which any K can be cut out at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods import METHODS
from fairseq_dsp.methods.nested import Nested
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.modules.surgery import install_gates, remove_gates
from fairseq_dsp.plugin.importance_start import importance_of
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.floors import floors_of
from fairseq_dsp.units.layout import Layout

from .training import Training

_REACH = 25.0  # learning rate of the importance times window, as `--recipe auto` has it


def learn_range(
    model: DspTransformerModel,
    training: Training,
    seed: int,
    judged: Sequence[int],
    window: int,
    options: dict[str, Any],
    scores: Tensor | None = None,
) -> list[Layout]:
    """Trains the model to the end for every number of heads from the smallest to the largest of `judged`.

    Args:
        training: made before, so that it moves the weights alone.
        judged: the numbers of heads whose layouts are wanted.
        window: updates until the order is fixed.
        options: of ranges, as `PruningConfig` names them.
        scores: [H], whose order stays from the first update on; None for one that is learned in the window.

    Returns:
        the layout of every number, one of its heads in cross-attention; the model has all heads and no gates.
    """
    grid = model.layout.grid
    config = PruningConfig(
        head_selection="dsp", unpruned_heads=f"{min(judged)}..{max(judged)}", seed=seed, cooldown_updates=window,
        relaxation="projection", initial_temperature=1.0, final_temperature=0.1, **options,
    )  # fmt: skip
    nested = Nested.from_config(config)
    assert nested is not None
    gates = NestedGates(grid, nested, METHODS["dsp"].from_config(config), floors_of(grid, 1))
    install_gates(model, grid, gates)
    if scores is not None:
        with torch.no_grad():
            gates.importance.copy_(importance_of(scores))
    optimizer = torch.optim.Adam(gates.parameters(), _REACH / window, betas=(0.9, 0.98))
    for update in range(training.total):
        gates.set_num_updates(update)
        training.step(after_backward=None if gates.is_fixed or scores is not None else optimizer.step)
        optimizer.zero_grad(set_to_none=True)
    layouts = []
    for count in judged:
        with gates.at(count):
            layouts.append(gates.layout())
    remove_gates(model, grid)
    return layouts
