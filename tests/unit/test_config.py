"""Our options in a cfg of either kind: argparse's Namespace (fairseq-train) and OmegaConf's dict (fairseq-hydra-train)."""

from __future__ import annotations

import argparse
from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from fairseq_dsp.config import UNDECLARED, PruningConfig, add_arguments, get_option, set_option
from fairseq_dsp.errors import Refusal

both_kinds = pytest.mark.parametrize(
    "cfg_of", [lambda **o: argparse.Namespace(**o), lambda **o: OmegaConf.create(o)], ids=["namespace", "omegaconf"]
)


def strict(**options):
    """A cfg that refuses new keys, as fairseq's are."""
    cfg = OmegaConf.create(options)
    OmegaConf.set_struct(cfg, True)
    return cfg


@both_kinds
class TestReading:
    def test_fills_in_what_is_not_given(self, cfg_of):
        assert PruningConfig.from_model_cfg(cfg_of(encoder_layers=2)) == PruningConfig()

    def test_takes_none_for_not_given(self, cfg_of):
        options = dict.fromkeys((option.name for option in fields(PruningConfig)), None)
        assert PruningConfig.from_model_cfg(cfg_of(**options)) == PruningConfig()

    def test_takes_every_option_as_given(self, cfg_of):
        options = {
            "head_selection": "ste",
            "unpruned_heads": 0,
            "budget": "macs=0.5",
            "sentence": "25,24,5",
            "costs": "costs.json",
            "prices": "macs=3:enc=1",
            "head_layout": "enc:1/dec:/cross:",
            "ffn_group": 4,
            "prune": "sublayers",
            "head_counts": "even",
            "cross_floor": "layer",
            "pipelined": True,
            "initial_temperature": 2.0,
            "final_temperature": 1e-8,
            "relaxation": "projection",
            "cooldown_updates": 0,
            "keep_sampling": True,
            "budget_schedule": "cubic",
            "budget_start_updates": 3,
            "l0_penalty": 0.5,
            "norm_penalty": 0.1,
            "norm": "relative",
            "spectral_norm": "fc1,fc2",
            "threshold_penalty": 3.0,
            "threshold_target": 0.5,
            "lagrangian_warmup": 0,
            "recipe": "paper",
            "nested_law": "uniform",
            "sandwich": True,
            "self_distillation": 0.5,
            "importance_from": "scores.json",
            "importance_lr": 0.5,
            "derived": "relaxation,importance_lr",
            "seed": 7,
        }
        assert set(options) == {option.name for option in fields(PruningConfig)}
        config = PruningConfig.from_model_cfg(cfg_of(**options))
        assert {name: getattr(config, name) for name in options} == options

    @pytest.mark.parametrize(
        ("option", "text", "value"),
        [
            ("unpruned_heads", "12", 12),
            ("unpruned_heads", 12.0, 12),
            ("unpruned_heads", "auto", "auto"),
            ("unpruned_heads", "4..72", "4..72"),
            ("initial_temperature", "1e-3", 1e-3),
            ("initial_temperature", 1, 1.0),
            ("pipelined", "True", True),
            ("keep_sampling", "false", False),
        ],
    )
    def test_reads_numbers_and_truths_from_text(self, cfg_of, option, text, value):
        read = getattr(PruningConfig.from_model_cfg(cfg_of(**{option: text})), option)
        assert read == value
        assert type(read) is type(value)

    @pytest.mark.parametrize(
        ("option", "value", "wanted"),
        [
            ("unpruned_heads", "many", "a whole number"),
            ("unpruned_heads", 2.5, "a whole number"),
            ("unpruned_heads", "2.5", "a whole number"),
            ("unpruned_heads", True, "a whole number"),
            ("unpruned_heads", float("inf"), "a whole number"),
            ("unpruned_heads", float("nan"), "a whole number"),
            ("cooldown_updates", "", "a whole number"),
            ("initial_temperature", "warm", "a number"),
            ("initial_temperature", False, "a number"),
            ("pipelined", "yes", "true or false"),
            ("keep_sampling", 2, "true or false"),
        ],
    )
    def test_refuses_a_value_of_the_wrong_type(self, cfg_of, option, value, wanted):
        with pytest.raises(Refusal) as refused:
            PruningConfig.from_model_cfg(cfg_of(**{option: value}))
        name = "--" + option.replace("_", "-")
        assert refused.value.reasons == (f"`{name}` must be {wanted}, but is {value!r}.",)

    def test_gives_all_reasons_at_once(self, cfg_of):
        with pytest.raises(Refusal) as refused:
            PruningConfig.from_model_cfg(cfg_of(unpruned_heads="many", pipelined="yes", final_temperature="cold"))
        assert [reason.split("`")[1] for reason in refused.value.reasons] == [
            "--unpruned-heads",
            "--pipelined",
            "--final-temperature",
        ]


class TestBudget:
    @pytest.mark.parametrize(("given", "budget"), [(None, None), ("auto", None), ("3", 3), (0, 0)])
    def test_is_the_number_where_one_is_given(self, given, budget):
        assert PruningConfig.from_model_cfg(argparse.Namespace(unpruned_heads=given)).kept_heads == budget


class TestAccess:
    @both_kinds
    def test_an_absent_option_and_none_both_give_the_default(self, cfg_of):
        assert get_option(cfg_of(), "seed", 3) == get_option(cfg_of(seed=None), "seed", 3) == 3

    @both_kinds
    def test_zero_and_false_are_values(self, cfg_of):
        assert get_option(cfg_of(unpruned_heads=0), "unpruned_heads", 5) == 0
        assert get_option(cfg_of(pipelined=False), "pipelined", True) is False

    @pytest.mark.parametrize("cfg", [argparse.Namespace(), strict()], ids=["namespace", "strict omegaconf"])
    def test_what_is_set_can_be_got(self, cfg):
        set_option(cfg, "head_layout", "enc:1/dec:/cross:")
        assert get_option(cfg, "head_layout") == "enc:1/dec:/cross:"

    def test_setting_leaves_a_strict_cfg_strict(self):
        cfg = strict()
        set_option(cfg, "head_layout", "enc:1/dec:/cross:")
        assert OmegaConf.is_struct(cfg)


class TestCommandLine:
    def test_declares_all_but_what_others_declare(self):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        declared = set(vars(parser.parse_args([])))
        assert declared == {option.name for option in fields(PruningConfig)} - {"unpruned_heads", *UNDECLARED}

    def test_without_words_means_the_defaults(self):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        assert PruningConfig.from_model_cfg(parser.parse_args([])) == PruningConfig()
