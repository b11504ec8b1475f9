"""The scorers that square derivatives, against the naive computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import few_examples
from scored import ALL, GRID, PAIRS, SINGLE, SOME, UNEVEN, batch_of, dense, sentence_of, slow_derivatives, subject_of
from torch import Tensor

from fairseq_dsp.checkpoints.batches import loss_of
from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.surgery import modules_at
from fairseq_dsp.scoring import SCORERS
from fairseq_dsp.scoring.joint_cost import removal_by_joint_cost
from fairseq_dsp.scoring.subject import Subject
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.subset import hard_top_k


class TestFisher:
    @pytest.mark.parametrize("layout", [ALL, SOME], ids=str)
    def test_is_the_mean_square_of_the_derivative_by_the_gate(self, layout):
        model = dense(layout)
        subject = subject_of(model)
        live = torch.ones(layout.count)
        wanted = slow_derivatives(model, subject.batches, live).square().mean(dim=1)
        torch.testing.assert_close(SCORERS["fisher"]().score(subject, live), wanted, rtol=1e-6, atol=1e-9)

    def test_of_what_is_left_is_that_of_the_masked_model(self):
        model = dense()
        live = torch.tensor(SOME.kept).double()
        found = SCORERS["fisher"]().score(subject_of(model), live)
        wanted = slow_derivatives(model, [batch_of(0), batch_of(1)], live).square().mean(dim=1)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)

    def test_does_not_depend_on_how_sentences_are_put_into_batches(self):
        model = dense()
        found = SCORERS["fisher"]().score(subject_of(model, (0,)), torch.ones(18))
        one_by_one = Subject(
            grid=GRID,
            modules=modules_at(model, GRID),
            batches=[sentence_of(batch_of(0), row) for row in range(3)],
            loss=lambda batch: loss_of(model, batch),
            seed=1,
        )
        torch.testing.assert_close(SCORERS["fisher"]().score(one_by_one, torch.ones(18)), found, rtol=1e-9, atol=1e-12)

    def test_of_heads_that_cannot_matter_is_zero(self):
        layout = Layout.parse("enc:101.111/dec:000.011/cross:000.000")
        found = SCORERS["fisher"]().score(subject_of(dense(layout)), torch.ones(layout.count))
        assert found[:5].tolist() == [0.0] * 5
        assert (found[5:] > 0).all()


def slow_rearranged(model: Any, batches: list[dict[str, Any]], live: Tensor) -> list[float]:
    """Every site's diagonal values in rising order, given to its live units in the order in which these go, one at a time."""
    derivatives = slow_derivatives(model, batches, live)
    scores = [0.0] * len(live)
    for _, span in model.layout.surviving.spans():
        units = [unit for unit in range(span.start, span.stop) if live[unit]]
        values = sorted(float(derivatives[unit].square().mean()) for unit in units)
        removed: list[int] = []
        for value in values:
            costs = {
                unit: float(derivatives[[*removed, unit]].sum(dim=0).square().mean())
                for unit in units
                if unit not in removed
            }
            least = min(costs, key=lambda unit: (costs[unit], -unit))
            removed.append(least)
            scores[least] = value
    return scores


