"""What a recipe derives from the length of a training, and what contradicts it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import many_examples
from omegaconf import OmegaConf

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods import METHODS, method_class, objections_to_method
from fairseq_dsp.methods.recipe import derive, needs_length, objections_to_recipe, recipe_of
from fairseq_dsp.options.records import TrainingOptions
from fairseq_dsp.plugin.settling import Settling

WITH_WINDOW = [name for name, method in METHODS.items() if method.has_window]
lengths = st.integers(1, 300_000)


def settled(updates: int | None, **given: Any) -> PruningConfig:
    config = PruningConfig(unpruned_heads=3, **given)
    return replace(config, **derive(config, updates))


@pytest.mark.parametrize("method", WITH_WINDOW)
@given(updates=lengths)
@many_examples
def test_values_fit_any_length_of_training(method: str, updates: int):
    config = settled(updates, head_selection=method)
    assert objections_to_method(config) == []
    assert config.cooldown_updates is not None
    assert 1 <= config.cooldown_updates <= max(0.5 * updates, 1)
    assert method_class(config).from_config(config).fixes_at == config.cooldown_updates


@given(updates=st.integers(200, 300_000), window=st.none() | st.integers(50, 100_000))
@many_examples
def test_importance_can_go_as_far_whatever_the_length(updates: int, window: int | None):
    config = settled(updates, cooldown_updates=window)
    assert config.cooldown_updates == (round(0.4 * updates) if window is None else window)
    assert config.importance_lr == pytest.approx(min(25 / config.cooldown_updates, 0.5), rel=1e-2)


def test_projection_from_1_to_a_tenth_and_a_constant_budget():
    config = settled(1000)
    assert (config.relaxation, config.initial_temperature, config.final_temperature) == ("projection", 1.0, 0.1)
    assert (config.budget_schedule, config.budget_start_updates, config.keep_sampling) == (None, None, False)
    assert config.cooldown_updates == 400
    assert config.importance_lr == 0.0625


def test_importance_alone_is_chosen_almost_to_the_end():
    assert settled(1000, pipelined=True).cooldown_updates == 900


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("initial_temperature", 2.0),
        ("final_temperature", 0.3),
        ("cooldown_updates", 77),
        ("importance_lr", 0.01),
        ("budget_schedule", "cubic"),
    ],
)
def test_what_is_given_wins(option: str, value: Any):
    given_values = {"relaxation": "projection", option: value}
    config = settled(1000, **given_values)
    assert getattr(config, option) == value
    assert recipe_of(config) == "auto"
    assert set(derive(PruningConfig(**given_values), 1000)).isdisjoint(given_values)


@pytest.mark.parametrize(
    "given_values",
    [
        {"recipe": "paper"},
        {"relaxation": "successive-softmax"},
        {"initial_temperature": 0.5, "final_temperature": 0.01},  # as commands were written before there were recipes
    ],
)
def test_the_paper_s_recipe_derives_nothing(given_values: dict[str, Any]):
    config = PruningConfig(unpruned_heads=3, **given_values)
    assert recipe_of(config) == "paper"
    assert derive(config, 1000) == {}
    assert not needs_length(config)
    method = method_class(config).from_config(config)
    assert (method.fixes_at, method.relaxation) == (15000, "successive-softmax")


@pytest.mark.parametrize("name", METHODS)
def test_belongs_to_methods_that_choose_within_a_window(name: str):
    for recipe in ("auto", "paper"):
        found = objections_to_recipe(PruningConfig(recipe=recipe, head_selection=name, unpruned_heads=3))
        assert [f"`--head-selection {name}`" in reason for reason in found] == [True] * (name not in WITH_WINDOW)
    assert derive(PruningConfig(head_selection="hard-concrete"), 1000) == {}


@pytest.mark.parametrize(
    ("given_values", "words"),
    [
        ({"recipe": "best"}, "auto or paper"),
        ({"recipe": "auto", "relaxation": "successive-softmax"}, "`--relaxation` must not be successive-softmax"),
        ({"recipe": "paper", "relaxation": "projection"}, "`--relaxation` must not be projection"),
        ({"recipe": "paper", "budget_schedule": "cubic"}, "`--budget-schedule` must not be cubic"),
    ],
)
def test_what_contradicts_it_is_one_sentence(given_values: dict[str, Any], words: str):
    (reason,) = objections_to_recipe(PruningConfig(unpruned_heads=3, **given_values))
    assert words in reason


def test_the_length_is_needed_for_the_window_alone():
    assert needs_length(PruningConfig())
    assert not needs_length(PruningConfig(cooldown_updates=10))
    assert "cooldown_updates" not in derive(PruningConfig(), None)
    assert derive(PruningConfig(cooldown_updates=100), None)["importance_lr"] == 0.25


@pytest.mark.parametrize(
    ("given_values", "words"),
    [
        (
            {"budget_schedule": "cubic", "budget_start_updates": 20_000},
            "below `--cooldown-updates` (400), but is 20000",
        ),
        (
            {"head_selection": "lagrangian", "lagrangian_warmup": 20_000},
            "between 0 and the cooldown (400), but is 20000",
        ),
    ],
)
def test_what_must_fit_the_window_is_judged_by_the_one_that_is_derived(given_values: dict[str, Any], words: str):
    pending = PruningConfig(unpruned_heads=3, recipe="auto", **given_values)
    assert objections_to_method(pending) == []
    assert objections_to_method(replace(pending, **derive(pending, 100_000))) == []
    (reason,) = objections_to_method(replace(pending, **derive(pending, 1000)))
    assert words in reason
    (name,) = set(given_values) & {"budget_start_updates", "lagrangian_warmup"}
    (reason,) = objections_to_method(replace(pending, **{name: -1}))
    assert "must be at least 0" in reason


@pytest.mark.parametrize("given_rate", [None, 0.0, 0.7])
def test_what_an_optimizer_is_given_counts_as_given(given_rate: float | None, tmp_path: Path):
    """Under hydra the model's options do not say what the optimizer's do."""
    cfg = OmegaConf.create({"unpruned_heads": 3, "cooldown_updates": 100})
    settling = Settling(TrainingOptions(save_dir=str(tmp_path), max_update=1000))
    assert settling.begin(cfg) == []
    assert cfg.importance_lr == 0.25
    for _ in range(2):
        assert settling.rate(given_rate) == (0.25 if given_rate is None else given_rate)
    assert cfg.importance_lr == settling.importance_lr
    assert ("importance_lr" in cfg.derived.split(",")) == (given_rate is None)
    assert "relaxation" in cfg.derived.split(",")


def test_without_a_recipe_the_rate_is_the_paper_s(tmp_path: Path):
    settling = Settling(TrainingOptions(save_dir=str(tmp_path), max_update=1000))
    assert settling.begin(OmegaConf.create({"unpruned_heads": 3, "recipe": "paper"})) == []
    assert settling.rate(None) == 0.2
