"""Temperature and noise of `subset`: functions of the update, and of the seed, alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import many_examples

from fairseq_dsp.units.subset import annealed_budget, annealed_temperature, gumbel_noise


class TestAnnealing:
    @many_examples
    @given(st.floats(1e-3, 1e3), st.floats(1e-9, 1e-3), st.integers(1, 500))
    def test_falls_geometrically_from_the_initial_to_the_final_temperature(self, initial, final, cooldown):
        course = [annealed_temperature(update, initial, final, cooldown) for update in range(cooldown + 2)]
        assert course[0] == pytest.approx(initial)
        assert course[cooldown:] == [final, final]
        assert all(after <= before for before, after in zip(course, course[1:], strict=False))
        factor = (final / initial) ** (1 / cooldown)
        assert course[1:-1] == pytest.approx([before * factor for before in course[:-2]])

    def test_without_a_cooldown_is_final_at_once(self):
        assert annealed_temperature(0, 0.1, 1e-8, 0) == 1e-8


class TestBudget:
    @many_examples
    @given(st.data())
    def test_falls_from_all_heads_to_k_by_the_cube_of_what_is_left_of_the_window(self, data):
        total = data.draw(st.integers(0, 80))
        kept = data.draw(st.integers(0, total))
        end = data.draw(st.integers(1, 300))
        start = data.draw(st.integers(0, end - 1))
        course = [annealed_budget(update, kept, total, start, end) for update in range(end + 3)]
        assert course[: start + 1] == [total] * (start + 1)
        assert course[end:] == [kept] * 3
        assert all(kept <= after <= before for before, after in zip(course, course[1:], strict=False))
        middle = (start + end) // 2
        left = (end - middle) / (end - start)
        assert course[middle] == kept + round((total - kept) * left * left * left)

    def test_without_a_window_is_k_at_once(self):
        assert annealed_budget(0, 3, 9, 0, 0) == 3


class TestGumbelNoise:
    @many_examples
    @given(st.integers(0, 2**31), st.integers(0, 10**7))
    def test_depends_on_seed_and_update_alone(self, seed, update):
        torch.manual_seed(1)
        first = gumbel_noise(6, seed, update)
        torch.manual_seed(2)
        assert torch.equal(first, gumbel_noise(6, seed, update))

    def test_leaves_torchs_global_generator_alone(self):
        before = torch.get_rng_state()
        gumbel_noise(6, seed=1, update=1)
        assert torch.equal(torch.get_rng_state(), before)

    def test_differs_between_all_seeds_and_updates(self):
        draws = {tuple(gumbel_noise(3, seed, update).tolist()) for seed in range(20) for update in range(20)}
        assert len(draws) == 400

    def test_has_the_mean_and_the_variance_of_a_gumbel(self):
        noise = torch.cat([gumbel_noise(50, seed=1, update=update) for update in range(1000)])
        euler = 0.5772156649
        assert noise.mean().item() == pytest.approx(euler, abs=0.03)
        assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.06)

    def test_of_successive_updates_is_uncorrelated(self):
        noise = torch.stack([gumbel_noise(5, seed=1, update=update) for update in range(2000)])
        successive = torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))
        assert successive[0, 1].abs() < 0.04
