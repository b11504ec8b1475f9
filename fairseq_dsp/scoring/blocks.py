"""Scores of blocks of weight matrices, for the study of block pruning (after MLPruning, Yao et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_dsp.units.blocks import by_block

SCORERS = ("magnitude", "gradient")


def score_blocks(
    matrices: Mapping[str, nn.Parameter], block: int, scorer: str, batches: Iterable[Any], loss: Callable[[Any], Tensor]
) -> dict[str, Tensor]:
    """A number for every block b of every matrix W: [R/B, C/B] by name.

        magnitude:  |W_b| / B                                  (root mean square of its numbers)
        gradient:   E_batch | sum_ij  W_ij dL/dW_ij |,  over ij in b     (what its removal changes, to first order)

    The second is the criterion of Molchanov et al. (2017), L the mean loss of a batch's sentences. Yao et al. (2021) learn scores of blocks;
    these read them off a finished model.

    Args:
        matrices: that divide into blocks.
        loss: of a batch, a number a sentence, [B], with gradient.
    """
    if scorer == "magnitude":
        with torch.no_grad():
            return {name: by_block(w.double(), block).square().mean(dim=(2, 3)).sqrt() for name, w in matrices.items()}
    for weight in matrices.values():
        weight.requires_grad_(True)  # those of an encoder that nothing reads, whose derivative is 0, are frozen
    found = {name: w.new_zeros(w.size(0) // block, w.size(1) // block).double() for name, w in matrices.items()}
    count = 0
    for batch in batches:
        derivatives = torch.autograd.grad(loss(batch).mean(), [*matrices.values()], materialize_grads=True)
        for (name, weight), derivative in zip(matrices.items(), derivatives, strict=True):
            changes = by_block((weight.detach() * derivative).double(), block)
            found[name] += changes.sum(dim=(2, 3)).abs()
        count += 1
    return {name: total / max(count, 1) for name, total in found.items()}
