"""The table of estimators: its truth against all ordered draws, its figures of gradients that are known, the command."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fairseq_dsp.benchmark import estimators
from fairseq_dsp.benchmark.estimators import Problem, drawn_gradients, quality, true_gradient
from fairseq_dsp.benchmark.estimators import estimators as rows
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods import METHODS
from fairseq_dsp.units.budget import Budget

IMPORTANCE = torch.tensor([0.3, -1.0, 0.8, 0.0, 1.5])


def slow_loss(problem: Problem, gates: list[float]) -> float:
    heads = range(len(gates))
    alone = sum(problem.values[i].item() * gates[i] for i in heads)
    return sum(problem.shared[i, j].item() * gates[i] * gates[j] for i in heads for j in heads if i < j) - alone


def slow_gradient(problem: Problem, importance: Tensor, kept: int) -> Tensor:
    """Of the expected loss over all ordered draws of K heads without replacement."""
    variables = importance.double().requires_grad_()
    expected = torch.zeros(())
    for order in itertools.permutations(range(len(importance)), kept):
        probability, left = torch.ones(()), list(range(len(importance)))
        for head in order:
            probability = probability * variables[head].exp() / variables[left].exp().sum()
            left.remove(head)
        expected = expected + probability * slow_loss(problem, [float(i in order) for i in range(len(importance))])
    expected.backward()
    assert variables.grad is not None
    return variables.grad


def test_the_loss_is_that_of_values_and_of_pairs_in_a_group():
    problem = Problem.of(7, seed=3)
    assert sorted(problem.values.tolist(), reverse=True) == pytest.approx([rank**-1.2 for rank in range(1, 8)])
    for i, j in itertools.product(range(7), repeat=2):
        value = 0.5 * math.sqrt(problem.values[i] * problem.values[j]) if i != j and i // 4 == j // 4 else 0.0
        assert problem.shared[i, j].item() == pytest.approx(value)
    gates = torch.rand(3, 7, generator=torch.Generator().manual_seed(1))
    assert problem.loss(gates).tolist() == pytest.approx([slow_loss(problem, row) for row in gates.tolist()], abs=1e-6)


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_the_truth_is_the_gradient_over_all_ordered_draws(kept):
    problem = Problem.of(5, seed=1)
    found = true_gradient(problem, IMPORTANCE, kept, draws=100_000, seed=2)
    assert found.tolist() == pytest.approx(slow_gradient(problem, IMPORTANCE, kept).tolist(), abs=0.01)
    assert found.sum().item() == pytest.approx(0, abs=1e-9)


def test_the_truth_is_where_soft_estimators_at_warm_temperatures_point():
    problem = Problem.of(5, seed=1)
    truth = slow_gradient(problem, IMPORTANCE, 2)
    for name in ("dsp, projection, t = 0.5", "simple"):
        config = rows()[name]
        method = METHODS[config.head_selection].from_config(config)
        assert quality(drawn_gradients(method, problem, IMPORTANCE, 2, draws=200), truth).bias > 0.95


class TestFigures:
    def test_of_a_gradient_without_noise(self):
        truth = torch.tensor([1.0, -1.0, 2.0, 0.0])
        same = quality(truth.repeat(5, 1) * 3 + 7, truth)  # neither length nor a common shift counts
        assert (same.bias, same.one_draw, same.noise) == pytest.approx((1, 1, 0), abs=1e-6)
        assert quality(-truth.repeat(5, 1), truth).bias == pytest.approx(-1)

    def test_of_noise_that_is_as_long_as_the_signal(self):
        signal, noise = torch.tensor([1.0, -1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, -1.0])
        found = quality(torch.stack([signal + noise, signal - noise]), signal)
        assert (found.bias, found.one_draw, found.noise) == pytest.approx((1, math.sqrt(0.5), 1))

    def test_of_heads_whose_gradient_is_dead(self):
        draw = torch.tensor([1.0, -1.0, 1e-3, -1e-3])
        assert quality(draw.repeat(2, 1), draw).living == 0.5


def test_a_draw_is_the_gradient_of_one_update_of_the_method():
    problem = Problem.of(5, seed=1)
    config = rows()["ste"]
    method = METHODS["ste"].from_config(config)
    found = drawn_gradients(method, problem, IMPORTANCE, 2, draws=2)
    gates = method.gates(IMPORTANCE, Budget.of_units(2, len(IMPORTANCE)), 0).detach().requires_grad_()
    problem.loss(gates).backward()
    assert gates.grad is not None
    assert all(torch.equal(draw, gates.grad) for draw in found)


def test_the_command_prints_all_estimators_in_all_states(capsys):
    options = ["--heads", "8", "--unpruned-heads", "3", "--draws", "2", "--truth-draws", "9"]
    estimators.main(options)
    printed = capsys.readouterr().out
    assert "3 of 8 heads" in printed
    for name in rows():
        (line,) = [line for line in printed.splitlines() if f" {name} " in line]
        assert line.count(" / ") == 4 * (len(estimators.STATES) - 1)


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        (
            ["--unpruned-heads", "72"],
            ["`--unpruned-heads` must be between 1 and 71, for there is no choice otherwise, but is 72."],
        ),
        (["--heads", "1"], ["`--heads` must be at least 2, but is 1."]),
        (
            ["--draws", "0", "--truth-draws", "1", "--seed", "-1"],
            [
                "`--draws` must be at least 2, but is 0.",
                "`--truth-draws` must be at least 2, but is 1.",
                "`--seed` must be at least 0, but is -1.",
            ],
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(options, reasons):
    with pytest.raises(Refusal) as refused:
        estimators.main(options)
    assert list(refused.value.reasons) == reasons
