"""Options of a model that nobody reads, under hydra, which knows no schema for them."""

from __future__ import annotations

import pytest
from models import model_options
from omegaconf import OmegaConf

from fairseq_dsp.options.objections import objections_to_unknown_options


def unknown(**options: object) -> list[str]:
    return objections_to_unknown_options(OmegaConf.create({"_name": "dsp_transformer_tiny", **options}))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("head_seletion", "head_selection"),
        ("unpruned_head", "unpruned_heads"),
        ("cooldown", "cooldown_updates"),
        ("initial_temprature", "initial_temperature"),
        ("heads_layout", "head_layout"),
        ("encoder_layer", "encoder_layers"),  # fairseq's own too
        ("activation_dropoot", "activation_dropout"),
        ("share_decoder_input_output_embeds", "share_decoder_input_output_embed"),
    ],
)
def test_of_a_misspelt_one_the_right_one_is_named(key: str, meant: str):
    (reason,) = unknown(**{key: 1})
    assert f"`{key}` is not an option of dsp_transformer_tiny; did you mean `{meant}`?" in reason


def test_one_that_resembles_none_and_all_others_are_told_together():
    reasons = unknown(qqq=1, encoder_layer=4, dropout=0.1)
    assert len(reasons) == 2
    assert "`qqq` is not an option of dsp_transformer_tiny." in reasons


def test_all_that_an_architecture_fills_in_or_fairseq_reads_is_known():
    known = {
        name: str(value) for name, value in vars(model_options(arch="dsp_transformer_vaswani_wmt_en_fr_big")).items()
    }
    del known["task"]  # the command line's, which is not the model's under hydra
    assert unknown(**known, scale_attn=True, scale_heads=True, no_decoder_final_norm=True, budget_task="any") == []


def test_the_command_line_has_refused_them_before():
    assert objections_to_unknown_options(model_options(qqq=1)) == []
