"""`Method`: what a way of choosing heads is asked for. Subclassed by every other file of this folder."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.units.budget import Budget


class Method(ABC):
    """A way of choosing heads while training; a frozen dataclass of its options' values.

    Attributes:
        name: what `--head-selection` takes.
        options: those of `PruningConfig` that belong to methods and that this one takes; any other is refused. A training that
            goes on compares them with those that its checkpoint was trained with.
        learned: whether importance variables are trained; if not, the layout is decided when the model is built.
        finds_number: whether it can tell how many heads to keep (`--unpruned-heads auto`, `own_number`).
        has_window: whether heads are chosen within a window of the training that a recipe can derive (`recipe.derive`).
        recipe: values that `--recipe auto` gives to options whatever the length of the training.
        reach: importance learning rate times window that `--recipe auto` aims at; None where the learning rate is a matter of its own.
        takes_costs: whether its budget may be of units of unequal costs, or one for each kind.
        measures: whether it is told the norms of what units add to the residual stream, and ranks units by them. Nothing moves the
            importance then.
        norm: the form of these norms, one of `units.norms.NORMS`; None where none are measured.
        fixes_at: number of updates after which the heads are fixed; None where they never are.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    learned: ClassVar[bool] = True
    finds_number: ClassVar[bool] = False
    takes_costs: ClassVar[bool] = False
    has_window: ClassVar[bool] = False
    recipe: ClassVar[Mapping[str, Any]] = {}
    reach: ClassVar[float | None] = None
    measures: ClassVar[bool] = False
    fixes_at: int | None
    norm: str | None = None

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        """Sentences on values of the options that the method takes; empty if all are fit. A subclass adds sentences on its own options."""
        cooldown = config.cooldown_updates
        if "cooldown_updates" not in cls.options or cooldown is None or cooldown >= 0:
            return []
        return [f"{flag('cooldown_updates')} must be at least 0, but is {cooldown}."]

    @classmethod
    @abstractmethod
    def from_config(cls, config: PruningConfig) -> Method:
        """The method with the options' values, defaults filled in."""

    def of_sites(self, sizes: Sequence[int]) -> Method:
        """The method for a model whose sites have so many units each, in the flat order; few need to know."""
        return self

    @abstractmethod
    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        """Gates of a training update before the heads are fixed: [H], with gradient to the importance.

        `budget` is what the heads that are on at this update cost (`budget_at`); None for `--unpruned-heads auto`. `own` are
        `variables` and `records`.
        """

    def ranking(self, importance: Tensor, **own: Tensor) -> Tensor:
        """What heads are ranked by when some are kept, the larger the longer: [H]; the importance where nothing else is said."""
        return importance

    def budget_at(self, budget: Budget | None, update: int) -> Budget | None:
        """What the heads that are on at an update cost before they are fixed: the budget, where no schedule says otherwise.

        Args:
            budget: of the deployed model; None for `--unpruned-heads auto`.
        """
        return budget

    def own_number(self, importance: Tensor, **own: Tensor) -> int | None:
        """How many heads the method itself would keep; None where it has no say."""
        return None

    def variables(self) -> dict[str, Tensor]:
        """What is trained beside the importance, in its group: initial values by their name in the state. Few have any."""
        return {}

    def records(self) -> dict[str, Tensor]:
        """What the method notes beside the importance and no optimizer touches: initial values, floats, by name."""
        return {}

    def begin_update(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> None:
        """Before the gates of an update are drawn: may change the importance and what is its own, in place.

        Called for every micro-batch of an update, in every process; a second call must change nothing. `budget` is that of
        the deployed model. `own` are `variables` and `records`, all of which the checkpoint carries.
        """
        return None

    def note(self, norms: Tensor, seen: Tensor, **own: Tensor) -> None:
        """After an update, of a method that `measures`: may change `own` in place.

        Args:
            norms: [H], the mean norm of what every unit has added to the residual stream, over the update's positions in all processes.
            seen: [H] bool, whether there were any.
        """
        return None

    def temperature(self, update: int) -> float | None:
        """What is annealed, for the log; None where nothing is."""
        return None

    def penalty(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor | None:
        """Added to the loss per target token (or per sentence, with `--sentence-avg`); None for none. Others as above.

        `own` of a method that `measures` also has `norms`, if a pass has measured any: [H], the mean of every unit over the positions of
        the micro-batch, with gradient to the weights.
        """
        return None


def noise_for(importance: Tensor, noise: Callable[[int, int, int], Tensor], seed: int, update: int) -> Tensor:
    """Noise in the importance's precision and on its device; the micro-batches of an update share one tensor.

    Args:
        importance: [n].
        noise: a function of count, seed and update, such as `subset.gumbel_noise`.
        seed: of the draw.
        update: of the draw.

    Returns:
        tensor [n], which nobody may change.
    """
    return _noise_there(noise, importance.numel(), seed, update, importance.dtype, importance.device)


@functools.lru_cache(maxsize=2)
def _noise_there(
    noise: Callable[[int, int, int], Tensor],
    count: int,
    seed: int,
    update: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    with torch.inference_mode(False):
        drawn = noise(count, seed, update).to(dtype)
        # pinned, or the host would wait until the device has come to the copy
        return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)
