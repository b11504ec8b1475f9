"""PASS against a loop written from its released code: penalty, rounds, and whether the gates come to the budget."""

from __future__ import annotations

import math

import pytest
import torch
from models import build_gated, scores
from torch import Tensor

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods.pass_ import Pass
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.subset import hard_concrete, hard_top_k, logistic_noise

HEADS = 18
BUDGET = Budget.of_units(5, HEADS)


def method(**options) -> Pass:
    return Pass.from_config(PruningConfig(head_selection="pass", **{"unpruned_heads": 5, **options}))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def own(rounds: float = 0, doublings: float = 0) -> dict[str, Tensor]:
    return {"rounds_begun": torch.tensor(float(rounds)), "doublings": torch.tensor(float(doublings))}


@pytest.mark.parametrize("doublings", [0, 1, 7])
@pytest.mark.parametrize("spread", [0.5, 6.0, 40.0])
def test_the_penalty_is_that_of_the_released_code(doublings, spread):
    importance = torch.linspace(-spread, spread, HEADS).double()
    sums = [0.0, 0.0, 0.0]
    for a in importance.tolist():
        zero, one = sigmoid(0.33 * math.log(0.1 / 1.1) - a), sigmoid(a - 0.33 * math.log(1.1 / 0.1))
        for kind, value in enumerate((zero, one, 1 - zero - one)):
            sums[kind] += min(max(value, 1e-6), 1 - 1e-6)
    slow = 0.1 * 2**doublings * (sums[2] + abs(HEADS - 5 - sums[0]) + abs(5 - sums[1])) / 3500
    assert method().penalty(importance, BUDGET, 3, **own(1, doublings)).item() == pytest.approx(slow, rel=1e-6)


def test_gates_are_hard_concrete_draws():
    importance = torch.linspace(-3, 3, HEADS)
    noise = logistic_noise(HEADS, 9, 4).float()
    assert torch.equal(method(seed=9).gates(importance, BUDGET, 4), hard_concrete(importance, noise))


class TestRounds:
    def begun(self, importance: Tensor, update: int, state: dict[str, Tensor], **options) -> tuple[float, float]:
        method(cooldown_updates=90, **options).begin_update(importance, BUDGET, update, **state)
        return state["rounds_begun"].item(), state["doublings"].item()

    def test_are_a_thirtieth_of_the_cooldown_and_double_the_penalty_while_the_budget_is_not_met(self):
        importance, state = torch.zeros(HEADS), own()
        found = [self.begun(importance, update, state) for update in range(8)]
        assert found == [(1, 1)] * 3 + [(2, 2)] * 3 + [(3, 3)] * 2
        importance[5:] = -5.0  # as many as the budget closes
        assert [self.begun(importance, update, state) for update in (9, 12)] == [(4, 3), (5, 3)]
        importance[0] = -7.0  # one more
        assert self.begun(importance, 15, state) == (6, 4)

    def test_cut_log_alpha_off_from_the_second_on(self):
        values = torch.linspace(-9, 9, HEADS)
        for update, cut in ((0, False), (1, False), (3, True), (4, False), (6, True)):
            importance = values.clone()
            self.begun(importance, update, own(update // 3))
            assert torch.equal(importance, values.clamp(-5, 5) if cut else values)

    def test_begin_once_an_update_however_many_micro_batches_it_has(self):
        for update in (0, 3):
            importance, state = torch.linspace(-9, 9, HEADS), own(update // 3, update // 3)
            first = self.begun(importance, update, state), importance.clone()
            assert self.begun(importance, update, state) == first[0]
            assert torch.equal(importance, first[1])

    def test_are_thirty_even_where_sampling_goes_on(self):
        state = own(30, 12)
        assert self.begun(torch.zeros(HEADS), 90, state, keep_sampling=True) == (30, 12)
        assert self.begun(torch.zeros(HEADS), 900, state, keep_sampling=True) == (30, 12)

    def test_start_anew_with_a_training(self):
        assert self.begun(torch.zeros(HEADS), 0, own(30, 12)) == (1, 1)

    def test_of_a_short_cooldown_are_updates(self):
        assert method(cooldown_updates=7).updates_a_round == 1
        assert method(cooldown_updates=0).updates_a_round == 1
        assert method() == Pass(seed=1, updates_a_round=500, fixes_at=15000)
        assert method(keep_sampling=True).fixes_at is None


@pytest.mark.parametrize("kept", [3, 12])
def test_gates_come_to_the_budget_and_to_zero_or_one(kept):
    each, budget = method(cooldown_updates=900), Budget.of_units(kept, HEADS)
    importance = (0.5 * torch.randn(HEADS, generator=torch.Generator().manual_seed(1))).requires_grad_()
    state, worth = own(), torch.linspace(1, 0.02, HEADS)
    optimizer = torch.optim.Adam([importance], lr=0.2, betas=(0.9, 0.98))
    for update in range(900):
        with torch.no_grad():
            each.begin_update(importance, budget, update, **state)
        loss = (worth * (1 - each.gates(importance, budget, update))).sum() / 10 + each.penalty(
            importance, budget, update, **state
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal((importance > 0).float(), hard_top_k(importance, kept))
    assert importance.abs().min() > 2
    assert hard_top_k(importance, kept)[:kept].sum() >= kept - 1  # the loss wants the first


def test_its_records_are_in_the_state_and_move_with_training():
    model = build_gated("pass", 5, cooldown_updates=60).half().train()
    scores(model)
    state = model.state_dict()
    assert state["head_gates.rounds_begun"].dtype == state["head_gates.doublings"].dtype == torch.float32
    assert state["head_gates.rounds_begun"] == 1
    model.eval().set_num_updates(2)
    scores(model)
    assert model.head_gates.rounds_begun == 1  # evaluation is no training
