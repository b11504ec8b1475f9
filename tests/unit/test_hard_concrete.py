"""Hard concrete gates against loops written from the papers' equations, and the method inside a model."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from hypothesis import given
from hypothesis import strategies as st
from models import build_gated, gradients, many_examples, model_options, scores, sentences

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods import METHODS
from fairseq_dsp.methods.hard_concrete import HardConcrete
from fairseq_dsp.options.objections import objections
from fairseq_dsp.plugin.criterion import LabelSmoothedCrossEntropyDspCriterion
from fairseq_dsp.units.layout import Grid
from fairseq_dsp.units.subset import (
    hard_concrete,
    hard_concrete_without_noise,
    hard_top_k,
    logistic_noise,
    probability_open,
)

HEADS, LOG_11 = 18, math.log(11)

numbers = st.lists(st.floats(-6, 6), min_size=1, max_size=9).map(lambda values: torch.tensor(values).double())


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def stretched(s: float) -> float:
    return min(1.0, max(0.0, s * (1.1 - -0.1) + -0.1))


class TestFormulas:
    @many_examples
    @given(numbers, st.integers(0, 99))
    def test_gates_are_those_of_the_paper(self, log_alpha, seed):
        uniform = torch.rand(len(log_alpha), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        noise = torch.log(uniform) - torch.log(1 - uniform)
        slow = [
            stretched(sigmoid((math.log(u) - math.log(1 - u) + a) / 0.33))
            for u, a in zip(uniform.tolist(), log_alpha.tolist(), strict=True)
        ]
        assert hard_concrete(log_alpha, noise).tolist() == pytest.approx(slow, abs=1e-9)

    @many_examples
    @given(numbers)
    def test_gates_without_noise_and_the_penalty_are_those_of_the_paper(self, log_alpha):
        slow = [stretched(sigmoid(a)) for a in log_alpha.tolist()]
        assert hard_concrete_without_noise(log_alpha).tolist() == pytest.approx(slow)
        slow = [sigmoid(a - 0.33 * math.log(0.1 / 1.1)) for a in log_alpha.tolist()]
        assert probability_open(log_alpha).tolist() == pytest.approx(slow)
        penalty = HardConcrete(seed=1, l0_penalty=0.3, fixes_at=None).penalty(log_alpha, None, update=0)
        assert penalty.item() == pytest.approx(0.3 * sum(slow))

    @pytest.mark.parametrize("log_alpha", [-4.0, -2.0, 0.0, 1.0])
    def test_gates_are_open_as_often_as_the_penalty_says(self, log_alpha):
        alphas = torch.full((20000,), log_alpha, dtype=torch.float64)
        drawn = hard_concrete(alphas, logistic_noise(20000, seed=3, update=0)) > 0
        assert drawn.double().mean().item() == pytest.approx(probability_open(alphas)[0].item(), abs=0.015)

    def test_gradients_are_those_of_finite_differences(self):
        log_alpha = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
        noise = logistic_noise(7, seed=1, update=1)
        assert torch.autograd.gradcheck(lambda a: hard_concrete(a, noise), log_alpha)
        assert torch.autograd.gradcheck(probability_open, log_alpha)


class TestNoise:
    def test_depends_on_seed_and_update_alone(self):
        torch.manual_seed(1)
        first = logistic_noise(5, seed=3, update=4)
        torch.manual_seed(2)
        assert torch.equal(first, logistic_noise(5, seed=3, update=4))
        draws = {tuple(logistic_noise(3, seed, update).tolist()) for seed in range(9) for update in range(9)}
        assert len(draws) == 81

    def test_is_logistic(self):
        noise = logistic_noise(50000, seed=1, update=0)
        assert noise.mean().item() == pytest.approx(0, abs=0.03)
        assert noise.var().item() == pytest.approx(math.pi**2 / 3, rel=0.03)


def with_importance(kept: Any, importance: torch.Tensor, **options: Any) -> Any:
    model = build_gated("hard-concrete", kept, **options)
    with torch.no_grad():
        model.head_gates.importance.copy_(importance)
    return model


class TestBudget:
    def test_of_a_number_deploys_the_most_important_whatever_is_open(self):
        importance = torch.linspace(-9, -3, HEADS)
        model = with_importance(5, importance)
        assert torch.equal(model.head_gates.decided_mask(), hard_top_k(importance, 5))

    @pytest.mark.parametrize("opened", [0, 1, 7, HEADS])
    def test_auto_deploys_the_heads_whose_gate_without_noise_is_open(self, opened):
        importance = torch.full((HEADS,), -LOG_11 - 0.01)
        importance[:opened] = -LOG_11 + 0.01
        model = with_importance("auto", importance.roll(3))
        assert torch.equal(model.head_gates.decided_mask(), (importance.roll(3) > -LOG_11).float())
        assert model.deployed_layout().count == opened
        before = scores(model)
        model.bake()
        torch.testing.assert_close(scores(model), before, rtol=1e-11, atol=1e-11)

    def test_does_not_touch_the_gates_of_training(self):
        importance = torch.linspace(-3, 3, HEADS)
        drawn = [with_importance(kept, importance).train().head_gates.gates() for kept in ("auto", 0, 5, HEADS)]
        assert all(torch.equal(gates, drawn[0]) for gates in drawn)
        assert drawn[0].requires_grad

    @pytest.mark.parametrize("method", [name for name in METHODS if not METHODS[name].finds_number])
    def test_auto_is_refused_by_other_methods_in_one_sentence(self, method):
        found = objections(model_options(head_selection=method, unpruned_heads="auto"))
        assert [reason for reason in found if "auto" in reason and "`--unpruned-heads`" in reason] == found[:1]
        assert len([reason for reason in found if "unpruned-heads" in reason]) == 1


class TestFixing:
    @pytest.mark.parametrize("kept", ["auto", 0, 5, HEADS])
    def test_happens_after_a_cooldown_that_is_given(self, kept):
        importance = torch.linspace(-4, 2, HEADS)
        model = with_importance(kept, importance, cooldown_updates=10)
        chosen = model.head_gates.decided_mask().clone()
        model.set_num_updates(10)
        assert model.head_gates.is_fixed
        assert not gradients(model)["head_gates.importance"].any()
        with torch.no_grad():
            model.head_gates.importance.neg_()
        resumed = build_gated("hard-concrete", kept, cooldown_updates=10)
        resumed.load_state_dict(model.state_dict())
        resumed.set_num_updates(12)
        for each in (model, resumed):
            for mode in (True, False):
                assert torch.equal(each.train(mode).head_gates.gates(), chosen)

    def test_never_happens_unless_asked_for(self):
        model = build_gated("hard-concrete", 5).train()
        model.set_num_updates(10**6)
        scores(model)
        assert not model.head_gates.is_fixed
        assert (model.head_gates.fixed_mask == -1).all()


class TestPenalty:
    def importance_gradient(self, penalty: float, copies: int) -> torch.Tensor:
        """Gradient of the importance as the trainer divides it: by the sample size."""
        model = build_gated("hard-concrete", 5, l0_penalty=penalty, cooldown_updates=10).train()
        source, lengths, previous = (each.repeat(copies, *[1] * (each.dim() - 1)) for each in sentences())
        inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
        sample = {"net_input": inputs, "target": previous, "ntokens": previous.numel()}
        task = argparse.Namespace(target_dictionary=Dictionary())
        criterion = LabelSmoothedCrossEntropyDspCriterion(task, sentence_avg=False, label_smoothing=0.1)
        loss, sample_size, logged = criterion(model, sample)
        assert torch.isclose(logged["head_penalty"], penalty * probability_open(model.head_gates.importance).sum())
        loss.backward()
        return model.head_gates.importance.grad / sample_size

    def test_weighs_the_same_at_any_batch_size(self):
        once, thrice = self.importance_gradient(0.5, 1), self.importance_gradient(0.5, 3)
        torch.testing.assert_close(once, thrice)
        opened = probability_open(build_gated("hard-concrete", 5).head_gates.importance.detach())
        added = once - self.importance_gradient(0.0, 1)
        torch.testing.assert_close(added, 0.5 * opened * (1 - opened), rtol=1e-4, atol=1e-5)

    def test_ends_when_the_heads_are_fixed(self):
        model = build_gated("hard-concrete", 5, cooldown_updates=0).train()
        source, lengths, previous = sentences()
        inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
        sample = {"net_input": inputs, "target": previous, "ntokens": previous.numel()}
        task = argparse.Namespace(target_dictionary=Dictionary())
        criterion = LabelSmoothedCrossEntropyDspCriterion(task, sentence_avg=False, label_smoothing=0.1)
        assert "head_penalty" not in criterion(model, sample)[2]


class TestOptions:
    def test_have_the_defaults_of_the_paper(self):
        method = METHODS["hard-concrete"].from_config(PruningConfig(seed=4))
        assert method == HardConcrete(seed=4, l0_penalty=0.05, fixes_at=None)

    @pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
    def test_of_its_own_must_make_sense(self, value):
        (reason,) = HardConcrete.objections(PruningConfig(l0_penalty=value))
        assert reason == f"`--l0-penalty` must be a number of at least 0, but is {value}."


def test_the_grid_of_these_tests_is_the_models():
    assert build_gated("hard-concrete", 1).layout.grid == Grid.of_heads((3, 3), (3, 3), (3, 3))
