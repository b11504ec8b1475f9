"""Differentiable subset pruning (Li, Cotterell and Sachan, TACL 2021) and its straight-through form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods.method import noise_for
from fairseq_dsp.methods.schedule import LEARNED_OPTIONS, SCHEDULE_OPTIONS, Scheduled, cooldown_of
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.subset import annealed_temperature, gumbel_noise, projected_top_k, relaxed_top_k
from fairseq_dsp.units.weighted import in_parts, projected_under_budget, straight_through_under_budget

# What `--relaxation` takes; the first is the paper's, and of units of equal cost alone.
PROJECTION = "projection"
RELAXATIONS = {"successive-softmax": relaxed_top_k, PROJECTION: projected_top_k}

# The paper's recipe for IWSLT14 (its repository's README).
INITIAL_TEMPERATURE, FINAL_TEMPERATURE = 0.1, 1e-8


@dataclass(frozen=True)
class DifferentiableSubset(Scheduled):
    """Gates are a relaxed sample of K heads whose temperature falls until the sample is hard.

        g = relaxed_top_k(w + Gumbel(seed, update), K, t(update))        (Li et al. 2021)

    `--relaxation projection` takes another relaxation of the same sample, and is also for units of unequal costs. The noise is one draw an update. When the cooldown
    is over the K most important heads are fixed, unless the paper's endless sampling is asked for.
    """

    name: ClassVar[str] = "dsp"
    takes_costs: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = (
        *LEARNED_OPTIONS, *SCHEDULE_OPTIONS, "initial_temperature", "final_temperature", "relaxation",
    )  # fmt: skip
    # design note 11: at these temperatures the projection's gradient is neither biased nor lost in noise
    recipe: ClassVar[Mapping[str, Any]] = {
        "relaxation": "projection",
        "initial_temperature": 1.0,
        "final_temperature": 0.1,
    }
    seed: int
    initial_temperature: float
    final_temperature: float
    fixes_at: int | None
    relaxation: str

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        initial, final = _temperatures(config)
        found = super().objections(config)
        if config.relaxation is not None and config.relaxation not in RELAXATIONS:
            found.append(f"{flag('relaxation')} must be one of {', '.join(RELAXATIONS)}, but is {config.relaxation}.")
        for name, value in (("initial_temperature", initial), ("final_temperature", final)):
            if not 0 < value < float("inf"):
                found.append(f"{flag(name)} must be a number above 0, but is {value}.")
        if 0 < initial < final < float("inf"):
            found.append(f"{flag('final_temperature')} must be at most the initial one ({initial}), but is {final}.")
        return found

    @classmethod
    def from_config(cls, config: PruningConfig) -> DifferentiableSubset:
        initial, final = _temperatures(config)
        relaxation = config.relaxation or next(iter(RELAXATIONS))
        fixes_at = None if config.keep_sampling else cooldown_of(config)
        return cls(*cls.schedule_of(config), config.seed, initial, final, fixes_at, relaxation)

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        assert budget is not None
        noise = noise_for(importance, gumbel_noise, self.seed, update)
        if self.relaxation == PROJECTION:
            return projected_under_budget(importance + noise, budget, self.temperature(update))
        if budget.parts:
            return in_parts(lambda own, part, _: self._successive(own, part, update), importance + noise, budget)
        return self._successive(importance + noise, budget, update)

    def _successive(self, scores: Tensor, budget: Budget, update: int) -> Tensor:
        return relaxed_top_k(scores, budget.count, self.temperature(update))

    def temperature(self, update: int) -> float:
        return annealed_temperature(update, self.initial_temperature, self.final_temperature, self.cooldown_updates)


@dataclass(frozen=True)
class StraightThrough(Scheduled):
    """Gates are the hard choice by importance, the top K where costs are equal; the backward pass takes them for the importance itself."""

    name: ClassVar[str] = "ste"
    takes_costs: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = (*LEARNED_OPTIONS, *SCHEDULE_OPTIONS)
    fixes_at: int | None

    @classmethod
    def from_config(cls, config: PruningConfig) -> StraightThrough:
        return cls(*cls.schedule_of(config), None if config.keep_sampling else cooldown_of(config))

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        assert budget is not None
        return straight_through_under_budget(importance, budget)


def _temperatures(config: PruningConfig) -> tuple[float, float]:
    initial = INITIAL_TEMPERATURE if config.initial_temperature is None else config.initial_temperature
    final = FINAL_TEMPERATURE if config.final_temperature is None else config.final_temperature
    return initial, final
