"""What every learned method must do. A method subscribes by being in `METHODS`; nothing here knows any of them."""

from __future__ import annotations

import copy
import io
from dataclasses import fields
from typing import Any

import pytest
import torch
from models import (
    assert_same,
    build_gated,
    build_with,
    gradients,
    model_options,
    randomise,
    scores,
    scores_as_generated,
)

from fairseq_dsp.checkpoints.choosing import choose_layout
from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.methods import METHODS, objections_to_method
from fairseq_dsp.methods.recipe import RECIPES, derive, objections_to_recipe
from fairseq_dsp.methods.schedule import Scheduled
from fairseq_dsp.modules.surgery import attentions, shrink_model, shrink_state

HEADS = 18

pytestmark = pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.learned])
budgets = pytest.mark.parametrize("kept", [0, 1, 7, HEADS - 1, HEADS])
choices = pytest.mark.parametrize("kept", [1, 7, HEADS - 1])


def choosing(method: str, kept: int | str, update: int = 1, seed: int = 0, **options: Any) -> Any:
    """A model in the middle of choosing, with random parameters."""
    model = build_gated(method, kept, **options)
    randomise(model, seed)
    model.set_num_updates(update)
    return model


def fixed(method: str, kept: int) -> Any:
    """A model whose heads have been fixed in a training pass, and whose importance has moved on since."""
    model = choosing(method, kept, cooldown_updates=10)
    scores(model.train())
    model.head_gates.end_update()
    model.set_num_updates(model.head_gates.method.fixes_at)
    scores(model.train())
    with torch.no_grad():
        model.head_gates.importance.neg_()
    return model.eval()


def moves_what_heads_are_ranked_by(model: Any) -> bool:
    """Whether an update would: by a gradient of the importance, or of a method that measures by what it has measured."""
    gates = model.head_gates
    before = gates.ranking().clone()
    gradients(model)
    scores(model)
    if (penalty := gates.penalty()) is not None:
        penalty.backward()
    gates.end_update()
    assert torch.isfinite(gates.importance.grad).all()
    assert torch.isfinite(gates.ranking()).all()
    assert gates.method.measures != gates.importance.grad.any()
    return bool(gates.importance.grad.any()) or not torch.equal(gates.ranking(), before)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class TestOptions:
    def test_that_are_not_given_have_values_that_fit(self, method):
        config = PruningConfig.from_model_cfg(model_options(head_selection=method, unpruned_heads=3))
        assert objections_to_method(config) == []
        assert METHODS[method].name == method

    def test_are_taken_or_refused_as_the_method_declares(self, method):
        values = {"bool": True, "int": 3, "float": 0.05, "str": "projection"}
        words = {"budget_schedule": "cubic", "head_counts": "even", "norm": "relative"}
        needed = {"budget_start_updates": {"budget_schedule": "cubic"}}
        kinds = {option.name: str(option.type).split(" ")[0] for option in fields(PruningConfig)}
        for option in {option for each in METHODS.values() for option in each.options}:
            given = {option: words.get(option, values[kinds[option]]), **needed.get(option, {})}
            cfg = model_options(head_selection=method, unpruned_heads=3, **given)
            found = objections_to_method(PruningConfig.from_model_cfg(cfg))
            if option in METHODS[method].options:
                assert found == []
            else:
                assert len(found) == len(given)
                for name, reason in zip(sorted(given), sorted(found), strict=True):
                    assert reason.startswith(f"{flag(name)} belongs to ")
                    assert f"`--head-selection {method}`" in reason


class TestRecipe:
    def test_derives_values_that_fit_and_that_move_the_importance(self, method):
        config = PruningConfig.from_model_cfg(model_options(head_selection=method, unpruned_heads=7))
        values = {name: value for name, value in derive(config, 100).items() if name != "importance_lr"}
        assert bool(values) == METHODS[method].has_window
        model = choosing(method, 7, **values)
        assert model.head_gates.method.fixes_at == (40 if values else None)
        assert moves_what_heads_are_ranked_by(model)

    def test_may_be_named_where_there_is_a_window_alone(self, method):
        for recipe in RECIPES:
            cfg = model_options(head_selection=method, unpruned_heads=3, recipe=recipe)
            assert bool(objections_to_recipe(PruningConfig.from_model_cfg(cfg))) != METHODS[method].has_window


