"""No importance at all: the control that every scorer has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject


class RandomScorer:
    """Uniform draws from 0 to 1, whatever the kind of the unit, a function of the seed alone. Of one seed, smaller budgets keep subsets of larger ones."""

    name: ClassVar[str] = "random"
    comparable: ClassVar[bool] = True
    reads_data: ClassVar[bool] = False
    takes_seed: ClassVar[bool] = True

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        return torch.from_numpy(np.random.default_rng(subject.seed % 2**64).random(subject.grid.total))
