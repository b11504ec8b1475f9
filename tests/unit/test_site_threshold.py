"""The method `site-threshold`: gates, gradients and penalty against loops over sites, its own number, and exactly a budget."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build_gated, many_examples, scores
from torch import Tensor

from fairseq_dsp.config import AUTO, PruningConfig
from fairseq_dsp.methods.site_threshold import SiteThreshold
from fairseq_dsp.units.budget import Budget, SplitBudget
from fairseq_dsp.units.subset import hard_top_k

SITES = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@st.composite
def choices(draw: st.DrawFn) -> tuple[SiteThreshold, Tensor, dict[str, Tensor]]:
    """A method, importance with ties, thresholds."""
    sizes = draw(SITES)
    method = SiteThreshold(draw(st.floats(0, 20)), None, 10).of_sites(sizes)
    levels = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=sum(sizes), max_size=sum(sizes))
    thresholds = [draw(st.floats(-6, 6)) for size in sizes if size]
    importance = torch.tensor(draw(levels), dtype=torch.float64)
    return method, importance, {"thresholds": torch.tensor(thresholds, dtype=torch.float64)}


def spans(method: SiteThreshold) -> list[range]:
    ends = [sum(method.sites[: place + 1]) for place in range(len(method.sites))]
    return [range(end - size, end) for end, size in zip(ends, method.sites, strict=True)]


def slow_gates(method: SiteThreshold, importance: Tensor, thresholds: Tensor) -> list[float]:
    gates = [0.0] * len(importance)
    for span, threshold in zip(spans(method), thresholds.tolist(), strict=True):
        best = sorted(span, key=lambda unit: (-float(importance[unit]), unit))
        for unit in best[: math.ceil(sigmoid(threshold) * len(span) - 0.5)]:  # rounded, a half down
            gates[unit] = 1.0
    return gates


@many_examples
@given(choices())
def test_gates_are_the_share_of_each_site_that_is_learned(choice):
    method, importance, own = choice
    expected = slow_gates(method, importance, own["thresholds"])
    assert method.gates(importance, None, 0, **own).tolist() == expected
    assert method.own_number(importance, **own) == sum(expected)


@many_examples
@given(choices(), st.integers(0, 99))
def test_a_score_gets_the_gradient_of_its_gate_and_a_threshold_the_sum_of_its_site_s(choice, seed):
    method, importance, own = choice
    gradient = torch.randn(len(importance), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    importance.requires_grad_(), own["thresholds"].requires_grad_()
    if not len(importance):
        return
    method.gates(importance, None, 0, **own).backward(gradient)
    assert torch.equal(importance.grad, gradient)
    slow = [
        sigmoid(theta) * (1 - sigmoid(theta)) * sum(float(gradient[unit]) for unit in span)
        for span, theta in zip(spans(method), own["thresholds"].tolist(), strict=True)
    ]
    assert own["thresholds"].grad.tolist() == pytest.approx(slow, rel=1e-9, abs=1e-12)


@many_examples
@given(choices(), st.integers(0, 30), st.booleans())
def test_the_penalty_is_that_of_the_formula(choice, limit, uneven):
    method, importance, own = choice
    total = len(importance)
    costs = tuple(1.0 + unit % 3 for unit in range(total)) if uneven else (1.0,) * total
    limit = min(limit, int(sum(costs)))
    budget, target = Budget("parameters" if uneven else "count", limit, costs), limit / max(sum(costs), 1)
    found = method.penalty(importance, budget, 0, **own)
    if not total or target >= 1:
        assert found is None
        return
    thresholds = own["thresholds"].tolist()
    on = sum(costs[unit] * sigmoid(t) for span, t in zip(spans(method), thresholds, strict=True) for unit in span)
    excess = max(on / sum(costs) - target, 0) / (1 - target)
    assert float(found) == pytest.approx(method.threshold_penalty * excess**2, rel=1e-9, abs=1e-12)


def test_a_budget_for_each_kind_has_a_penalty_for_each():
    method, importance = SiteThreshold(10.0, None, 10).of_sites([2, 2, 4]), torch.zeros(8)
    own = {"thresholds": torch.tensor([0.0, 2.0, 1.0])}
    parts = [Budget.of_units(1, 4), Budget("parameters", 3, (1.0, 1.0, 2.0, 2.0))]
    both = method.penalty(importance, SplitBudget.of(parts), 0, **own)
    heads = SiteThreshold(10.0, None, 10).of_sites([2, 2])
    neurons = SiteThreshold(10.0, None, 10).of_sites([4])
    one = heads.penalty(importance[:4], parts[0], 0, thresholds=own["thresholds"][:2])
    other = neurons.penalty(importance[4:], parts[1], 0, thresholds=own["thresholds"][2:])
    assert float(both) == pytest.approx(float(one + other))
    assert one > 0 < other


@many_examples
@given(choices())
def test_any_number_is_kept_by_moving_all_thresholds_alike(choice):
    method, importance, own = choice
    ranking = method.ranking(importance, **own)
    for k in range(len(importance) + 1):
        kept = hard_top_k(ranking, k)
        for span in spans(method):
            best = sorted(span, key=lambda unit: (-float(importance[unit]), unit))
            marks = [float(kept[unit]) for unit in best]
            assert marks == sorted(marks, reverse=True)  # of every site the best
    assert hard_top_k(ranking, method.own_number(importance, **own)).tolist() == slow_gates(
        method, importance, own["thresholds"]
    )


@many_examples
@given(SITES)
def test_all_units_are_on_at_first_and_one_more_step_takes_the_first_of_a_site(sizes):
    method = SiteThreshold(1.0, None, 10).of_sites(sizes)
    importance, own = torch.randn(sum(sizes)), method.variables()
    assert (method.gates(importance, None, 0, **own) == 1).all()
    for site, size in enumerate(method.sites):
        share = own["thresholds"].sigmoid()
        share[site] -= 0.3 / size
        fewer = method.gates(importance, None, 0, thresholds=torch.logit(share))
        assert fewer.sum() == sum(sizes) - 1


def test_a_site_may_become_empty():
    method = SiteThreshold(1.0, None, 10).of_sites([3, 2])
    gates = method.gates(torch.randn(5), None, 0, thresholds=torch.tensor([-3.0, 3.0]))
    assert gates.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("target", [0.25, 0.5])
def test_the_sites_that_are_worth_less_lose_more_until_the_target_is_met(target):
    worth = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.02, 0.01, 0.01, 0.0])
    method, budget = SiteThreshold(10.0, None, 10**6).of_sites([4, 4]), Budget.of_units(round(8 * target), 8)
    importance, own = (
        torch.nn.Parameter(torch.zeros(8)),
        {"thresholds": torch.nn.Parameter(method.variables()["thresholds"])},
    )
    optimizer = torch.optim.Adam([importance, *own.values()], lr=0.05)
    for update in range(400):
        loss = (worth * (1 - method.gates(importance, budget, update, **own))).sum() / 10
        optimizer.zero_grad()
        (loss + method.penalty(importance, budget, update, **own)).backward()
        optimizer.step()
    assert abs(method.own_number(importance.detach(), **own) - 8 * target) <= 1
    kept = hard_top_k(method.ranking(importance, **own), budget.count)
    assert kept[:4].sum() > kept[4:].sum()
    assert kept[0] == 1


class TestInAModel:
    @pytest.mark.parametrize("shares", [(0.1,) * 6, (0.9,) * 6, (0.9, 0.5, 0.1, 0.5, 0.1, 0.1)])
    def test_auto_deploys_its_own_number_above_the_floor(self, shares):
        model = build_gated("site-threshold", AUTO, threshold_target=0.3, cross_floor="1")
        with torch.no_grad():
            model.head_gates.thresholds.copy_(torch.logit(torch.tensor(shares)))
        masked = scores(model)
        own = sum(math.ceil(3 * share - 0.5) for share in shares)
        assert model.deployed_layout().count == max(own, 1)
        model.bake()
        assert model.layout.count == max(own, 1)
        assert model.layout.by_type()["cross"][0] >= 1
        torch.testing.assert_close(scores(model), masked)

    def test_all_heads_are_on_in_the_first_update_of_a_training(self):
        model = build_gated("site-threshold", 5).train()
        with torch.no_grad():
            model.head_gates.thresholds.zero_()  # of another training's state
        scores(model)
        assert (model.head_gates.gates() == 1).all()
        assert model.head_gates.budget_now is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threshold_penalty": -1.0}, "`--threshold-penalty` must be a number of at least 0, but is -1.0."),
        ({"threshold_penalty": math.nan}, "`--threshold-penalty` must be a number of at least 0, but is nan."),
        ({"threshold_target": 1.0}, "`--threshold-target` must be at least 0 and below 1, but is 1.0."),
        ({"threshold_target": math.nan}, "`--threshold-target` must be at least 0 and below 1, but is nan."),
        ({"unpruned_heads": AUTO}, "`--threshold-target` must be given with `--unpruned-heads auto`, but is not."),
    ],
)
def test_values_that_do_not_fit_are_refused(options: dict[str, Any], reason: str):
    assert SiteThreshold.objections(PruningConfig(**options)) == [reason]
