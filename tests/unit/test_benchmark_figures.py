"""The figures of fairseq-dsp-bench: ratios and their intervals, turns, operations, placements of heads."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import few_examples, grids

from fairseq_dsp.benchmark.flops import count
from fairseq_dsp.benchmark.layouts import packed, spread
from fairseq_dsp.benchmark.measuring import achieved_share, paired_ratio, take_turns
from fairseq_dsp.units.layout import Grid


def test_ratio_is_paired():
    load = np.array([1.0, 5.0, 2.0, 9.0, 1.5, 3.0, 4.0])  # of the machine, the same for both of a turn
    ratio = paired_ratio(2.0 * load, load)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("count", range(1, 14))
def test_an_interval_of_95_percent_covers_the_truth_in_95_of_100_cases(count):
    """Whatever the distribution: half of the ratios lie above the true median, so all patterns of above and below count."""
    covered = 0
    for above in itertools.product((False, True), repeat=count):
        ratios = [1.5 + (1 if one else -1) * (number + 1) / 20 for number, one in enumerate(above)]
        found = paired_ratio(ratios, [1.0] * count)
        if found.low is not None:
            assert found.low <= found.median <= found.high
            covered += found.low <= 1.5 <= found.high
    assert covered == 0 if count < 6 else covered >= 0.95 * 2**count


def test_an_interval_is_no_wider_than_its_promise():
    """The default's 7 pairs need the smallest and the largest; of 9, one on either side may be an outlier."""
    for pairs, outliers in ((6, 0), (7, 0), (8, 0), (9, 1), (12, 2), (25, 7)):
        found = paired_ratio([float(number) for number in range(1, pairs + 1)], [1.0] * pairs)
        assert (found.low, found.high) == (1 + outliers, pairs - outliers)


@pytest.mark.parametrize("noise", ["normal", "exponential"])
def test_an_interval_covers_the_truth_of_noisy_times(noise):
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        one, other = np.exp(0.2 * getattr(generator, f"standard_{noise}")((2, 7)))
        ratio = paired_ratio(1.5 * one, other)
        covered += ratio.low <= 1.5 <= ratio.high
    assert covered >= 380


def test_an_interval_whose_ends_are_far_apart_is_too_wide():
    for widest, wide in ((1.2, False), (1.5, False), (1.6, True)):
        assert paired_ratio([1.0, 1.1, 1.1, 1.1, 1.1, 1.1, widest], [1.0] * 7).too_wide == wide
    assert not paired_ratio([1.0, 9.0], [1.0] * 2).too_wide  # there is none


def test_pairs_have_two_sides():
    for sides in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="two sides"):
            paired_ratio(*sides)


def test_turns_go_to_and_fro():
    order = []

    def measure(name):
        order.append(name)
        return float(len(order))

    times = take_turns([lambda: measure("a"), lambda: measure("b")], pairs=2, warmup=1)
    assert "".join(order) == "abbaab"
    assert times == [[4.0, 5.0], [3.0, 6.0]]


def test_share_of_a_promise():
    assert achieved_share(1.5, 2.0) == pytest.approx(0.5)
    assert achieved_share(1.5, 1.0) is None
    assert achieved_share(1.5, math.inf) is None


@few_examples
@given(grids, st.data())
def test_layouts_keep_k(grid, data):
    k = data.draw(st.integers(0, grid.total))
    for placement in (spread, packed):
        assert placement(grid, k).count == k


def test_spread_and_packed():
    grid = Grid.of_heads((4,) * 6, (4,) * 6, (4,) * 6)
    assert spread(grid, 18).surviving == Grid.of_heads((1,) * 6, (1,) * 6, (1,) * 6)
    assert spread(grid, 6).by_type() == dict.fromkeys(("enc", "dec", "cross"), (2, 24))
    assert packed(grid, 18).surviving == Grid.of_heads((0,) * 6, (0,) * 6, (4, 4, 4, 4, 2, 0))


def test_counts_what_fused_attention_computes():
    q, k, v = (torch.randn(2, 3, length, 4) for length in (5, 7, 7))
    flops, kernel = count(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert flops == 2 * (2 * 3 * 5 * 7 * 4) * 2
    assert "attention" in kernel
    assert count(lambda: torch.softmax(q @ k.transpose(2, 3), -1) @ v) == (flops, "unfused")
    assert count(lambda: torch.softmax(torch.ones(3), 0)) == (0, "")
