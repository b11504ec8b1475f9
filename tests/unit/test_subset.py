"""Choosing K of n: the formulas against slow loops written from the papers, and what must hold for any input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from models import assert_same, few_examples, many_examples
from torch import Tensor

from fairseq_dsp.units.subset import gumbel_noise, hard_top_k, projected_top_k, relaxed_top_k, straight_through_top_k

numbers = st.floats(-3, 3, width=32)
temperatures = st.floats(-8, 3).map(lambda exponent: 10.0**exponent)


@st.composite
def scores_and_k(draw: st.DrawFn) -> tuple[Tensor, int]:
    values = draw(st.lists(numbers, min_size=1, max_size=9))
    return torch.tensor(values, dtype=torch.float64), draw(st.integers(0, len(values)))


def successive_softmaxes(scores: list[float], k: int, temperature: float) -> list[float]:
    """Xie and Ermon 2019, as the code of Li et al. 2021 states it, a number at a time.

    r_1 = scores,  p_j = softmax(r_j / t),  r_{j+1} = r_j + log max(1 - p_j, eps),  mask = sum_j p_j
    """
    remaining, mask = list(scores), [0.0] * len(scores)
    for _ in range(k):
        largest = max(remaining)
        powers = [math.exp((r - largest) / temperature) for r in remaining]
        chosen = [power / sum(powers) for power in powers]
        mask = [m + p for m, p in zip(mask, chosen, strict=True)]
        remaining = [
            r + math.log(max(1 - p, torch.finfo(torch.float64).tiny)) for r, p in zip(remaining, chosen, strict=True)
        ]
    return mask


def top_indices(scores: Tensor, k: int) -> set[int]:
    """The k largest, the lower index first among equals, by Python's stable sort."""
    return set(sorted(range(len(scores)), key=lambda index: -scores[index].item())[:k])


class TestRelaxedTopK:
    @many_examples
    @given(scores_and_k(), st.floats(0.05, 10))
    def test_is_the_sum_of_successive_softmaxes(self, case, temperature):
        scores, k = case
        assume(0 < k < len(scores))
        expected = successive_softmaxes(scores.tolist(), k, temperature)
        assert_same(relaxed_top_k(scores, k, temperature), torch.tensor(expected, dtype=torch.float64), 1e-9)

    @many_examples
    @given(scores_and_k(), temperatures)
    def test_is_nonnegative_and_sums_to_k(self, case, temperature):
        scores, k = case
        mask = relaxed_top_k(scores, k, temperature)
        assert (mask >= 0).all()
        assert mask.sum().item() == pytest.approx(k)

    @pytest.mark.parametrize(("k", "value"), [(0, 0.0), (5, 1.0)])
    @pytest.mark.parametrize("temperature", [1e-8, 1.0])
    def test_of_none_or_all_is_constant_and_still_has_a_gradient(self, k, value, temperature):
        scores = torch.randn(5, requires_grad=True)
        mask = relaxed_top_k(scores, k, temperature)
        mask.sum().backward()
        assert torch.equal(mask.detach(), torch.full((5,), value))
        assert torch.equal(scores.grad, torch.zeros(5))

    @many_examples
    @given(scores_and_k())
    def test_tends_to_the_hard_choice_of_scores_plus_noise(self, case):
        scores, k = case
        noisy = scores + gumbel_noise(len(scores), seed=3, update=5).to(scores)
        assume(noisy.sort().values.diff().abs().gt(1e-3).all())
        assert_same(relaxed_top_k(noisy, k, 1e-8), hard_top_k(noisy, k), 1e-6)

    @many_examples
    @given(scores_and_k(), temperatures, st.booleans())
    def test_has_a_finite_and_bounded_gradient_in_float32(self, case, temperature, tied):
        scores, k = case
        scores = (scores.round() if tied else scores).float().requires_grad_()
        mask = relaxed_top_k(scores, k, temperature)
        (mask * torch.linspace(-1, 1, len(scores))).sum().backward()
        assert mask.dtype == torch.float32
        assert torch.isfinite(mask).all()
        assert scores.grad.abs().max() <= 1e15

    @pytest.mark.parametrize("k", [1, 36, 60, 71])
    @pytest.mark.parametrize("temperature", [1e-9, 1e-8, 1e-6, 1e-3])
    def test_of_many_ties_and_near_ties_has_a_finite_and_bounded_gradient(self, k, temperature):
        generator = torch.Generator().manual_seed(k)
        for _ in range(10):
            scores = torch.randint(3, (72,), generator=generator) + temperature * torch.randn(72, generator=generator)
            scores.requires_grad_()
            (relaxed_top_k(scores, k, temperature) * torch.randn(72, generator=generator)).sum().backward()
            assert scores.grad.abs().max() <= 1e15

    @few_examples
    @given(scores_and_k())
    def test_has_the_gradient_that_finite_differences_give(self, case):
        scores, k = case
        assert torch.autograd.gradcheck(lambda s: relaxed_top_k(s, k, 0.7), scores.requires_grad_())

    @pytest.mark.parametrize("k", [-1, 6])
    def test_refuses_more_or_fewer_than_there_are(self, k):
        with pytest.raises(ValueError, match=f"between 0 and 5, but is {k}"):
            relaxed_top_k(torch.zeros(5), k, 0.1)


