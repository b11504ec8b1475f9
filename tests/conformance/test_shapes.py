"""Models of random shapes: the rewritten one computes what the masked one does, whole and a word at a time, in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAIRSEQ_0_12_2, assert_same, build, build_with, layouts_of, scores, scores_as_generated, sentences
from torch import Tensor

from fairseq_dsp.modules.surgery import mask_heads, shrink_model, shrink_state
from fairseq_dsp.units.layout import Grid, Layout

MOST_HEADS = 16
TOLERANCE = 1e-5


@st.composite
def shapes(draw: st.DrawFn, most_layers: int = 8) -> tuple[Grid, dict[str, Any]]:
    """A grid, of heads or of both kinds, and the options of a model that has it; dimensions are small multiples of the numbers of heads."""
    options: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        heads = draw(st.integers(1, MOST_HEADS))
        options |= {
            f"{side}_attention_heads": heads,
            f"{side}_embed_dim": max(4, 2 * heads * draw(st.integers(1, 2))),  # fairseq's sines need 4
            f"{side}_layers": draw(st.integers(int(side == "encoder" and FAIRSEQ_0_12_2), most_layers)),
            f"{side}_normalize_before": draw(st.booleans()),
            f"{side}_learned_pos": draw(st.booleans()),
        }
    output = draw(st.sampled_from(["separate", "tied", "shared", "adaptive"]))
    if output == "shared":
        options["decoder_attention_heads"] = options["encoder_attention_heads"]
        options["decoder_embed_dim"] = options["encoder_embed_dim"]
        options["share_all_embeddings"] = True
    options["share_decoder_input_output_embed"] = output in ("tied", "shared")
    options["decoder_output_dim"] = options["decoder_embed_dim"]
    if output == "adaptive":
        options |= {"adaptive_softmax_cutoff": "5,9", "adaptive_softmax_factor": 1, "adaptive_softmax_dropout": 0}
    encoder = (options["encoder_attention_heads"],) * options["encoder_layers"]
    decoder = (options["decoder_attention_heads"],) * options["decoder_layers"]
    neurons = {}
    options["activation_fn"] = draw(st.sampled_from(["relu", "gelu"]))
    if draw(st.booleans()):  # as units too
        group = draw(st.integers(1, 4))
        for side, layers in (("encoder", encoder), ("decoder", decoder)):
            groups = draw(st.integers(1, 5))
            options[f"{side}_ffn_embed_dim"] = group * groups
            neurons[f"ffn_{side[:3]}"] = (groups,) * len(layers)
    return Grid.of_stacks(enc=encoder, dec=decoder, cross=decoder, **neurons), options


def log_probs(model: Any, net_output: Tensor) -> Tensor:
    """What the model says of every word, through the softmax that it has: [B, T, words]."""
    *_, target = sentences()
    return model.get_normalized_probs((net_output, {}), log_probs=True, sample={"target": target})


@torch.no_grad()
def assert_rewritten_equals_masked(data: st.DataObject, grid: Grid, options: dict[str, Any]) -> None:
    # float32 and without gradients as users run it; moderate weights, for rounding grows with the size of what is added up
    model = build(head_layout=str(Layout.full(grid)), **options).float()
    for parameter in model.parameters():
        parameter.mul_(0.5)
    layout = data.draw(layouts_of(grid))
    masked, rewritten = copy.deepcopy(model), copy.deepcopy(model)
    mask_heads(masked, layout, model.layout)
    shrink_model(rewritten, layout, model.layout)
    loaded = build_with(layout, **options).float()
    loaded.load_state_dict(shrink_state(model.state_dict(), layout), strict=True)
    expected = log_probs(masked, scores(masked))
    assert expected.shape[-1] == len(masked.decoder.embed_tokens.weight)  # words, not features
    for ours in (rewritten, loaded):
        assert_same(log_probs(ours, scores(ours)), expected, TOLERANCE)
        assert_same(log_probs(ours, scores_as_generated(ours)), expected, TOLERANCE)
    assert_same(log_probs(masked, scores_as_generated(masked)), expected, TOLERANCE)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape(data: st.DataObject):
    assert_rewritten_equals_masked(data, *data.draw(shapes()))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=600, deadline=None, derandomize=True)
@given(data=st.data())
def test_many_shapes(data: st.DataObject):
    assert_rewritten_equals_masked(data, *data.draw(shapes()))
