"""A range of budgets: which K are trained, that their sets are nested, and that what trains is what is deployed."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import devices
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, build, build_gated, few_examples, gradients, many_examples, randomise, scores, sentences

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods import METHODS
from fairseq_dsp.methods.nested import Nested, objections_to_nested
from fairseq_dsp.methods.schedule import Scheduled
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.plugin import building
from fairseq_dsp.plugin.criterion import LabelSmoothedCrossEntropyDspCriterion
from fairseq_dsp.plugin.progress import at_each_budget
from fairseq_dsp.plugin.teacher import Teacher
from fairseq_dsp.units.floors import floors_of, parse_floor, top_k_above_floors

HEADS = 18
NESTING = [name for name, method in METHODS.items() if issubclass(method, Scheduled)]
ranges = st.tuples(st.integers(1, 71), st.integers(2, 72)).filter(lambda pair: pair[0] < pair[1])
methods = pytest.mark.parametrize("method", NESTING)


def nested(low: int, high: int, law: str = "log-uniform", end: int = 0, **more: Any) -> Nested:
    values = {"seed": 1, "start": 0, "sandwich": False, "self_distillation": 0.0, **more}
    return Nested(low, high, law, end=end, **values)


def model_of(method: str = "dsp", budgets: str = "3..18", update: int = 1, **options: Any) -> Any:
    model = build_gated(method, budgets, **{"cooldown_updates": 10, **options})
    model.set_num_updates(update)
    return model


class TestLaw:
    @given(ranges, st.sampled_from(["log-uniform", "uniform"]), st.integers(0, 10**6), st.integers(0, 400))
    @many_examples
    def test_draws_within_the_range_whose_lower_end_falls(self, budgets, law, update, end):
        low, high = budgets
        found = nested(low, high, law, end)
        assert low <= found.lowest_at(update) <= found.drawn_at(update) <= high
        assert found.drawn_at(update) == nested(low, high, law, end).drawn_at(update)
        if end == 0 or update >= end:
            assert found.lowest_at(update) == low
        if end:
            assert found.drawn_at(0) == high
        assert found.passes_at(update) == (found.drawn_at(update),)
        wide = nested(low, high, law, end, sandwich=True)
        assert wide.passes_at(update) == (high, found.drawn_at(update), found.lowest_at(update))

    def test_is_even_over_the_logarithm_but_for_the_largest(self):
        found = Counter(nested(4, 72).drawn_at(update) for update in range(20000))
        assert found[72] / 20000 == pytest.approx(0.25, abs=0.02)
        others = sum(1 / k for k in range(4, 72))
        for k in (4, 8, 30, 71):
            assert found[k] / 20000 == pytest.approx(0.75 / k / others, rel=0.3)

    def test_may_be_even_over_the_range(self):
        found = Counter(nested(1, 10, "uniform").drawn_at(update) for update in range(20000))
        assert sorted(found) == list(range(1, 11))
        assert all(count / 20000 == pytest.approx(0.1, abs=0.01) for count in found.values())

    def test_reports_both_ends_and_what_is_between(self):
        assert nested(4, 72).reported(72) == (4, 6, 12, 24, 72)
        assert nested(7, 20).reported(72) == (7, 12, 20)
        assert nested(1, 2).reported(2) == (1, 2)

    def test_differs_from_the_noise_of_the_same_update_and_by_seed(self):
        one = [nested(1, 72).drawn_at(update) for update in range(50)]
        assert one != [nested(1, 72, seed=2).drawn_at(update) for update in range(50)]


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"unpruned_heads": "9..4"}, "from a number above 0 to a larger one, but is 9..4"),
            ({"unpruned_heads": "4..4"}, "from a number above 0 to a larger one"),
            ({"unpruned_heads": "0..4"}, "from a number above 0 to a larger one"),
            ({"unpruned_heads": "3..9", "head_selection": "hard-concrete"}, "a range for dsp, ste, simple alone"),
            ({"unpruned_heads": "3..9", "head_selection": "fixed"}, "a range for dsp, ste, simple alone"),
            ({"unpruned_heads": "3..9", "keep_sampling": True}, "`--keep-sampling` must not"),
            ({"unpruned_heads": "3..9", "nested_law": "normal"}, "must be log-uniform or uniform"),
            ({"unpruned_heads": "3..9", "sandwich": True, "self_distillation": 1.5}, "above 0 and at most 1"),
            ({"unpruned_heads": "3..9", "self_distillation": 0.5}, "needs `--sandwich`"),
            ({"unpruned_heads": 3, "nested_law": "uniform"}, "must come with a range of budgets"),
            ({"unpruned_heads": 3, "sandwich": True}, "must come with a range of budgets"),
        ],
    )
    def test_that_do_not_fit_are_one_sentence(self, options, words):
        (reason,) = objections_to_nested(PruningConfig(**options))
        assert words in reason

    @pytest.mark.parametrize("budgets", ["3..19", "9..4", "0..3"])
    def test_that_the_model_cannot_meet_are_refused(self, budgets, capsys):
        with pytest.raises(SystemExit) as exit_:
            model_of(budgets=budgets)
        assert exit_.value.code == 2
        assert budgets in capsys.readouterr().err

    def test_below_the_floor_are_refused(self, capsys):
        with pytest.raises(SystemExit):
            model_of(budgets="1..9", cross_floor="layer")
        assert "`--cross-floor layer` must fit the budget of 1 heads" in capsys.readouterr().err

    def test_of_a_single_number_are_no_range(self):
        assert PruningConfig(unpruned_heads="auto").budget_range is None
        assert PruningConfig(unpruned_heads=4).budget_range is None
        assert PruningConfig(unpruned_heads="4..72").budget_range == (4, 72)
        assert Nested.from_config(PruningConfig(unpruned_heads=4)) is None


class TestSets:
    @given(st.integers(0, 99), st.sampled_from([None, "1", "layer", "4"]))
    @few_examples
    def test_are_nested_and_the_first_of_one_order(self, seed, floor):
        model = model_of(budgets="5..18", cross_floor=floor)
        randomise(model, seed)
        gates = model.head_gates
        before: set[int] = set()
        for k in range(5, HEADS + 1):
            with gates.at(k):
                marks = gates.decided_mask()
            kept = {head for head, mark in enumerate(marks.tolist()) if mark}
            assert len(kept) == k
            assert before <= kept
            assert kept == set(gates.order()[:k])
            expected = top_k_above_floors(gates.importance, k, floors_of(gates.grid, parse_floor(floor)))
            assert torch.equal(marks, expected)
            before = kept

    def test_of_equal_importance_are_too(self):
        model = model_of()
        with torch.no_grad():
            model.head_gates.importance.zero_()
        for k in (3, 9):
            with model.head_gates.at(k):
                assert set(model.head_gates.order()[:k]) == set(
                    model.head_gates.decided_mask().nonzero().flatten().tolist()
                )


@methods
class TestTraining:
    def test_draws_the_budget_of_the_update_until_the_cooldown_and_after(self, method):
        model = model_of(method)
        gates = model.head_gates
        assert isinstance(gates, NestedGates)
        for update in (0, 3, 9, 10, 11, 30):
            model.set_num_updates(update)
            drawn = gates.train()._draw()
            assert drawn.sum().item() == pytest.approx(gates.nested.drawn_at(update), abs=1e-4)
            if update >= 10:
                assert set(drawn.tolist()) <= {0.0, 1.0}
                assert not gradients(model)["head_gates.importance"].any()

    @pytest.mark.parametrize("activations", [False, True])
    def test_trains_the_function_that_is_deployed_for_any_budget(self, method, activations):
        model = model_of(method, update=10, checkpoint_activations=activations)
        for k in (3, 7, 18, 4):
            with model.head_gates.at(k):
                assert_same(scores(model.train()), scores(model.eval()))

    def test_of_recomputed_activations_has_the_same_gradients_whatever_runs_in_between(self, method):
        found = []
        for activations in (False, True):
            model = model_of(method, update=10, checkpoint_activations=activations).train()
            with model.head_gates.at(4):
                first = scores(model)
            with model.head_gates.at(11):  # before the layers of the first pass run again
                second = scores(model)
            (first.square().sum() + second.square().sum()).backward()
            found.append({name: p.grad for name, p in model.named_parameters()})
        for name, gradient in found[0].items():
            assert_same(found[1][name], gradient, 1e-9)

    def test_gives_every_parameter_a_finite_gradient(self, method):
        for update in (1, 10):
            model = model_of(method, update=update)
            found = gradients(model)
            assert found.keys() == {name for name, _ in model.named_parameters()}
            assert all(torch.isfinite(gradient).all() for gradient in found.values())

    def test_once_fixed_waits_for_the_device_once(self, method):
        with devices.on(devices.PRETENDED):
            model = model_of(method, update=10).train()
            model.head_gates.order()
            with devices.reads_from_the_device() as found:
                for update in (10, 11, 12):
                    model.set_num_updates(update)
                    model.head_gates._draw()
                    model.head_gates.constant_marks(anew=True)
            assert found == []


def batch() -> dict[str, Any]:
    source, lengths, previous = sentences()
    target = torch.cat([previous[:, 1:], previous[:, :1]], dim=1)
    inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
    return {"net_input": inputs, "target": target, "ntokens": target.numel(), "nsentences": 3}


def criterion_of(model: Any) -> LabelSmoothedCrossEntropyDspCriterion:
    task = argparse.Namespace(target_dictionary=model.decoder.dictionary)
    return LabelSmoothedCrossEntropyDspCriterion(task, sentence_avg=False, label_smoothing=0.1)


class TestSandwich:
    @pytest.mark.parametrize("update", [3, 12])
    @pytest.mark.parametrize("share", [None, 0.5])
    def test_is_the_mean_of_three_passes_of_which_the_largest_teaches(self, update, share):
        model = model_of(sandwich=True, self_distillation=share, update=update).train()
        gates, criterion, sample = model.head_gates, criterion_of(model), batch()
        loss, _, logged = criterion(model, sample)
        loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        passes, total, sure = gates.nested.passes_at(update), 0.0, None
        assert passes[0] == 18
        target = sample["target"].flatten()
        for k in passes:
            with gates.at(k):
                log_probs = model(**sample["net_input"])[0].log_softmax(-1).flatten(0, 1)
            counts = target != 1
            each = 0.1 / 12
            nll = -log_probs.gather(1, target[:, None])[:, 0][counts].sum()
            hard = (0.9 - each) * nll + each * -log_probs.sum(-1)[counts].sum()
            if share and sure is not None:
                apart = (sure.exp() * (sure - log_probs)).sum(-1)[counts].sum()
                hard = (1 - share) * hard + share * apart
            sure = log_probs.detach() if sure is None else sure
            total = total + hard / 3
        total.backward()
        assert_same(loss, total, 1e-9)
        assert logged["heads_on"] == sum(passes) / 3
        for name, parameter in model.named_parameters():
            assert_same(found[name], parameter.grad, 1e-8)
        assert (criterion.teacher, criterion.share) == (None, 0.0)

    @pytest.mark.parametrize("share", [None, 0.5])
    @pytest.mark.parametrize("taught", [False, True])
    def test_logs_the_teacher_s_divergence_and_time_and_not_its_own(self, share, taught):
        model = model_of(sandwich=True, self_distillation=share, update=12).train()
        criterion, sample, asked = criterion_of(model), batch(), []
        if taught:

            class Counted(Teacher):
                def logits(self, student, net_input):
                    asked.append(student(**net_input)[0].detach())
                    return super().logits(student, net_input)

            criterion.teach(Counted(build(head_layout=str(model.layout))), 0.3)
        _, _, logged = criterion(model, sample)
        assert ("teacher_kl" in logged, "teacher_seconds" in logged) == (taught, taught)
        if not taught:
            return
        target, sure = sample["target"].flatten(), criterion.teacher.model(**sample["net_input"])[0].log_softmax(-1)
        apart = [
            (sure.exp() * (sure - each.log_softmax(-1))).sum(-1).flatten()[target != 1].sum().item() for each in asked
        ]
        assert len(apart) == (1 if share else 3)  # a model that teaches itself is taught at its largest budget alone
        assert float(logged["teacher_kl"]) == pytest.approx(sum(apart) / len(apart))
        _, _, again = criterion(model, sample)
        assert float(again["teacher_kl"]) == pytest.approx(float(logged["teacher_kl"]))

    def test_one_pass_is_that_of_the_drawn_budget(self):
        model = model_of(update=12).train()
        drawn = model.head_gates.nested.drawn_at(12)
        loss, _, logged = criterion_of(model)(model, batch())
        with model.head_gates.at(drawn):
            other, *_ = criterion_of(model.eval())(model, batch())
        assert_same(loss, other, 1e-9)
        assert logged["heads_on"] == drawn


def test_validation_is_the_mean_over_the_reported_budgets():
    model = model_of(update=12).eval()
    gates, criterion = model.head_gates, criterion_of(model)
    loss, size, logs = at_each_budget(gates, lambda: criterion(model, batch()))
    reported = gates.nested.reported(HEADS)
    assert reported == (3, 6, 18)
    total = 0.0
    for k in reported:
        with gates.at(k):
            one, tokens, logged = criterion(model, batch())
        total += float(one.detach())
        assert float(logs[f"nll_k{k}"]) == pytest.approx(float(logged["nll_loss"]))
    assert float(loss.detach()) == pytest.approx(total)
    assert size == 3 * tokens
    assert (logs["nsentences"], logs["budget_tokens"]) == (3, 12)
    criterion.reduce_metrics([logs])


def test_nobody_deploys_it_without_saying_for_how_many_heads():
    model = model_of(update=12).eval()
    for deploying in (model.deployed_layout, model.bake):
        with pytest.raises(Refusal, match="how many heads to keep"):
            deploying()


def test_a_teacher_that_deploys_nothing_by_itself_is_refused_by_its_option(monkeypatch):
    monkeypatch.setattr(building, "read_checkpoint", lambda path: {})
    monkeypatch.setattr(building, "load_model", lambda state: model_of(update=12))
    with pytest.raises(Refusal, match="^`--teacher`: `--unpruned-heads` must say how many heads to keep"):
        Teacher.of("range.pt")
