"""Scorers against the naive computation: one sentence, one gate, one derivative at a time, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, few_examples, many_examples
from scored import ALL, GRID, PAIRS, SOME, UNEVEN, batch_of, dense, sentence_of, slow_derivatives, subject_of
from torch import Tensor

from fairseq_dsp.checkpoints.batches import loss_of
from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.surgery import attentions, mask_heads, modules_at, shrink_model
from fairseq_dsp.scoring import SCORERS, removal_order
from fairseq_dsp.scoring.subject import Subject
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.subset import hard_top_k


def slow_gradient_scores(model: Any, batches: list[dict[str, Any]], live: Tensor) -> list[float]:
    """The mean over sentences of the derivatives' sizes, then L2 by site, written from the paper's equation."""
    means = slow_derivatives(model, batches, live).abs().mean(dim=1).tolist()
    scores = []
    for _, span in model.layout.surviving.spans():
        norm = sum(value**2 for value in means[span]) ** 0.5
        scores += [value / norm if norm else 0.0 for value in means[span]]
    return scores


class TestGradient:
    @pytest.mark.parametrize("layout", [ALL, SOME, PAIRS, UNEVEN], ids=str)
    def test_is_the_mean_size_of_the_derivative_by_the_gate_normalised_by_site(self, layout):
        model = dense(layout)
        subject = subject_of(model)
        live = torch.ones(layout.count)
        found = SCORERS["gradient"]().score(subject, live)
        assert found.tolist() == pytest.approx(slow_gradient_scores(model, subject.batches, live), rel=1e-6, abs=1e-9)

    def test_of_what_is_left_is_that_of_the_masked_model(self):
        model = dense()
        live = torch.tensor(SOME.kept).double()
        found = SCORERS["gradient"]().score(subject_of(model), live)
        assert found.tolist() == pytest.approx(
            slow_gradient_scores(model, [batch_of(0), batch_of(1)], live), rel=1e-6, abs=1e-9
        )
        shrink_model(model, SOME)
        model.layout = SOME
        small = SCORERS["gradient"]().score(subject_of(model), torch.ones(SOME.count))
        torch.testing.assert_close(found[live > 0], small, rtol=1e-9, atol=1e-12)

    def test_of_heads_that_cannot_matter_is_zero(self):
        layout = Layout.parse("enc:101.111/dec:000.011/cross:000.000")
        found = SCORERS["gradient"]().score(subject_of(dense(layout)), torch.ones(layout.count))
        assert found[:5].tolist() == [0.0] * 5
        assert (found[5:] > 0).all()

    def test_of_no_heads_is_empty(self):
        layout = Layout(GRID, (False,) * 18)
        assert SCORERS["gradient"]().score(subject_of(dense(layout)), torch.ones(0)).tolist() == []

    def test_has_the_absolute_value_that_signed_sums_lack(self):
        """Derivatives of opposite sign must not cancel: a batch twice counts like once."""
        model = dense()
        once = SCORERS["gradient"]().score(subject_of(model, (0,)), torch.ones(18))
        assert torch.allclose(SCORERS["gradient"]().score(subject_of(model, (0, 0)), torch.ones(18)), once)
        signed = torch.zeros(18, dtype=torch.float64)
        for row in range(3):
            mask_heads(model, model.layout, model.layout)
            gates = []
            for _, attention in attentions(model, GRID):
                attention.gates.mask = torch.ones(3, dtype=torch.float64, requires_grad=True)
                gates.append(attention.gates.mask)
            loss = loss_of(model, sentence_of(batch_of(0), row)).sum()
            signed += torch.cat(torch.autograd.grad(loss, gates))
        assert (once > 0).all()
        assert (signed / signed.norm() - once / once.norm()).abs().max() > 0.01

    def test_leaves_the_model_as_it_was(self):
        model = dense()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        SCORERS["gradient"]().score(subject_of(model), torch.ones(18))
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        assert not any(attention.out_proj._forward_pre_hooks for _, attention in attentions(model, GRID))

    @pytest.mark.parametrize("live", [torch.zeros(18), torch.ones(18)])
    def test_has_norm_one_at_every_site_with_heads(self, live):
        scores = SCORERS["gradient"]().score(subject_of(dense()), live)
        norms = [scores[span].norm().item() for _, span in GRID.spans()]
        assert norms == pytest.approx([float(live[0])] * 6)


class TestMagnitude:
    @pytest.mark.parametrize("layout", [ALL, SOME, PAIRS, UNEVEN], ids=str)
    def test_is_the_norm_of_all_that_goes_with_the_unit(self, layout):
        model = dense(layout)
        found = SCORERS["magnitude"]().score(subject_of(model), torch.ones(layout.count)).tolist()
        slow = []
        for _, attention in attentions(model, GRID):
            for head in range(attention.num_heads):
                rows = range(head * attention.head_dim, (head + 1) * attention.head_dim)
                total = 0.0
                for row in rows:
                    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                        total += sum(value**2 for value in projection.weight[row].tolist())
                        total += projection.bias[row].item() ** 2
                    total += sum(value**2 for value in attention.out_proj.weight[:, row].tolist())
                slow.append(total**0.5)
        for site, groups in layout.surviving.counts:
            layer = modules_at(model, layout.grid)[site]
            for group in range(groups if site.stack.startswith("ffn") else 0):
                width = layer.fc1.out_features // groups
                total = 0.0
                for row in range(group * width, (group + 1) * width):
                    total += sum(value**2 for value in layer.fc1.weight[row].tolist()) + layer.fc1.bias[row].item() ** 2
                    total += sum(value**2 for value in layer.fc2.weight[:, row].tolist())
                slow.append(total**0.5)
        assert found == pytest.approx(slow)


class TestRandom:
    def test_is_a_function_of_the_seed(self):
        model = dense()
        draws = [SCORERS["random"]().score(subject_of(model, seed=seed), torch.ones(18)).tolist() for seed in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]
        assert len(set(draws[0])) == 18


class Scripted:
    """A scorer that says what it is told, and notes what it was asked."""

    name, reads_data = "scripted", True

    name = "scripted"

    def __init__(self, *answers: list[float]) -> None:
        self.answers, self.asked = list(answers), []

    def score(self, subject: Any, live: Tensor) -> Tensor:
        self.asked.append(live.clone())
        return torch.tensor(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0], dtype=torch.float64)


class TestRemovalOrder:
    @many_examples
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 5))
    def test_of_one_scoring_agrees_with_the_highest_scores_ties_included(self, scores, more):
        count = len(scores)
        grid = Grid.of_heads((count,), (), ())
        scorer = Scripted([float(score) for score in scores])
        subject = Subject(grid, {}, [], lambda batch: batch, 1)
        first, order = removal_order(scorer, subject, count + more)
        assert len(scorer.asked) == 1
        assert first.tolist() == scores
        for k in range(count + 1):
            kept = [head not in order[: count - k] for head in range(count)]
            assert Layout.of_mask(grid, kept) == Layout.of_mask(grid, hard_top_k(first, k))

    @few_examples
    @given(st.integers(1, 7))
    def test_scores_again_after_every_few_and_only_what_is_left(self, step):
        scorer = Scripted([float(head) for head in range(7)])
        _, order = removal_order(scorer, Subject(Grid.of_heads((7,), (), ()), {}, [], lambda batch: batch, 1), step)
        assert order == list(range(7))
        assert len(scorer.asked) == -(-7 // step)
        assert [int(live.sum()) for live in scorer.asked] == list(range(7, 0, -step))

    def test_follows_the_scores_as_they_change(self):
        scorer = Scripted([1, 2, 3, 4], [0, 9, 8, 7], [0, 5, 6, 0])
        _, order = removal_order(scorer, Subject(Grid.of_heads((4,), (), ()), {}, [], lambda batch: batch, 1), 1)
        assert order == [0, 3, 1, 2]

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    @pytest.mark.parametrize("turn", [0, 1, 2])
    def test_of_scores_that_are_no_numbers_is_refused_in_whatever_round(self, turn, value):
        answers = [[0.1, 0.2, 0.3, 0.4] for _ in range(4)]
        answers[turn][3] = float(value)
        subject = Subject(Grid.of_heads((4,), (), ()), {}, [], lambda batch: batch, 1)
        with pytest.raises(Refusal, match=f"of `--scorer scripted` must be finite, .* with {4 - turn} of 4 heads left"):
            removal_order(Scripted(*answers), subject, 1)

    def test_of_a_model_without_heads_is_empty(self):
        assert (
            removal_order(Scripted([]), Subject(Grid.of_heads((), (), ()), {}, [], lambda batch: batch, 1), 2)[1] == []
        )

    def test_by_gradient_of_a_real_model_equals_one_scoring_at_once_and_differs_head_by_head(self):
        model = dense()
        scorer = SCORERS["gradient"]()
        scores, at_once = removal_order(scorer, subject_of(model, (0,)), 18)
        assert at_once == sorted(range(18), key=lambda head: float(scores[head]))
        again, one_by_one = removal_order(scorer, subject_of(model, (0,)), 1)
        assert torch.equal(again, scores)
        assert sorted(one_by_one) == list(range(18))
        assert one_by_one[0] == at_once[0]
        assert one_by_one != at_once


def test_loss_of_a_batch_is_that_of_its_sentences_one_by_one():
    model = build(head_layout=str(ALL))
    together = loss_of(model, batch_of(0))
    apart = torch.cat([loss_of(model, sentence_of(batch_of(0), row)) for row in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)