def projection(scores: list[float], k: int, temperature: float) -> list[float]:
    """sigmoid((scores - threshold) / t), the threshold found by halving until floats have no number between."""

    def entries(threshold: float) -> list[float]:
        return [0.5 * (1 + math.tanh(0.5 * (score - threshold) / temperature)) for score in scores]

    low, high = min(scores) - 100 * temperature, max(scores) + 100 * temperature
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if sum(entries(middle)) > k else (low, middle)
    return entries(low)


class TestProjectedTopK:
    @many_examples
    @given(scores_and_k(), st.floats(0.05, 10))
    def test_is_the_sigmoid_above_a_common_threshold(self, case, temperature):
        scores, k = case
        assume(0 < k < len(scores))
        expected = projection(scores.tolist(), k, temperature)
        assert_same(projected_top_k(scores, k, temperature), torch.tensor(expected, dtype=torch.float64), 1e-9)

    @many_examples
    @given(scores_and_k(), temperatures, st.booleans())
    def test_lies_between_0_and_1_sums_to_k_and_keeps_the_order(self, case, temperature, tied):
        scores, k = case
        scores = scores.round() if tied else scores
        mask = projected_top_k(scores, k, temperature)
        assert ((mask >= 0) & (mask <= 1)).all()
        assert mask.sum().item() == pytest.approx(k, abs=1e-6)
        assert (mask[scores.argsort()].diff() >= 0).all()

    @few_examples
    @given(scores_and_k(), st.floats(0.1, 3))
    def test_maximises_score_and_entropy(self, case, temperature):
        scores, k = case
        assume(0 < k < len(scores))

        def value(mask: Tensor) -> float:
            entropy = -(torch.xlogy(mask, mask) + torch.xlogy(1 - mask, 1 - mask)).sum()
            return float((scores * mask).sum() + temperature * entropy)

        best = projected_top_k(scores, k, temperature)
        for seed in range(5):
            other = torch.randn(len(scores), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            other = (best + 0.02 * (other - other.mean())).clamp(0, 1)
            if other.sum().item() == pytest.approx(k):
                assert value(other) <= value(best) + 1e-9

    @many_examples
    @given(scores_and_k())
    def test_tends_to_the_hard_choice_as_the_recursion_does(self, case):
        scores, k = case
        assume(scores.sort().values.diff().abs().gt(1e-3).all())
        assert_same(projected_top_k(scores, k, 1e-8), hard_top_k(scores, k), 1e-6)
        assert_same(relaxed_top_k(scores, k, 1e-8), hard_top_k(scores, k), 1e-6)

    def test_is_the_softmax_where_one_of_two_is_chosen(self):
        scores = torch.tensor([0.3, -1.1], dtype=torch.float64)
        assert_same(projected_top_k(scores, 1, 0.7), relaxed_top_k(scores, 1, 1.4))  # a sigmoid of half the difference

    @pytest.mark.parametrize("k", [12, 24, 60])
    def test_stays_below_1_where_the_recursion_does_not(self, k):
        scores = torch.randn(72, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        assert relaxed_top_k(scores, k, 0.3).max() > 1
        assert projected_top_k(scores, k, 0.3).max() < 1

    @few_examples
    @given(scores_and_k())
    def test_has_the_gradient_that_finite_differences_give(self, case):
        scores, k = case
        assert torch.autograd.gradcheck(lambda s: projected_top_k(s, k, 0.7), scores.requires_grad_())

    @pytest.mark.parametrize("k", [1, 36, 71])
    @pytest.mark.parametrize("temperature", [1e-9, 1e-6, 1e-3])
    def test_of_many_ties_and_near_ties_has_a_finite_and_bounded_gradient(self, k, temperature):
        generator = torch.Generator().manual_seed(k)
        scores = torch.randint(3, (72,), generator=generator) + temperature * torch.randn(72, generator=generator)
        scores.requires_grad_()
        (projected_top_k(scores, k, temperature) * torch.randn(72, generator=generator)).sum().backward()
        assert scores.grad.abs().max() <= 1e15

    @pytest.mark.parametrize(("k", "value"), [(0, 0.0), (5, 1.0)])
    def test_of_none_or_all_is_constant_and_still_has_a_gradient(self, k, value):
        scores = torch.randn(5, requires_grad=True)
        mask = projected_top_k(scores, k, 0.5)
        mask.sum().backward()
        assert torch.equal(mask.detach(), torch.full((5,), value))
        assert torch.equal(scores.grad, torch.zeros(5))

    def test_a_broken_loss_is_not_hidden(self):
        scores = torch.randn(5, requires_grad=True)
        (projected_top_k(scores, 2, 0.5) * torch.nan).sum().backward()
        assert scores.grad.isnan().any()

    @pytest.mark.parametrize("k", [-1, 6])
    def test_refuses_more_or_fewer_than_there_are(self, k):
        with pytest.raises(ValueError, match=f"between 0 and 5, but is {k}"):
            projected_top_k(torch.zeros(5), k, 0.1)


class TestHardTopK:
    @many_examples
    @given(scores_and_k(), st.booleans())
    def test_marks_exactly_the_k_largest_and_breaks_ties_by_lowest_index(self, case, tied):
        scores, k = case
        scores = scores.round() if tied else scores
        mask = hard_top_k(scores, k)
        assert set(mask.tolist()) <= {0.0, 1.0}
        assert set(mask.nonzero().flatten().tolist()) == top_indices(scores, k)

    @pytest.mark.parametrize("k", range(4))
    def test_of_equal_scores_takes_the_first(self, k):
        assert hard_top_k(torch.zeros(3), k).tolist() == [1.0] * k + [0.0] * (3 - k)

    def test_has_no_gradient(self):
        assert not hard_top_k(torch.randn(4, requires_grad=True), 2).requires_grad

    @pytest.mark.parametrize("k", [-1, 4])
    def test_refuses_more_or_fewer_than_there_are(self, k):
        with pytest.raises(ValueError, match=f"between 0 and 3, but is {k}"):
            hard_top_k(torch.zeros(3), k)


class TestStraightThrough:
    @many_examples
    @given(scores_and_k())
    def test_is_the_hard_choice_forward_and_the_identity_backward(self, case):
        scores, k = case
        upstream = torch.arange(1.0, len(scores) + 1, dtype=torch.float64)
        gates = straight_through_top_k(scores.requires_grad_(), k)
        gates.backward(upstream)
        assert torch.equal(gates.detach(), hard_top_k(scores, k))
        assert torch.equal(scores.grad, upstream)


def test_relaxed_gates_are_zero_or_large_enough_for_products_that_are_no_denormal_numbers():
    scores = torch.linspace(0, 8, 40)
    for temperature in (0.5, 0.1, 0.05, 0.01, 1e-8):
        gates = relaxed_top_k(scores, 9, temperature)
        assert (gates[gates != 0] >= 1e-12).all()
        torch.testing.assert_close(gates.sum(), torch.tensor(9.0))


def test_the_relaxations_gradient_is_linear_in_the_losss_whatever_its_scale():
    # fairseq sums the loss over the batch and multiplies it by the loss scale before the backward pass
    scores, weight = torch.linspace(0, 3, 12), torch.linspace(-1, 1, 12)
    gradients = []
    for scale in (1.0, 2.0**30):
        leaf = scores.clone().requires_grad_()
        (relaxed_top_k(leaf, 5, 0.3) * weight * scale).sum().backward()
        gradients.append(leaf.grad / scale)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_not_hidden_by_the_relaxation(broken):
    scores = torch.linspace(0, 3, 12).requires_grad_()
    (relaxed_top_k(scores, 5, 0.3) * broken).sum().backward()
    assert scores.grad.isnan().all()
