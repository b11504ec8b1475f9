"""Scores by a network that was trained on another model (`one-shot`), and saw nothing of the one that is cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fairseq_dsp.api.score_work import subject_of
from fairseq_dsp.checkpoints.batches import log_probs_of
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.scoring.map_features import map_features
from fairseq_dsp.scoring.one_shot import network
from fairseq_dsp.scoring.one_shot_training import Example, train_one_shot

from .data import Batch

_STEPS = 200


def scores_by_another(
    model: DspTransformerModel,
    batches: Sequence[Batch],
    taught: DspTransformerModel,
    lessons: Sequence[Batch],
    seed: int,
) -> Tensor:
    """Scores of the heads of a model, [H] float64 on the CPU.

    Args:
        batches: that the model is scored on.
        taught: the model that the network is trained on; it is frozen.
        lessons: batches of that training.
        seed: of what is drawn in it.
    """
    example = Example(subject_of(taught.requires_grad_(False), lessons, seed), partial(log_probs_of, taught))
    learned = train_one_shot([example], _STEPS, seed, lambda: None)
    numbers = {name: torch.tensor(values, dtype=torch.float64) for name, values in learned.items()}
    subject = subject_of(model, batches, seed)
    return network(map_features(subject, torch.ones(subject.grid.total)), **numbers)
