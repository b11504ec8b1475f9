"""The control that every claim needs: heads decided before training, given by the user or drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods.hard_concrete import options_of_hard_concrete


@dataclass(frozen=True)
class Fixed:
    """The model is built with its K heads and trains only those; there is nothing to learn about them."""

    name: ClassVar[str] = "fixed"
    learned: ClassVar[bool] = False
    fixes_at: int | None = None

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        learned_only = (
            "initial_temperature", "final_temperature", "relaxation", "cooldown_updates", "pipelined", "keep_sampling",
        )  # fmt: skip
        return [
            f"{flag(name)} belongs to learned methods: heads that are fixed from the start have none to learn, but it is "
            f"{getattr(config, name)}."
            for name in learned_only
            if getattr(config, name) not in (None, False)
        ] + options_of_hard_concrete(config, cls.name)

    @classmethod
    def from_config(cls, config: PruningConfig) -> Fixed:
        return cls()

    def gates(self, importance: Tensor, kept: int | None, update: int) -> Tensor:
        raise AssertionError("a model with fixed heads has no gates")

    def own_number(self, importance: Tensor) -> int | None:
        return None

    def temperature(self, update: int) -> float | None:
        return None

    def penalty(self, importance: Tensor, update: int) -> Tensor | None:
        return None
