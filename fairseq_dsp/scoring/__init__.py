"""How much each unit of a finished model matters: one file a scorer, found here by the name that `--scorer` takes.

Called by the `score` command. A scorer sees sublayers, batches and a loss, and nothing of fairseq. Adding one: write its
file, add its class to `_CLASSES`.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.scoring.fisher import FisherScorer
from fairseq_dsp.scoring.gradient import GradientScorer
from fairseq_dsp.scoring.joint_fisher import JointFisherScorer
from fairseq_dsp.scoring.magnitude import MagnitudeScorer
from fairseq_dsp.scoring.random import RandomScorer
from fairseq_dsp.scoring.subject import Subject


class Scorer(Protocol):
    """A way of scoring units.

    Attributes:
        name: what `--scorer` takes.
        comparable: whether scores of different kinds may be compared, so that one budget may be spent on all of them.
        reads_data: whether the scores depend on sentences, and on which units are left.
        takes_seed: whether something is drawn, the sentences or the scores.
    """

    name: ClassVar[str]
    comparable: ClassVar[bool]
    reads_data: ClassVar[bool]
    takes_seed: ClassVar[bool]

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        """The units' scores: [n] float64; larger matters more.

        Args:
            live: [n], 1 for units that are there, 0 for those removed so far, whose scores mean nothing.
        """


_CLASSES: tuple[type[Scorer], ...] = (GradientScorer, FisherScorer, JointFisherScorer, MagnitudeScorer, RandomScorer)
SCORERS = {scorer.name: scorer for scorer in _CLASSES}


def finite_scores(scorer: Scorer, subject: Subject, live: Tensor) -> Tensor:
    """The units' scores: [n] float64.

    Args:
        live: see `Scorer.score`.

    Raises:
        Refusal: some are NaN or infinite, which no order of units can be made of.
    """
    scores = scorer.score(subject, live)
    if not bool(torch.isfinite(scores).all()):
        left = f"with {int(live.sum())} of {subject.grid.total} {subject.grid.noun} left"
        raise Refusal(f"the scores of `--scorer {scorer.name}` must be finite, but are NaN or infinite {left}.")
    return scores


def removal_order(scorer: Scorer, subject: Subject, step: int) -> tuple[Tensor, list[int]]:
    """Removes units one after the other, the least important first, scoring anew after every `step` of them.

    With `step` >= n this is the order of one scoring: what `hard_top_k` keeps, this removes last.

    Args:
        step: at least 1.

    Returns:
        the scores of the whole model, [n] float64, and all units in the order of their removal.

    Raises:
        Refusal: scores that are not finite, in any round.
    """
    live = torch.ones(subject.grid.total)
    order: list[int] = []
    first = scores = finite_scores(scorer, subject, live)
    while True:
        left = [unit for unit in range(subject.grid.total) if live[unit]]
        # ties: the lower index is kept
        order += sorted(left, key=lambda unit, by=scores: (float(by[unit]), -unit))[:step]
        if len(left) <= step:
            return first, order
        live[order] = 0
        scores = finite_scores(scorer, subject, live)
