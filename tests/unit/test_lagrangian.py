"""CoFi's constraint on hard concrete gates against a loop written from its equations, and whether it is met."""

from __future__ import annotations

import argparse
import math

import pytest
import torch
from fairseq.data import Dictionary
from models import build_gated, gradients, model_options, randomise, sentences

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods.lagrangian import Lagrangian, log_alpha
from fairseq_dsp.modules.gates import IMPORTANCE_GROUP
from fairseq_dsp.options.objections import objections
from fairseq_dsp.plugin.criterion import LabelSmoothedCrossEntropyDspCriterion
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.subset import hard_top_k

HEADS = 18
BUDGET = Budget.of_units(5, HEADS)
MULTIPLIERS = torch.tensor([-0.7, 1.9])


def method(**options) -> Lagrangian:
    return Lagrangian.from_config(PruningConfig(head_selection="lagrangian", **{"unpruned_heads": 5, **options}))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("update", [0, 3, 10, 99])
def test_the_penalty_is_that_of_the_paper(update):
    importance = torch.linspace(-8, 0, HEADS)
    closed = [sigmoid(2 / 3 * math.log(0.1 / 1.1) - (math.log(100) + w)) for w in importance.tolist()]
    excess = sum(closed) / HEADS - (HEADS - 5) / HEADS * min(1.0, update / 10)
    slow = MULTIPLIERS[0].item() * excess + MULTIPLIERS[1].item() * excess**2
    found = method(lagrangian_warmup=10).penalty(importance, BUDGET, update, multipliers=MULTIPLIERS)
    assert found.item() == pytest.approx(slow, rel=1e-5)


def test_gates_are_the_papers_with_its_temperature():
    importance = torch.linspace(-8, 0, HEADS)
    drawn = torch.stack([method().gates(importance, BUDGET, update) for update in range(3000)])
    assert drawn.min() == 0
    assert drawn.max() == 1
    closed = [sigmoid(2 / 3 * math.log(0.1 / 1.1) - (math.log(100) + w)) for w in importance.tolist()]
    assert (drawn == 0).float().mean(dim=0).tolist() == pytest.approx(closed, abs=0.04)


def test_multipliers_ascend_where_the_importance_descends():
    importance = torch.linspace(-8, 0, HEADS, requires_grad=True)
    multipliers = MULTIPLIERS.clone().requires_grad_()
    each = method(lagrangian_warmup=10)
    each.penalty(importance, BUDGET, 10, multipliers=multipliers).backward()
    excess = (each.expected_sparsity(importance) - 13 / 18).item()
    assert multipliers.grad.tolist() == pytest.approx([-excess, -(excess**2)])
    assert importance.grad.abs().max() > 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_log_alpha_stays_in_the_papers_range_and_may_come_back(sign):
    importance = torch.tensor([3.0, -0.5, -20.0], requires_grad=True)
    found = log_alpha(importance)
    assert found.tolist() == pytest.approx([math.log(100), math.log(100) - 0.5, math.log(0.01)])
    (sign * found.sum()).backward()
    assert importance.grad.tolist() == ([1, 1, 0] if sign > 0 else [0, -1, -1])


def test_a_training_starts_with_multipliers_of_its_own_and_keeps_them():
    for update, kept in ((0, False), (1, True), (8, True)):
        multipliers = MULTIPLIERS.clone()
        method().begin_update(torch.zeros(3), BUDGET, update, multipliers=multipliers)
        assert torch.equal(multipliers, MULTIPLIERS if kept else torch.zeros(2))


@pytest.mark.parametrize("lr", [0.1, 0.2])
@pytest.mark.parametrize("kept", [3, 12])
def test_the_constraint_is_met_with_the_heads_that_the_loss_wants(kept, lr):
    each, budget = method(cooldown_updates=800), Budget.of_units(kept, HEADS)
    importance = torch.zeros(HEADS, requires_grad=True)
    multipliers = torch.zeros(2, requires_grad=True)
    worth = torch.linspace(1, 0.02, HEADS)
    optimizer = torch.optim.Adam([importance, multipliers], lr=lr, betas=(0.9, 0.98))
    for update in range(800):
        with torch.no_grad():
            each.begin_update(importance, budget, update, multipliers=multipliers)
        loss = (worth * (1 - each.gates(importance, budget, update))).sum() / 10
        optimizer.zero_grad()
        (loss + each.penalty(importance, budget, update, multipliers=multipliers)).backward()
        optimizer.step()
    assert HEADS * (1 - each.expected_sparsity(importance).item()) == pytest.approx(kept, abs=1.5)
    assert hard_top_k(importance, kept)[: kept - 1].sum() >= kept - 2


def test_multipliers_live_with_the_importance_and_stay_float32():
    model = build_gated("lagrangian", 5).half()
    multipliers = model.head_gates.multipliers
    assert multipliers.param_group == IMPORTANCE_GROUP
    assert multipliers.dtype == torch.float32
    assert "head_gates.multipliers" in model.state_dict()
    assert not [name for name in build_gated("dsp", 5).state_dict() if "multipliers" in name]


def test_pipelined_trains_them_too():
    model = build_gated("lagrangian", 5, pipelined=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"head_gates.importance", "head_gates.multipliers"}


def test_the_criterion_gives_them_a_gradient_until_the_heads_are_fixed():
    for update, learns in ((3, True), (10, False)):
        model = build_gated("lagrangian", 5, cooldown_updates=10).train()
        randomise(model)
        model.set_num_updates(update)
        source, lengths, previous = sentences()
        inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
        sample = {"net_input": inputs, "target": previous, "ntokens": previous.numel()}
        task = argparse.Namespace(target_dictionary=Dictionary())
        criterion = LabelSmoothedCrossEntropyDspCriterion(task, sentence_avg=False, label_smoothing=0.1)
        loss, _, logged = criterion(model, sample)
        loss.backward()
        assert bool(model.head_gates.multipliers.grad.all()) == learns
        assert ("head_penalty" in logged) == learns


def test_gates_alone_leave_their_gradient_zero_but_there():
    found = gradients(build_gated("lagrangian", 5))
    assert torch.equal(found["head_gates.multipliers"], torch.zeros(2))


class TestOptions:
    def test_have_defaults_that_end_the_warm_up_half_way(self):
        assert method(seed=4) == Lagrangian(seed=4, warmup=7500, fixes_at=15000)
        assert method(cooldown_updates=100).warmup == 50
        assert method(keep_sampling=True).fixes_at is None

    @pytest.mark.parametrize("value", [-1, 101])
    def test_a_warm_up_outside_the_window_is_refused(self, value):
        options = {"cooldown_updates": 100, "lagrangian_warmup": value}
        (reason,) = objections(model_options(head_selection="lagrangian", unpruned_heads=5, **options))
        assert reason == f"`--lagrangian-warmup` must be between 0 and the cooldown (100), but is {value}."