class TestRange:
    def test_of_budgets_is_trained_and_deployed_or_refused_in_a_sentence(self, method, capsys):
        if not issubclass(METHODS[method], Scheduled):
            with pytest.raises(SystemExit):
                build_gated(method, "3..12")
            assert "may be a range for" in capsys.readouterr().err
            return
        for update in (1, 12):
            for k in (3, 7, 12):
                model = choosing(method, "3..12", update, cooldown_updates=10)
                with model.head_gates.at(k):
                    masked = scores(model)
                small = copy.deepcopy(model)
                small.bake(k)
                assert small.layout.count == k
                assert_same(scores(small), masked)
                assert_same(scores_as_generated(small), masked)

    def test_survives_a_file_and_trains_on_as_if_nothing_had_happened(self, method):
        if issubclass(METHODS[method], Scheduled):
            for update in (3, 12):
                model, resumed = (choosing(method, "3..12", update, seed, cooldown_updates=10) for seed in (0, 1))
                resumed.load_state_dict(through_a_file(model.state_dict()), strict=True)
                assert resumed.head_gates.order() == model.head_gates.order()
                ours, theirs = gradients(resumed), gradients(model)
                assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class TestBudget:
    @pytest.mark.parametrize("kept", range(HEADS + 1))
    def test_is_met_exactly_in_evaluation(self, method, kept):
        model = choosing(method, kept)
        gates = model.head_gates.gates()
        assert set(gates.tolist()) <= {0.0, 1.0}
        assert gates.sum() == kept
        assert model.deployed_layout().count == kept

    @pytest.mark.parametrize("kept", range(HEADS + 1))
    def test_is_met_exactly_by_equal_importance(self, method, kept):
        model = choosing(method, kept)
        with torch.no_grad():
            model.head_gates.importance.zero_()
        assert model.deployed_layout().count == kept

    @pytest.mark.parametrize("asked", [1, 5, 12])
    def test_of_another_number_takes_what_heads_are_ranked_by(self, method, asked):
        model = choosing(method, 7)
        scores(model.train())
        model.head_gates.end_update()
        kept = choose_layout(model.eval(), None, asked, rewritten=False).kept
        ranking = model.head_gates.ranking()
        assert sum(kept) == asked
        assert min(ranking[head] for head in range(HEADS) if kept[head]) >= max(
            ranking[head] for head in range(HEADS) if not kept[head]
        )

    @budgets
    def test_is_met_exactly_once_the_heads_are_fixed(self, method, kept):
        model = fixed(method, kept)
        for mode in (True, False):
            gates = model.train(mode).head_gates.gates()
            assert set(gates.tolist()) <= {0.0, 1.0}
            assert gates.sum() == kept

    @pytest.mark.parametrize("kept", [-1, HEADS + 1])
    def test_outside_the_models_heads_is_refused_in_a_sentence(self, method, kept, capsys):
        with pytest.raises(SystemExit) as exit_:
            build_gated(method, kept)
        assert exit_.value.code == 2
        assert f"must be between 0 and {HEADS}" in capsys.readouterr().err


class TestEvaluation:
    @budgets
    def test_is_a_function_of_the_parameters_alone(self, method, kept):
        model = choosing(method, kept)
        before = scores(model)
        torch.manual_seed(99)
        scores(model.train())
        model.eval().set_num_updates(2)
        assert torch.equal(scores(model), before)
        assert_same(scores_as_generated(model), before)

    def test_keeps_the_fixed_heads_whatever_the_importance_says(self, method):
        model = fixed(method, 7)
        before = scores(model)
        with torch.no_grad():
            model.head_gates.importance.normal_()
        assert torch.equal(scores(model), before)


