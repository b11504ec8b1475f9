"""The heads that a checkpoint keeps, read without a model: those that the model built from it deploys, or a refusal."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from models import build, model_options

from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods import METHODS
from fairseq_dsp.modules.surgery import shrink_state
from fairseq_dsp.options.stored_layout import stored_layout
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.layout import Layout

HEADS = 18
LEARNED = [name for name, method in METHODS.items() if method.learned]
SOME = Layout.parse("enc:101.110/dec:000.111/cross:001.011")


def stored(updates: int = 0, **options: Any) -> dict[str, Any]:
    """What a checkpoint holds of a model with random importance, after so many updates."""
    model = build(**options).train()
    model.set_num_updates(updates)
    if getattr(model, "head_gates", None) is not None:
        model.head_gates.gates()
    return {"cfg": argparse.Namespace(model=model_options(**options), task=None), "model": model.state_dict()}


def copy(state: dict[str, Any]) -> dict[str, Any]:
    cfg = argparse.Namespace(model=argparse.Namespace(**vars(state["cfg"].model)), task=None)
    return {"cfg": cfg, "model": {name: value.clone() for name, value in state["model"].items()}}


def assert_read_as_built(state: dict[str, Any]) -> Layout:
    expected = load_model(copy(state)).deployed_layout()
    assert stored_layout(state) == expected
    return expected


@pytest.mark.parametrize("floor", [None, "2", "layer"])
@pytest.mark.parametrize("kept", [2, 7, HEADS])
@pytest.mark.parametrize("method", LEARNED)
def test_importance_says_it_while_heads_are_chosen_and_marks_once_they_are_fixed(method, kept, floor):
    for updates in (0, 5):
        state = stored(
            updates, head_selection=method, unpruned_heads=kept, cooldown_updates=5, cross_floor=floor, seed=3
        )
        assert assert_read_as_built(state).count == kept


def test_the_method_says_how_many_where_it_finds_the_number_itself():
    state = stored(head_selection="hard-concrete", unpruned_heads="auto")
    state["model"]["head_gates.importance"][:5] = -9.0
    assert 0 < assert_read_as_built(state).count <= HEADS - 5


def test_an_average_of_marks_falls_back_on_the_importance():
    state = stored(5, unpruned_heads=7, cooldown_updates=5)
    state["model"]["head_gates.fixed_mask"].mul_(0.5)
    assert_read_as_built(state)


@pytest.mark.parametrize("options", [{}, {"unpruned_heads": 4}])
def test_a_model_cut_before_it_was_trained_says_it_in_marks_and_options(options):
    layout = assert_read_as_built(stored(head_layout=str(SOME), **options))
    assert layout.within(SOME)
    assert layout.count == options.get("unpruned_heads", SOME.count)


def test_a_dense_state_has_the_heads_of_its_options():
    state = stored(arch="transformer")
    assert assert_read_as_built(state) == Layout.full(SOME.grid)
    vars(state["cfg"].model).update(arch="dsp_transformer", head_layout=str(SOME))
    assert assert_read_as_built(state) == SOME


def test_a_rewritten_state_has_the_heads_of_its_marks():
    dense = build(arch="transformer", seed=2)
    cfg = model_options(head_layout=str(SOME))
    state = {"cfg": argparse.Namespace(model=cfg), "model": shrink_state(dense.state_dict(), SOME)}
    assert assert_read_as_built(state) == SOME


class TestRefuses:
    def assert_refused(self, state: dict[str, Any], words: str) -> None:
        for read in (lambda: stored_layout(copy(state)), lambda: load_model(copy(state))):
            with pytest.raises((Refusal, SystemExit)):
                read()
        with pytest.raises(Refusal, match=words):
            stored_layout(state)

    def test_heads_that_are_not_those_of_the_options(self):
        state = stored(head_layout=str(SOME))
        state["cfg"].model.head_layout = str(Layout.full(SOME.grid))
        self.assert_refused(state, "keeps 10 heads and this model other heads")

    def test_a_choice_without_importance(self):
        state = stored(unpruned_heads=4)
        del state["model"]["head_gates.importance"], state["model"]["head_gates.fixed_mask"]
        self.assert_refused(state, "has no importance variables")

    def test_importance_of_other_heads(self):
        state = stored(unpruned_heads=4)
        state["model"]["head_gates.importance"] = torch.zeros(HEADS - 1)
        self.assert_refused(state, "must fit its own options")

    @pytest.mark.parametrize("heads", [0, 5, 10**9])
    def test_heads_that_the_weights_cannot_have_before_anything_is_made_of_them(self, heads):
        state = stored(arch="transformer")
        state["cfg"].model.encoder_attention_heads = heads
        self.assert_refused(state, "must fit its own options")

    def test_a_budget_that_its_own_heads_do_not_reach(self):
        state = stored(unpruned_heads=4)
        state["cfg"].model.unpruned_heads = HEADS + 1
        self.assert_refused(state, f"between 0 and {HEADS}")

    def test_weights_without_embeddings(self):
        state = stored(unpruned_heads=4)
        del state["model"]["encoder.embed_tokens.weight"]
        self.assert_refused(state, "embeddings are missing")


BOTH = Layout.parse(f"{SOME}/ffn-enc:1010101.0000000/ffn-dec:1111111.0000010")


class TestOfNeurons:
    @pytest.mark.parametrize("updates", [0, 5])
    @pytest.mark.parametrize("kept", [2, 20, HEADS + 28])
    def test_that_are_being_chosen(self, kept, updates):
        state = stored(updates, ffn_group=2, unpruned_heads=kept, cooldown_updates=5)
        layout = assert_read_as_built(state)
        assert layout.count == kept
        assert layout.grid == BOTH.grid

    @pytest.mark.parametrize("options", [{}, {"unpruned_heads": 4}])
    def test_that_were_cut_before_the_training(self, options):
        layout = assert_read_as_built(stored(head_layout=str(BOTH), ffn_group=2, **options))
        assert layout.within(BOTH)
        assert layout.count == options.get("unpruned_heads", BOTH.count)

    def test_of_a_state_that_has_all_where_the_options_name_some(self):
        state = stored(arch="transformer")
        vars(state["cfg"].model).update(arch="dsp_transformer", head_layout=str(BOTH), ffn_group=2)
        for read in (stored_layout, load_model):  # the options of a file are of what is in it
            with pytest.raises(Refusal, match="layer 0 in ffn-enc must have 8 neurons"):
                read(copy(state))
