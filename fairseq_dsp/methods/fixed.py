"""The control that every claim needs: heads decided before training, given by the user or drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods.method import Method
from fairseq_dsp.units.budget import Budget


@dataclass(frozen=True)
class Fixed(Method):
    """The model is built with its K heads and trains only those; there is nothing to learn about them."""

    name: ClassVar[str] = "fixed"
    takes_costs: ClassVar[bool] = True
    learned: ClassVar[bool] = False
    fixes_at: int | None = None

    @classmethod
    def from_config(cls, config: PruningConfig) -> Fixed:
        return cls()

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        raise AssertionError("a model with fixed heads has no gates")
