"""Removing heads from models and states: a masked model and a rewritten one are the same function."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, build, build_gated, build_with, few_examples, layouts_of, scores, scores_as_generated
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.attention import PrunableAttention
from fairseq_dsp.modules.surgery import (
    attentions,
    layout_of_state,
    make_prunable,
    mask_heads,
    remove_gates,
    shrink_model,
    shrink_state,
    site_name,
)
from fairseq_dsp.units.layout import Grid, Layout, Site

GRID = Grid.of_heads((3, 3), (3, 3), (3, 3))
BOTH = Grid.of_stacks(enc=(3, 3), dec=(3, 3), cross=(3, 3), ffn_enc=(7, 7), ffn_dec=(7, 7))
FULL = Layout.full(GRID)
SOME = Layout.parse("enc:100.011/dec:000.110/cross:010.000")
UNEVEN = Layout.parse(f"{SOME}/ffn-enc:0000000.1010101/ffn-dec:1111111.0000010")

MODELS: dict[str, tuple[Grid, dict[str, Any]]] = {
    "post-norm": (GRID, {}),
    "pre-norm": (GRID, {"encoder_normalize_before": True, "decoder_normalize_before": True}),
    "sides that differ": (
        Grid.of_heads((3,), (4, 4), (4, 4)),
        {"encoder_layers": 1, "decoder_embed_dim": 16, "decoder_output_dim": 16, "decoder_attention_heads": 4},
    ),
    "shared embeddings": (GRID, {"share_all_embeddings": True, "share_decoder_input_output_embed": True}),
    "neurons too": (BOTH, {}),
    "neurons too, pre-norm and gelu": (
        BOTH,
        {"encoder_normalize_before": True, "decoder_normalize_before": True, "activation_fn": "gelu"},
    ),
    "layer drop": (GRID, {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}),
}
of_every_kind = pytest.mark.parametrize("kind", MODELS)


def dense(kind: str = "post-norm") -> Any:
    """A model with all of its heads."""
    grid, options = MODELS[kind]
    return build_with(Layout.full(grid), **options)


def masked(model: Any, layout: Layout) -> Any:
    twin = copy.deepcopy(model)
    mask_heads(twin, layout, model.layout)
    return twin


def shrunk(model: Any, layout: Layout) -> Any:
    twin = copy.deepcopy(model)
    shrink_model(twin, layout, model.layout)
    twin.layout = layout
    return twin


@of_every_kind
class TestMaskedEqualsRewritten:
    @few_examples
    @given(data=st.data())
    def test_for_any_layout(self, kind, data):
        model = dense(kind)
        layout = data.draw(layouts_of(model.layout.grid))
        large, small = masked(model, layout), shrunk(model, layout)
        assert_same(scores(small), scores(large))
        assert_same(scores_as_generated(small), scores_as_generated(large))

    @few_examples
    @given(data=st.data())
    def test_when_the_state_is_rewritten_and_loaded_into_a_fresh_model(self, kind, data):
        model = dense(kind)
        layout = data.draw(layouts_of(model.layout.grid))
        small = build_with(layout, **MODELS[kind][1])
        small.load_state_dict(shrink_state(model.state_dict(), layout), strict=True)
        assert_same(scores(small), scores(masked(model, layout)))

    def test_when_nothing_is_kept_and_when_everything_is(self, kind):
        model = dense(kind)
        nothing = Layout(model.layout.grid, (False,) * model.layout.grid.total)
        assert_same(scores(shrunk(model, nothing)), scores(masked(model, nothing)))
        assert_same(scores(shrunk(model, model.layout)), scores(model))
        assert (scores(shrunk(model, nothing)) - scores(model)).abs().max() > 0.01


class TestShrinking:
    @few_examples
    @given(st.lists(st.booleans(), min_size=SOME.count, max_size=SOME.count))
    def test_twice_equals_shrinking_once(self, marks):
        model, fewer = dense(), SOME.narrow(marks)
        twice = shrunk(shrunk(model, SOME), fewer).state_dict()
        once = shrunk(model, fewer).state_dict()
        assert all(torch.equal(twice[name], once[name]) for name in twice.keys() | once.keys())

    @few_examples
    @given(layouts_of(GRID))
    def test_a_model_and_its_state_give_the_same(self, layout):
        model = dense()
        ours, theirs = shrink_state(model.state_dict(), layout), shrunk(model, layout).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_an_already_small_state_equals_shrinking_the_dense_one(self):
        model, fewer = dense(), Layout.parse("enc:000.001/dec:000.110/cross:000.000")
        at_once = shrink_state(model.state_dict(), fewer)
        first = shrink_state(model.state_dict(), SOME)
        then = shrink_state(first, fewer, current=SOME)
        assert all(torch.equal(at_once[name], then[name]) for name in at_once.keys() | then.keys())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_a_state_keeps_its_precision_and_loses_its_gates(self, dtype):
        model = build_gated().to(dtype)
        small = shrink_state(model.state_dict(), SOME)
        assert not [name for name in small if "head_gates" in name]
        assert {value.dtype for name, value in small.items() if name.endswith(("weight", "bias"))} == {dtype}

    def test_a_state_leaves_the_given_one_alone_and_copies_what_it_cuts(self):
        state = dense().state_dict()
        before = {name: value.clone() for name, value in state.items()}
        small = shrink_state(state, SOME)
        assert all(torch.equal(state[name], value) for name, value in before.items())
        cut = [value for name, value in small.items() if value.shape != state[name].shape]
        assert cut
        assert all(value.untyped_storage().nbytes() == value.numel() * value.element_size() for value in cut)

    @pytest.mark.parametrize("layout", [FULL, SOME])
    def test_leaves_shared_embeddings_shared(self, layout):
        model = shrunk(dense("shared embeddings"), layout)
        table = model.encoder.embed_tokens.weight
        assert model.decoder.embed_tokens.weight is table
        assert model.decoder.output_projection.weight is table

    def test_reaches_every_layer_of_a_model_that_drops_layers_while_training(self):
        options = {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9, "encoder_layers": 6, "decoder_layers": 6}
        model = build(arch="transformer", **options).train()
        grid = make_prunable(model)
        assert grid == Grid.of_heads((3,) * 6, (3,) * 6, (3,) * 6)
        shrink_model(model, Layout(grid, (False,) * grid.total))
        sites = list(attentions(model, grid))
        assert len(sites) == 18
        assert all(isinstance(site, PrunableAttention) and site.num_heads == 0 for _, site in sites)

    @pytest.mark.parametrize(("kind", "layout"), [("post-norm", SOME), ("neurons too", UNEVEN)])
    def test_makes_a_model_that_torchscript_takes(self, kind, layout):
        small = shrunk(dense(kind), layout)
        assert_same(scores(torch.jit.script(small)), scores(small))

    @pytest.mark.parametrize(("kind", "layout"), [("post-norm", SOME), ("neurons too", UNEVEN)])
    def test_leaves_only_gradients_that_a_training_step_fills(self, kind, layout):
        model = shrunk(dense(kind), layout).train()
        scores(model).sum().backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_a_stock_transformer_computes_the_same_once_its_attentions_are_replaced():
    model = build(arch="transformer")
    before, state = scores(model), model.state_dict()
    assert make_prunable(model) == GRID
    assert model.state_dict().keys() == state.keys()
    assert_same(scores(model), before, 1e-6)  # fairseq takes softmax in float32


def test_removing_the_gates_leaves_the_dense_model():
    model = build_gated(checkpoint_activations=True)
    remove_gates(model, GRID)
    twin = dense()
    twin.load_state_dict(shrink_state(model.state_dict(), FULL))
    for mode in (True, False):
        assert_same(scores(model.train(mode)), scores(twin.train(mode)))


class TestMarks:
    def state(self, layout: Layout = SOME) -> dict[str, Tensor]:
        return build_with(layout).state_dict()

    @few_examples
    @given(layouts_of(GRID))
    def test_say_which_heads_a_state_has(self, layout):
        assert layout_of_state(self.state(layout), GRID) == layout

    def test_are_absent_from_a_dense_state(self):
        assert layout_of_state(build(arch="transformer").state_dict(), GRID) is None

    @pytest.mark.parametrize("share", [1 / 2, 1 / 3, 1 / 20])
    def test_of_an_average_of_two_layouts_are_refused(self, share):
        state, other = self.state(), self.state(Layout.parse("enc:010.011/dec:000.110/cross:010.000"))
        for name in state:
            state[name] = (1 - share) * state[name] + share * other[name]
        with pytest.raises(Refusal, match="mixes models"):
            layout_of_state(state, GRID)

    def test_of_an_average_of_one_layout_are_read(self):
        state = {name: (value.half() * 3 / 3) * 0.999 for name, value in self.state().items()}
        assert layout_of_state(state, GRID) == SOME

    @few_examples
    @given(layouts_of(BOTH))
    def test_of_neurons_say_which_a_state_has_whether_the_grid_has_any_or_not(self, layout):
        assert layout_of_state(self.state(layout), BOTH) == layout
        assert layout_of_state(self.state(layout), GRID) == layout

    def test_of_heads_alone_leave_all_neurons(self):
        assert layout_of_state(self.state(), BOTH) == Layout.parse(
            f"{SOME}/ffn-enc:1111111.1111111/ffn-dec:1111111.1111111"
        )

    def test_of_neurons_that_lack_a_layer_are_refused(self):
        state = self.state(UNEVEN)
        del state["encoder.layers.0.ffn_kept_mask"]
        with pytest.raises(Refusal, match="marks those of some"):
            layout_of_state(state, BOTH)

    def test_that_lack_a_site_or_belong_to_another_grid_are_refused(self):
        state = self.state()
        with pytest.raises(Refusal, match="do not fit"):
            layout_of_state(state, Grid.of_heads((3, 3), (3, 3), (3, 4)))
        del state[f"{site_name(Site('cross', 1))}.kept_mask"]
        with pytest.raises(Refusal, match="do not fit"):
            layout_of_state(state, GRID)
