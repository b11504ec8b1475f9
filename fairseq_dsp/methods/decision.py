"""Which heads importance and marks stand for: a function of numbers alone. Called by `gates` and by who reads a checkpoint without a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fairseq_dsp.methods.method import Method
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.floors import Floors, fewest, top_k_above_floors
from fairseq_dsp.units.weighted import hard_under_budget, meets_budget


def decided(
    method: Method,
    importance: Tensor,
    fixed_mask: Tensor,
    budget: Budget | None,
    floors: Floors,
    own: Mapping[str, Tensor],
) -> Tensor:
    """The heads that evaluation and rewriting keep, within the budget where one was given, exactly K where costs are equal: [H], 0/1, no gradient.

    Args:
        importance: [H].
        fixed_mask: [H], the chosen heads once they are fixed; anything but marks that meet the budget before.
        budget: of the deployed model; None for the number that the method finds itself.
        floors: groups of heads of which some must stay, whatever their importance.
        own: the method's variables and records.
    """
    fixed = fixed_mask.detach()
    # Anything but exact marks (an averaged state) falls back on the importance, which decided them. The device answers
    # its own question: to read the answer would be to wait for it.
    marked = ((fixed == 0) | (fixed == 1)).all()
    if budget is not None:
        marked = marked & meets_budget(fixed, budget)
    return torch.where(marked, fixed, most_important(method, importance, budget, floors, own))


def most_important(
    method: Method, importance: Tensor, budget: Budget | None, floors: Floors, own: Mapping[str, Tensor]
) -> Tensor:
    """The most important heads: those that the budget buys, or as many as the method finds right. Arguments as of `decided`."""
    ranking = method.ranking(importance, **own)
    if budget is not None:
        return hard_under_budget(ranking, budget, floors)
    own_number = method.own_number(importance, **own)
    assert own_number is not None  # `objections_to_method` has asked
    return top_k_above_floors(ranking, max(own_number, fewest(floors)), floors)