class TestState:
    @budgets
    def test_survives_a_file_and_trains_on_as_if_nothing_had_happened(self, method, kept):
        model = choosing(method, kept, update=3)
        resumed = choosing(method, kept, update=3, seed=1)
        resumed.load_state_dict(through_a_file(model.state_dict()), strict=True)
        assert torch.equal(scores(resumed), scores(model))
        ours, theirs = gradients(resumed), gradients(model)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_carries_what_the_method_keeps_beside_the_importance(self, method):
        model = choosing(method, 7, update=3)
        scores(model.train())
        model.head_gates.end_update()
        resumed = choosing(method, 7, update=3, seed=1)
        resumed.load_state_dict(through_a_file(model.state_dict()), strict=True)
        ours, theirs = resumed.head_gates.own_state(), model.head_gates.own_state()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value.dtype == torch.float32  # an average, or fairseq's moving one, multiplies every entry
            assert torch.equal(value, theirs[name])
            assert f"head_gates.{name}" in model.state_dict()
        for each in (model, resumed):
            scores(each.train())
        penalties = [each.head_gates.penalty() for each in (model, resumed)]
        assert penalties[0] is None or torch.equal(*penalties)

    def test_of_another_method_is_started_on_without_what_is_its_own(self, method):
        for other in (name for name, each in METHODS.items() if each.learned):
            start, model = choosing(other, 7), choosing(method, 7, seed=1)
            own = {name: value.clone() for name, value in model.head_gates.own_state().items()}
            model.adopts_dense_state = True
            model.load_state_dict(through_a_file(start.state_dict()), strict=True)
            assert torch.equal(model.head_gates.importance, start.head_gates.importance)
            expected = start.head_gates.own_state() if other == method else own
            assert all(torch.equal(expected[name], value) for name, value in model.head_gates.own_state().items())

    def test_carries_the_fixed_heads(self, method):
        model = fixed(method, 7)
        resumed = choosing(method, 7, seed=1)
        resumed.load_state_dict(through_a_file(model.state_dict()), strict=True)
        assert resumed.deployed_layout() == model.deployed_layout()
        assert torch.equal(scores(resumed), scores(model))


class TestTraining:
    @choices
    def test_moves_what_heads_are_ranked_by_before_they_are_fixed(self, method, kept):
        for update in range(3):
            assert moves_what_heads_are_ranked_by(choosing(method, kept, update=update))

    def test_draws_the_same_in_every_micro_batch_of_an_update(self, method):
        model = choosing(method, 7, update=0).train()
        first, state = model.head_gates._draw(), copy.deepcopy(model.head_gates.state_dict())
        assert torch.equal(model.head_gates._draw(), first)
        assert all(torch.equal(state[name], value) for name, value in model.head_gates.state_dict().items())

    @budgets
    def test_gives_every_parameter_a_finite_gradient(self, method, kept):
        model = choosing(method, kept)
        found = gradients(model)
        assert found.keys() == {name for name, _ in model.named_parameters()}
        assert all(torch.isfinite(gradient).all() for gradient in found.values())

    @choices
    def test_trains_the_function_that_is_deployed_once_the_heads_are_fixed(self, method, kept):
        model = fixed(method, kept)
        deployed = scores(model)
        assert_same(scores(model.train()), deployed)
        assert not gradients(model)["head_gates.importance"].any()

    def test_penalty_is_none_or_a_finite_number(self, method):
        gates = choosing(method, 7).head_gates
        penalty = gates.penalty()
        assert penalty is None or (penalty.dim() == 0 and torch.isfinite(penalty))


@budgets
@pytest.mark.parametrize("seed", range(2))
class TestRewriting:
    def test_by_baking_computes_the_same(self, method, kept, seed):
        model = choosing(method, kept, seed=seed)
        small = copy.deepcopy(model)
        small.bake()
        self.assert_equal(model, small)
        assert small.layout == model.deployed_layout()
        assert not [name for name in small.state_dict() if "gates" in name]

    def test_by_shrinking_the_model_computes_the_same(self, method, kept, seed):
        model = choosing(method, kept, seed=seed)
        small = build_with(model.layout)
        small.load_state_dict(shrink_state(model.state_dict(), model.layout))
        shrink_model(small, model.deployed_layout())
        self.assert_equal(model, small)

    def test_by_shrinking_the_state_computes_the_same(self, method, kept, seed):
        model = choosing(method, kept, seed=seed)
        small = build_with(model.deployed_layout())
        small.load_state_dict(shrink_state(model.state_dict(), model.deployed_layout()), strict=True)
        self.assert_equal(model, small)

    def assert_equal(self, model: Any, small: Any) -> None:
        assert_same(scores(small), scores(model))
        assert_same(scores_as_generated(small), scores_as_generated(model))
        assert sum(attention.num_heads for _, attention in attentions(small, model.layout.grid)) == (
            model.head_gates.budget.count
        )
