"""Importance by the size of a unit's parameters: what a user without data would try."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.modules.slicing import owned_by_unit
from fairseq_dsp.units.kinds import KIND_OF

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject


class MagnitudeScorer:
    """The Euclidean norm of all parameters that go with the unit.

        head:              score_h = sqrt(|W_q^h|^2 + |W_k^h|^2 + |W_v^h|^2 + |b_q^h|^2 + |b_k^h|^2 + |b_v^h|^2 + |W_o^h|^2)
        group of neurons:  score_j = sqrt(|W_1^j|^2 + |b_1^j|^2 + |W_2^j|^2)

    W_q^h, W_k^h, W_v^h are the head's d rows, W_o^h its d columns, W_1^j the group's g rows of fc1, W_2^j its g columns of fc2, |.|
    Frobenius norms. Not normalised by site. Heads and groups have different numbers of parameters that do different things: scores of
    one kind say nothing of the other's.
    """

    name: ClassVar[str] = "magnitude"
    comparable: ClassVar[bool] = False
    reads_data: ClassVar[bool] = False
    takes_seed: ClassVar[bool] = False

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        scores = torch.zeros(subject.grid.total, dtype=torch.float64)
        for site, span in subject.grid.spans():
            if span.stop > span.start:
                for owned in owned_by_unit(subject.modules[site], KIND_OF[site.stack].slices(subject.width(site))):
                    scores[span] += owned.double().square().sum(dim=1).cpu()
        return scores.sqrt()