class TestFisherOfSeveralKinds:
    """Where neurons are units, the units of a site are rearranged by what they cost together."""

    @pytest.mark.parametrize("layout", [PAIRS, SINGLE, UNEVEN], ids=str)
    def test_gives_the_values_of_a_site_in_the_order_in_which_its_units_go(self, layout):
        model = dense(layout)
        subject, live = subject_of(model), torch.ones(layout.count)
        found = SCORERS["fisher"]().score(subject, live)
        wanted = slow_rearranged(model, subject.batches, live)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-9)

    def test_keeps_as_many_of_every_site_as_the_diagonal_would(self):
        model = dense(SINGLE)
        subject, live = subject_of(model), torch.ones(SINGLE.count)
        found = SCORERS["fisher"]().score(subject, live)
        diagonal = slow_derivatives(model, subject.batches, live).square().mean(dim=1)
        assert not torch.allclose(found, diagonal, rtol=1e-3)  # or nothing would be shown
        for k in range(SINGLE.count + 1):
            by_site = [
                [int(hard_top_k(scores, k)[span].sum()) for _, span in SINGLE.surviving.spans()]
                for scores in (found, diagonal)
            ]
            assert by_site[0] == by_site[1]

    def test_ranks_what_is_left_alone(self):
        model = dense(PAIRS)
        live = torch.tensor([unit % 3 > 0 for unit in range(PAIRS.count)]).double()
        found = SCORERS["fisher"]().score(subject_of(model), live)
        wanted = slow_rearranged(model, [batch_of(0), batch_of(1)], live)
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-9)

    def test_does_not_hide_a_derivative_that_is_no_number(self):
        model = dense(PAIRS)
        with torch.no_grad():
            model.decoder.layers[0].fc1.bias[0] = float("nan")
        assert SCORERS["fisher"]().score(subject_of(model), torch.ones(PAIRS.count)).isnan().any()


class TestJointFisher:
    def test_of_more_units_than_a_table_of_pairs_holds_is_refused(self):
        grid = Grid.of_stacks(ffn_enc=(9000,), ffn_dec=(9000,))
        subject = Subject(grid, {}, [], lambda batch: batch, 1)
        with pytest.raises(
            Refusal, match="`--scorer joint-fisher` must have at most 8192 units, .* but there are 18000"
        ):
            SCORERS["joint-fisher"]().score(subject, torch.ones(18000))

    @pytest.mark.parametrize("layout", [ALL, SOME, PAIRS, UNEVEN], ids=str)
    def test_is_the_order_of_removal_by_what_the_removed_cost_together(self, layout):
        model = dense(layout)
        subject = subject_of(model)
        live = torch.ones(layout.count)
        derivatives = slow_derivatives(model, subject.batches, live)
        information = derivatives @ derivatives.T / derivatives.size(1)
        found = SCORERS["joint-fisher"]().score(subject, live)
        removed: list[int] = []
        for place in range(1, layout.count + 1):
            head = found.tolist().index(place)
            costs = {
                each: joint_cost(information, [*removed, each]) for each in range(layout.count) if each not in removed
            }
            assert costs[head] <= min(costs.values()) * (1 + 1e-5) + 1e-12
            removed.append(head)

    def test_ranks_what_is_left_alone(self):
        found = SCORERS["joint-fisher"]().score(subject_of(dense()), torch.tensor(SOME.kept).double())
        assert sorted(found.tolist()) == [0.0] * (18 - SOME.count) + list(range(1, SOME.count + 1))

    @few_examples
    @given(st.integers(1, 7), st.integers(0, 99))
    def test_removes_by_definition_whatever_the_information(self, count, seed):
        root = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        information = root @ root.T
        order = removal_by_joint_cost(information, torch.ones(count))
        assert sorted(order) == list(range(count))
        for place, head in enumerate(order):
            costs = [joint_cost(information, [*order[:place], each]) for each in order[place:]]
            assert joint_cost(information, [*order[:place], head]) <= min(costs) + 1e-9

    def test_keeps_one_of_two_heads_that_do_the_same(self):
        """The diagonal would remove both twins before the third head."""
        derivatives = torch.tensor([[1.0, 1.0, 1.2], [-1.0, -1.0, 1.2]], dtype=torch.float64)
        information = derivatives.T @ derivatives / 2
        assert removal_by_joint_cost(information, torch.ones(3)) == [1, 2, 0]
        assert removal_by_joint_cost(torch.diag(information.diagonal()), torch.ones(3)) == [1, 0, 2]


def joint_cost(information: Tensor, removed: list[int]) -> float:
    return float(information[removed][:, removed].sum())
