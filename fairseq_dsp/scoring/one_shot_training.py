"""Trains the network of `one_shot` on frozen models (after SMP, Zhang et al., AI Open 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairseq_dsp.errors import Refusal
from fairseq_dsp.scoring.map_features import FEATURES, map_features
from fairseq_dsp.scoring.one_shot import NUMBERS, OneShotScorer, network
from fairseq_dsp.scoring.passes import gated, refuse_other_than_heads
from fairseq_dsp.scoring.subject import Subject
from fairseq_dsp.units.marginals import exact_straight_through_top_k

_UNITS = 16  # of the hidden layer
_LEARNING_RATE = 0.02
_SMALLEST_SCALE = 1e-3  # a feature that never varies over the heads seen must not decide over others'
_CLIP = 1.0


@dataclass(frozen=True)
class Example:
    """A frozen model to learn from.

    Attributes:
        subject: the model; its batches are gone over many times.
        log_probs: a batch's logarithms of the probabilities of all next words, [B, T, words], with gradient.
    """

    subject: Subject
    log_probs: Callable[[Any], Tensor]


def train_one_shot(
    examples: Sequence[Example], steps: int, seed: int, done: Callable[[], Any]
) -> dict[str, tuple[Any, ...]]:
    """The numbers of a network by which the K best heads say what all heads said, whatever K.

        min E KL( p(. | all heads) || p(. | gates g) ),    g = top_K(score + Gumbel),    d score = Cov(z) dg

    Every step draws one model, one of its batches, K from 1 to H - 1 and the noise. The gates are 0 or 1, and their gradient is that of
    SIMPLE's marginals (`units.marginals`). The KL divergence is the mean over target words, in nats. Features are those of a random half of the
    batches, so that the network meets their noise. Adam, learning rate 0.02 that falls to 0, gradients of norm 1 at most.

    Args:
        steps: at least 1.
        seed: of all that is drawn.
        done: called after every step.

    Returns:
        `means`, `scales`, `hidden`, `biases` and `output` of a `ScorerModel`.

    Raises:
        Refusal: a model has fewer than two heads, or its words' probabilities are NaN or infinite.
    """
    draw = np.random.default_rng(seed % 2**64)
    for example in examples:
        refuse_other_than_heads(example.subject, OneShotScorer.name)
        if example.subject.grid.total < 2:
            raise Refusal("a scorer must be trained on models that have two heads or more, but one has a single head.")
    batches = [list(example.subject.batches) for example in examples]
    seen = [
        _features(example.subject, of) for example, of in zip(examples, batches, strict=True)
    ]  # [batches, H, F] each
    over_heads = torch.cat([features.mean(dim=0) for features in seen])
    means, scales = over_heads.mean(dim=0), over_heads.std(dim=0).clamp_min(_SMALLEST_SCALE)
    hidden = nn.Parameter(torch.from_numpy(draw.normal(size=(_UNITS, len(FEATURES)))) / len(FEATURES) ** 0.5)
    biases = nn.Parameter(torch.zeros(_UNITS, dtype=torch.float64))
    output = nn.Parameter(torch.from_numpy(draw.normal(size=_UNITS)) * 0.1)
    parameters = [hidden, biases, output]
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        number = int(draw.integers(len(examples)))
        example, features = examples[number], seen[number]
        batch = batches[number][int(draw.integers(len(features)))]
        half = draw.choice(len(features), size=max(len(features) // 2, 1), replace=False)
        scores = network(features[half].mean(dim=0), means, scales, hidden, biases, output)
        kept = int(draw.integers(1, len(scores)))
        noise = torch.from_numpy(draw.gumbel(size=len(scores)))
        loss = _divergence(example, batch, exact_straight_through_top_k(scores, noise, kept))
        if not bool(torch.isfinite(loss)):
            raise Refusal(
                "a scorer must be trained on models whose words have finite probabilities, but some are NaN or infinite."
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
        schedule.step()
        done()
    found = zip(NUMBERS, (means, scales, *parameters), strict=True)
    return {name: _numbers(value.detach().tolist()) for name, value in found}


def _divergence(example: Example, batch: Any, gates: Tensor) -> Tensor:
    """KL(dense || gated) of the next word, in nats, the mean over the batch's target words."""
    with torch.no_grad():
        dense = example.log_probs(batch).float()
    with gated(example.subject, gates):
        less = example.log_probs(batch).float()
    there = example.subject.words(batch)["decoder"].there
    return (dense.exp() * (dense - less)).sum(dim=2)[there].mean()


def _features(subject: Subject, batches: Sequence[Any]) -> Tensor:
    live = torch.ones(subject.grid.total)
    return torch.stack([map_features(replace(subject, batches=[batch]), live) for batch in batches])


def _numbers(values: list[Any]) -> tuple[Any, ...]:
    return tuple(_numbers(value) if isinstance(value, list) else value for value in values)
