"""`Method`: what a way of choosing heads is asked for. Subclassed by every other file of this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from fairseq_dsp.config import PruningConfig, flag


class Method(ABC):
    """A way of choosing heads while training; a frozen dataclass of its options' values.

    Attributes:
        name: what `--head-selection` takes.
        options: those of `PruningConfig` that belong to methods and that this one takes; any other is refused.
        learned: whether importance variables are trained; if not, the layout is decided when the model is built.
        finds_number: whether it can tell how many heads to keep (`--unpruned-heads auto`, `own_number`).
        fixes_at: number of updates after which the heads are fixed; None where they never are.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    learned: ClassVar[bool] = True
    finds_number: ClassVar[bool] = False
    fixes_at: int | None

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        """Sentences on values of the options that the method takes; empty if all are fit. Subclasses add theirs."""
        cooldown = config.cooldown_updates
        if "cooldown_updates" not in cls.options or cooldown is None or cooldown >= 0:
            return []
        return [f"{flag('cooldown_updates')} must be at least 0, but is {cooldown}."]

    @classmethod
    @abstractmethod
    def from_config(cls, config: PruningConfig) -> Method:
        """The method with the options' values, defaults filled in."""

    @abstractmethod
    def gates(self, importance: Tensor, kept: int | None, update: int) -> Tensor:
        """Gates of a training update before the heads are fixed: [H], with gradient to the importance.

        `kept` is K; None for `--unpruned-heads auto`.
        """

    def own_number(self, importance: Tensor) -> int | None:
        """How many heads the method itself would keep; None where it has no say."""
        return None

    def variables(self) -> dict[str, Tensor]:
        """What is trained beside the importance, in its group: initial values by their name in the state. Few have any."""
        return {}

    def records(self) -> dict[str, Tensor]:
        """What the method notes beside the importance and no optimizer touches: initial values, floats, by name."""
        return {}

    def begin_update(self, importance: Tensor, update: int, **own: Tensor) -> None:
        """Before the gates of an update are drawn: may change the importance and what is its own, in place.

        Called for every micro-batch of an update, in every process; a second call must change nothing. `own` are
        `variables` and `records`, all of which the checkpoint carries.
        """
        return None

    def temperature(self, update: int) -> float | None:
        """What is annealed, for the log; None where nothing is."""
        return None

    def penalty(self, importance: Tensor, update: int, **own: Tensor) -> Tensor | None:
        """Added to the loss per target token (or per sentence, with `--sentence-avg`); None for none. `own` as above."""
        return None
