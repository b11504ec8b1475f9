"""Exact marginals of k-subsets against loops over all subsets, and the hard choice that they give a gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import many_examples
from torch import Tensor

from fairseq_dsp.units.marginals import covariance_product, exact_straight_through_top_k, subset_marginals
from fairseq_dsp.units.subset import gumbel_noise, hard_top_k

floats = st.floats(-8, 8)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, int, Tensor]:
    """Scores, k and a direction, for at most 7 things."""
    n = draw(st.integers(1, 7))
    scores, direction = (torch.tensor(draw(st.lists(floats, min_size=n, max_size=n))).double() for _ in range(2))
    return scores, draw(st.integers(0, n)), direction


def enumerated(scores: Tensor, k: int) -> list[tuple[tuple[int, ...], float]]:
    """All subsets of k with their probabilities, as SIMPLE's equation 1 has them."""
    subsets = list(itertools.combinations(range(len(scores)), k))
    weights = [math.exp(sum(scores[i].item() for i in subset)) for subset in subsets]
    return [(subset, weight / sum(weights)) for subset, weight in zip(subsets, weights, strict=True)]


def slow_marginals(scores: Tensor, k: int) -> list[float]:
    law = enumerated(scores, k)
    return [sum(p for subset, p in law if i in subset) for i in range(len(scores))]


def slow_covariance_product(scores: Tensor, k: int, direction: Tensor) -> list[float]:
    law, mu, n = enumerated(scores, k), slow_marginals(scores, k), len(scores)
    found = [0.0] * n
    for i in range(n):
        for j in range(n):
            both = sum(p for subset, p in law if i in subset and j in subset)
            found[i] += (both - mu[i] * mu[j]) * direction[j].item()
    return found


@many_examples
@given(cases())
def test_marginals_are_sums_over_all_subsets(case):
    scores, k, _ = case
    assert subset_marginals(scores, k).tolist() == pytest.approx(slow_marginals(scores, k), abs=1e-12)


@many_examples
@given(cases())
def test_products_with_the_covariance_are_sums_over_all_pairs(case):
    scores, k, direction = case
    ours = covariance_product(scores, k, direction).tolist()
    assert ours == pytest.approx(slow_covariance_product(scores, k, direction), abs=1e-10)


@pytest.mark.parametrize("k", [1, 12, 36, 71])
def test_products_with_the_covariance_are_differences_of_marginals_along_the_direction(k):
    generator = torch.Generator().manual_seed(k)
    scores, direction = (torch.randn(72, generator=generator, dtype=torch.float64) for _ in range(2))
    step = 1e-5
    ahead, behind = (subset_marginals(scores + sign * step * direction, k) for sign in (1, -1))
    torch.testing.assert_close(
        covariance_product(scores, k, direction), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("scale", [1e-6, 1.0, 50.0, 1e5])
@pytest.mark.parametrize("k", [0, 1, 7, 17, 18])
def test_any_size_of_the_scores_gives_numbers_that_sum_as_they_must(scale, k):
    generator = torch.Generator().manual_seed(1)
    scores, direction = (torch.randn(18, generator=generator) for _ in range(2))
    marginals = subset_marginals(scale * scores, k)
    assert marginals.dtype == torch.float64
    assert marginals.sum().item() == pytest.approx(k, abs=1e-9)
    assert ((marginals >= 0) & (marginals <= 1 + 1e-12)).all()
    product = covariance_product(scale * scores, k, direction)
    assert torch.isfinite(product).all()
    assert product.sum().item() == pytest.approx(0, abs=1e-9)
    if k in (0, 18) or scale == 1e5:  # nothing is left to chance
        assert product.abs().max() < 1e-9


class TestHardChoice:
    def test_is_the_top_k_of_the_noisy_scores_exactly(self):
        scores = torch.linspace(-1, 1, 9)
        for update in range(20):
            noise = gumbel_noise(9, 1, update).float()
            gates = exact_straight_through_top_k(scores, noise, 4)
            assert torch.equal(gates, hard_top_k(scores + noise, 4))
            assert gates.dtype == scores.dtype

    def test_has_the_gradient_of_the_marginals_whatever_the_noise(self):
        scores = torch.linspace(-1, 1, 6, requires_grad=True)
        weights = torch.tensor([3.0, -1.0, 0.5, 2.0, -4.0, 1.0])
        expected = slow_covariance_product(scores.detach().double(), 2, weights)
        for update in range(3):
            scores.grad = None
            (exact_straight_through_top_k(scores, gumbel_noise(6, 1, update).float(), 2) * weights).sum().backward()
            assert scores.grad is not None
            assert scores.grad.dtype == torch.float32
            assert scores.grad.tolist() == pytest.approx(expected, abs=1e-6)

    def test_lets_a_broken_loss_be_heard(self):
        scores = torch.zeros(5, requires_grad=True)
        weights = torch.tensor([1.0, math.inf, 0.0, 0.0, 0.0])
        (exact_straight_through_top_k(scores, torch.arange(5.0), 2) * weights).sum().backward()
        assert scores.grad is not None
        assert torch.isnan(scores.grad).all()

    @pytest.mark.parametrize("k", [-1, 6])
    def test_outside_its_range_is_refused(self, k):
        with pytest.raises(ValueError, match="between 0 and 5"):
            exact_straight_through_top_k(torch.zeros(5), torch.zeros(5), k)
