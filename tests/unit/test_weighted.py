"""Choices under unequal costs: the budget met, the slow loop's hard choice, the true derivative, top-K where costs are equal."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import many_examples

from fairseq_dsp.units import weighted
from fairseq_dsp.units.budget import COUNT, Budget
from fairseq_dsp.units.floors import top_k_above_floors
from fairseq_dsp.units.subset import projected_top_k, straight_through_top_k
from fairseq_dsp.units.weighted import (
    hard_under_budget,
    kept_within,
    meets_budget,
    projected_under_budget,
    straight_through_under_budget,
)

TEMPERATURES = [1e-8, 1e-3, 0.1, 1.0, 30.0]
SEEDS = st.integers(0, 10**6)


def drawn(seed: int, most: int = 12) -> tuple[torch.Tensor, Budget]:
    """Densities and a budget whose costs have few values, as those of units do."""
    draw = random.Random(seed)
    n = draw.randint(2, most)
    prices = [draw.randint(1, 40) for _ in range(3)]
    costs = tuple(float(draw.choice(prices)) for _ in range(n))
    densities = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return densities, Budget("macs", draw.randint(0, int(sum(costs))), costs)


def uneven(seed: int) -> tuple[torch.Tensor, Budget]:
    densities, budget = drawn(seed)
    return (densities, budget) if not budget.is_even else uneven(seed + 1)


def by_loop(densities: torch.Tensor, budget: Budget) -> list[float]:
    marks, room = [0.0] * budget.total, budget.limit
    for unit in sorted(range(budget.total), key=lambda unit: (-float(densities[unit]), unit)):
        if budget.costs[unit] <= room:
            marks[unit], room = 1.0, room - budget.costs[unit]
    return marks


@pytest.mark.parametrize("device", ["cpu", "in rounds"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@given(seed=SEEDS)
@many_examples
def test_the_costs_of_a_soft_choice_sum_to_the_budget(device, temperature, seed):
    densities, budget = uneven(seed)
    with pytest.MonkeyPatch.context() as patch:
        if device != "cpu":
            patch.setattr(weighted, "_looked_for", lambda *given: _in_rounds(*given))
        mask = projected_under_budget(densities, budget, temperature)
    assert mask.min() >= 0
    assert mask.max() <= 1
    costs = torch.tensor(budget.costs, dtype=torch.float64)
    assert (costs * mask).sum().item() == pytest.approx(budget.limit, rel=1e-6, abs=1e-6)


def _in_rounds(scores, costs, limit, temperature, low, high):
    """The search as a GPU makes it."""
    for _ in range(weighted._ROUNDS):
        steps = torch.linspace(low, high, weighted._SECTIONS + 1, dtype=scores.dtype)
        sums = (costs * torch.sigmoid((scores - steps.unsqueeze(1) * costs) / temperature)).sum(dim=1)
        above = int((sums >= limit).sum().clamp(1, weighted._SECTIONS)) - 1
        low, high = float(steps[above]), float(steps[above + 1])
    return torch.tensor(0.5 * (low + high), dtype=scores.dtype)


@given(seed=SEEDS)
@many_examples
def test_a_cold_choice_is_the_hard_one_but_for_one_unit_and_what_fits_behind_it(seed):
    densities, budget = uneven(seed)
    mask = projected_under_budget(densities, budget, 1e-9)
    assert int(((mask > 1e-6) & (mask < 1 - 1e-6)).sum()) <= 1
    hard = hard_under_budget(densities, budget)
    assert bool((hard[mask >= 1 - 1e-6] == 1).all())


@given(seed=SEEDS)
@many_examples
def test_the_hard_choice_is_that_of_a_loop_and_no_other_unit_fits(seed):
    densities, budget = drawn(seed)
    densities = (densities * 2).round() / 2  # ties
    mask = hard_under_budget(densities, budget)
    if not budget.is_even:
        assert mask.tolist() == by_loop(densities, budget)
    assert bool(meets_budget(mask, budget))
    assert budget.is_met_by(mask.tolist())
    if mask.any():
        assert not bool(meets_budget(torch.where(mask.cumsum(0) == 1, 0.0, mask), budget))


@given(seed=SEEDS)
@many_examples
def test_floors_come_first_and_change_nothing_where_they_are_met(seed):
    densities, budget = uneven(seed)
    half = list(range(budget.total // 2))
    floors = [(half, min(1, len(half)))]
    cheapest = max(budget.costs)
    budget = budget.at(max(budget.limit, cheapest))
    mask = hard_under_budget(densities, budget, floors)
    assert kept_within(mask.tolist(), budget, floors)
    free = hard_under_budget(densities, budget)
    if (
        kept_within(free.tolist(), budget, floors)
        and free[max(half, key=lambda unit: float(densities[unit]), default=0)]
    ):
        assert torch.equal(mask, free)  # fmt: skip


def test_a_floor_that_costs_more_than_the_budget_is_an_error():
    with pytest.raises(ValueError, match="floors"):
        hard_under_budget(torch.zeros(3), Budget("macs", 1.0, (2.0, 3.0, 1.0)), [([0, 1], 1)])


@given(seed=SEEDS, temperature=st.sampled_from([0.05, 0.5, 3.0]))
@many_examples
def test_the_derivative_is_the_true_one(seed, temperature):
    densities, budget = uneven(seed)
    if 0 < budget.limit < sum(budget.costs):
        assert torch.autograd.gradcheck(
            lambda values: projected_under_budget(values, budget, temperature), densities.requires_grad_(), atol=1e-4
        )


@given(seed=SEEDS, shift=st.sampled_from([-3.0, 0.5, 7.0]))
@many_examples
def test_a_constant_added_to_all_importance_changes_nothing(seed, shift):
    densities, budget = uneven(seed)
    for choose in (lambda values: projected_under_budget(values, budget, 0.3), lambda values: hard_under_budget(values, budget)):  # fmt: skip
        torch.testing.assert_close(choose(densities), choose(densities + shift), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("cost", [1.0, 257.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=SEEDS, k=st.integers(0, 9))
@many_examples
def test_equal_costs_are_todays_choice_bit_for_bit(cost, dtype, seed, k):
    values = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    budget = Budget(COUNT if cost == 1 else "parameters", k * cost + (0 if cost == 1 else 11), (cost,) * 9)
    for temperature in TEMPERATURES:
        assert torch.equal(projected_under_budget(values, budget, temperature), projected_top_k(values, k, temperature))
    assert torch.equal(hard_under_budget(values, budget), top_k_above_floors(values, k, ()))
    assert torch.equal(straight_through_under_budget(values, budget), straight_through_top_k(values, k))


@given(seed=SEEDS, k=st.integers(1, 8))
@many_examples
def test_the_search_for_unequal_costs_finds_what_that_for_equal_ones_finds(seed, k):
    values = torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ones = torch.ones(9, dtype=torch.float64)
    for temperature in (0.01, 0.3, 4.0):
        found = weighted._Projection.apply(values, ones, float(k), temperature)
        torch.testing.assert_close(found, projected_top_k(values, k, temperature), rtol=1e-7, atol=1e-9)


def test_a_straight_through_choice_passes_its_gradient_on():
    values = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    mask = straight_through_under_budget(values, Budget("macs", 3.0, (3.0, 1.0, 2.0)))
    assert mask.tolist() == [1, 0, 0]
    (mask * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert values.grad.tolist() == [1, 2, 3]
