"""A learned threshold a site (after MLPruning, Yao et al. 2021): the control for one choice over all sites."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fairseq_dsp.config import AUTO, PruningConfig, flag
from fairseq_dsp.methods.method import Method
from fairseq_dsp.methods.schedule import LEARNED_OPTIONS, cooldown_of
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.weighted import relative_costs

THRESHOLD_PENALTY = 10.0


@dataclass(frozen=True)
class SiteThreshold(Method):
    """Of every site s the units of the highest importance are on, a share sigmoid(theta_s) of them that is learned.

        g_u = 1 where u is among the  round(sigmoid(theta_s) · n_s)  highest of its site's n_s, else 0
        loss per target token = cross entropy + threshold_penalty · max(0, remain - target)² / (1 - target)²
        remain = sum_s n_s sigmoid(theta_s) / sum_s n_s,        target = K/H, or `threshold_target`

    Backwards a gate is the importance of its unit plus the share of its site. So a score has the gate's gradient, whether its unit is on or
    off, and theta_s the sum over its site times sigmoid'(theta_s), the same scale as in the penalty. All units are on at first. Under a
    budget of unequal costs units count in remain as they cost; of a budget for each kind there is a penalty for each. Units are ranked by how far they are above the threshold of their site,
    sigmoid(theta_s) - (place + 1/2) / n_s, which is above 0 for those that are on: K are kept by moving all thresholds alike,
    and `auto` keeps as many as are on.

    After Yao et al. (2021), from their released code, of which none is taken. Theirs are the share, the straight-through scores and a penalty
    on what remains above a target. Not as there: a site may become empty; theta has its derivative in both terms; importance is not equal
    at the start; the pressure is smooth in place of two levels; heads and groups of neurons are units, but rows and blocks are not
    (design note 17). A teacher is `--teacher`.
    """

    name: ClassVar[str] = "site-threshold"
    options: ClassVar[tuple[str, ...]] = (*LEARNED_OPTIONS, "threshold_penalty", "threshold_target")
    finds_number: ClassVar[bool] = True
    takes_costs: ClassVar[bool] = True
    has_window: ClassVar[bool] = True
    reach: ClassVar[float | None] = 25.0
    threshold_penalty: float
    target: float | None
    fixes_at: int | None
    sites: tuple[int, ...] = ()

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        found, penalty, target = super().objections(config), config.threshold_penalty, config.threshold_target
        if penalty is not None and not 0 <= penalty < float("inf"):
            found.append(f"{flag('threshold_penalty')} must be a number of at least 0, but is {penalty}.")
        if target is not None and not 0 <= target < 1:
            found.append(f"{flag('threshold_target')} must be at least 0 and below 1, but is {target}.")
        if target is None and config.unpruned_heads == AUTO:
            found.append(f"{flag('threshold_target')} must be given with `--unpruned-heads {AUTO}`, but is not.")
        return found

    @classmethod
    def from_config(cls, config: PruningConfig) -> SiteThreshold:
        penalty = THRESHOLD_PENALTY if config.threshold_penalty is None else config.threshold_penalty
        return cls(penalty, config.threshold_target, None if config.keep_sampling else cooldown_of(config))

    def of_sites(self, sizes: Sequence[int]) -> SiteThreshold:
        return replace(self, sites=tuple(size for size in sizes if size))

    def variables(self) -> dict[str, Tensor]:
        """theta of every site that has units: just all of these are on, half a step from the first one's end."""
        return {"thresholds": torch.logit(1.0 - 0.25 / torch.tensor(self.sites, dtype=torch.float32))}

    def begin_update(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> None:
        """A training that starts on the state of another one starts with its own thresholds."""
        if update == 0:
            own["thresholds"].copy_(self.variables()["thresholds"])

    def budget_at(self, budget: Budget | None, update: int) -> None:
        """No budget says how many units are on before they are fixed."""
        return None

    def gates(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor:
        through = importance + self._by_unit(own["thresholds"].sigmoid())
        return self._on(importance, **own).to(through.dtype) + (through - through.detach())

    def ranking(self, importance: Tensor, **own: Tensor) -> Tensor:
        shares, sizes = self._by_unit(own["thresholds"].detach().sigmoid()), _units(self.sites, importance.device)[1]
        return shares.to(importance.dtype) - (self._places(importance) + 0.5) / sizes.to(importance.dtype)

    def own_number(self, importance: Tensor, **own: Tensor) -> int:
        return int(self._on(importance, **own).sum())

    def penalty(self, importance: Tensor, budget: Budget | None, update: int, **own: Tensor) -> Tensor | None:
        shares = self._by_unit(own["thresholds"].sigmoid())
        if self.target is not None or budget is None:
            whole = None if budget is None or budget.parts else budget
            excesses = [self._excess(shares, self.target or 0.0, whole)]
        else:
            parts = budget.parts or (budget,)
            of_parts = zip(shares.split([part.total for part in parts]), parts, strict=True)
            excesses = [self._excess(own_shares, _share_of(part), part) for own_shares, part in of_parts]
        pressing = [excess.square() for excess in excesses if excess is not None]
        return self.threshold_penalty * torch.stack(pressing).sum() if pressing else None

    def _excess(self, shares: Tensor, target: float, budget: Budget | None) -> Tensor | None:
        if not len(shares) or target >= 1:
            return None
        if budget is not None and not budget.is_even:
            shares = relative_costs(budget, shares) * shares
        return (shares.mean() - target).clamp_min(0.0) / (1.0 - target)

    def _on(self, importance: Tensor, **own: Tensor) -> Tensor:
        """Which units are on: [H] bool."""
        return self.ranking(importance, **own) > 0

    def _places(self, importance: Tensor) -> Tensor:
        """How many units of its site stand before each: [H]. Of equal ones the lower index stands first."""
        places = [torch.argsort(torch.argsort(-site, stable=True)) for site in importance.detach().split(self.sites)]
        return torch.cat(places) if places else importance.detach()

    def _by_unit(self, of_sites: Tensor) -> Tensor:
        """A site's number for each of its units: [sites] -> [H]."""
        return of_sites.index_select(0, _units(self.sites, of_sites.device)[0])


def _share_of(budget: Budget) -> float:
    return budget.limit / max(sum(budget.costs), 1)


@functools.lru_cache(maxsize=8)
def _units(sites: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of every unit the number of its site, and how many units that has: [H] each. Kept, for to bring them to a device is to wait."""
    with torch.inference_mode(False):
        sizes = torch.tensor(sites, dtype=torch.long)
        return torch.arange(len(sites)).repeat_interleave(sizes).to(device), sizes.repeat_interleave(sizes).to(device)
