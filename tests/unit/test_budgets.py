"""A budget as data: of units, and what it refuses to be."""

from __future__ import annotations

import pytest

from fairseq_dsp.units.budget import COUNT, Budget


@pytest.mark.parametrize(("k", "total"), [(0, 0), (0, 5), (3, 5), (5, 5)])
def test_a_budget_of_units_costs_one_a_unit(k, total):
    budget = Budget.of_units(k, total)
    assert (budget.measure, budget.count, budget.total, sum(budget.costs)) == (COUNT, k, total, total)
    assert budget.at(0) == Budget.of_units(0, total)
    assert hash(budget.at(k)) == hash(budget)


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_a_unit_that_costs_nothing_or_no_number_is_refused(cost):
    with pytest.raises(ValueError, match="above 0"):
        Budget(COUNT, 1, (1.0, cost))


def test_marks_meet_a_budget_of_units_exactly():
    budget = Budget.of_units(2, 4)
    assert [budget.is_met_by(marks) for marks in ((1, 0, 1, 0), (1, 1, 1, 0), (0, 0, 0, 1))] == [True, False, False]
