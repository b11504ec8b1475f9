"""A budget for each kind: every choice is that of each kind alone, one after the other."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import many_examples

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods.dsp import DifferentiableSubset, StraightThrough
from fairseq_dsp.units.budget import Budget, SplitBudget
from fairseq_dsp.units.floors import top_k_above_floors
from fairseq_dsp.units.subset import hard_top_k, projected_top_k, relaxed_top_k
from fairseq_dsp.units.weighted import (
    hard_under_budget,
    meets_budget,
    projected_under_budget,
    straight_through_under_budget,
)

SEEDS = st.integers(0, 10**6)


def drawn(seed: int) -> tuple[torch.Tensor, list[tuple[int, int]], SplitBudget]:
    """Densities, K and n of each kind, and the budget."""
    draw = random.Random(seed)
    sizes = [draw.randint(0, 6) for _ in range(draw.randint(2, 3))]
    parts = [(draw.randint(0, n), n) for n in sizes]
    densities = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return densities, parts, SplitBudget.of([Budget.of_units(k, n) for k, n in parts])


def by_kind(densities, parts, choice):
    pieces = densities.split([n for _, n in parts])
    return torch.cat([choice(own, k) for own, (k, _) in zip(pieces, parts, strict=True)])


@given(SEEDS)
@many_examples
def test_every_kind_has_its_number(seed):
    densities, parts, budget = drawn(seed)
    mask = hard_under_budget(densities, budget)
    assert [int(own.sum()) for own in mask.split([n for _, n in parts])] == [k for k, _ in parts]
    assert torch.equal(mask, by_kind(densities, parts, hard_top_k))
    assert torch.equal(mask, straight_through_under_budget(densities, budget))
    assert bool(meets_budget(mask, budget))
    assert budget.is_met_by(mask.tolist())
    assert (budget.total, budget.limit, budget.count) == (len(densities), mask.sum(), mask.sum())


@given(SEEDS)
@many_examples
def test_as_many_units_of_another_kind_do_not_meet_it(seed):
    densities, parts, budget = drawn(seed)
    mask = hard_under_budget(densities, budget)
    (first, n), shifted = parts[0], mask.clone()
    if not (first < n and mask[n:].any()):
        return
    shifted[int((mask[:n] == 0).nonzero()[0])] = 1
    shifted[n + int(mask[n:].nonzero()[0])] = 0
    assert shifted.sum() == mask.sum()
    assert not bool(meets_budget(shifted, budget))
    assert not budget.is_met_by(shifted.tolist())


@pytest.mark.parametrize("temperature", [1e-3, 0.5])
@given(SEEDS)
@many_examples
def test_a_soft_choice_is_each_kinds_own_and_so_is_its_gradient(temperature, seed):
    densities, parts, budget = drawn(seed)
    weights = torch.linspace(-1, 1, len(densities), dtype=torch.float64)
    found = []
    for choose in (
        lambda x: projected_under_budget(x, budget, temperature),
        lambda x: by_kind(x, parts, lambda own, k: projected_top_k(own, k, temperature)),
    ):
        x = densities.clone().requires_grad_()
        mask = choose(x)
        (mask * weights).sum().backward()
        found.append((mask.detach(), x.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_floors_are_met_within_their_kind():
    densities = torch.tensor([3.0, 2.0, 1.0, 0.0, 9.0, 8.0, 7.0])
    budget = SplitBudget.of([Budget.of_units(2, 4), Budget.of_units(1, 3)])
    floors = [([2, 3], 1)]
    assert hard_under_budget(densities, budget, floors).tolist() == [1, 0, 1, 0, 1, 0, 0]
    assert hard_under_budget(densities, budget, floors)[:4].equal(top_k_above_floors(densities[:4], 2, floors))
    later = SplitBudget.of([Budget.of_units(1, 3), Budget.of_units(2, 4)])
    assert hard_under_budget(densities.flip(0), later, [([3, 4], 1)]).tolist() == [0, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("relaxation", ["projection", "successive-softmax"])
def test_methods_draw_once_and_choose_by_kind(relaxation):
    config = PruningConfig(relaxation=relaxation, initial_temperature=0.7, final_temperature=0.7)
    method, importance = DifferentiableSubset.from_config(config), torch.randn(7).double()
    budget = SplitBudget.of([Budget.of_units(2, 4), Budget.of_units(1, 3)])
    gates = method.gates(importance, budget, 5)
    assert gates[:4].sum().item() == pytest.approx(2, abs=1e-6)
    assert gates[4:].sum().item() == pytest.approx(1, abs=1e-6)
    one = method.gates(importance, Budget.of_units(7, 7), 5)
    assert one.shape == gates.shape
    choice = projected_top_k if relaxation == "projection" else relaxed_top_k
    from fairseq_dsp.units.subset import gumbel_noise

    noisy = importance + gumbel_noise(7, 1, 5)  # one draw for all
    assert torch.equal(gates, by_kind(noisy, [(2, 4), (1, 3)], lambda own, k: choice(own, k, 0.7)))


def test_a_falling_budget_falls_in_each_kind():
    config = PruningConfig(budget_schedule="cubic", cooldown_updates=10)
    method = StraightThrough.from_config(config)
    budget = SplitBudget.of([Budget.of_units(2, 4), Budget.of_units(0, 3)])
    assert [part.limit for part in method.budget_at(budget, 0).parts] == [4, 3]
    assert [part.limit for part in method.budget_at(budget, 10).parts] == [2, 0]
    between = method.budget_at(budget, 5)
    alone = [method.budget_at(part, 5) for part in budget.parts]
    assert between.parts == tuple(alone)
