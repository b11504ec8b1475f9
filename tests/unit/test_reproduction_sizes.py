"""The dense model that is as large as a pruned one: its arithmetic against models that are built."""

from __future__ import annotations

from typing import Any

import planned  # puts the examples on the path
from hypothesis import assume, given
from hypothesis import strategies as st
from models import WORDS, build, build_with, few_examples
from reproduction.sizes import Shape, pruned_weights, small_shape, weights

from fairseq_dsp.units.layout import Grid, Layout

BOTH = tuple(WORDS.values())
SHAPES = st.builds(
    lambda layers, heads, head, inner: (layers, heads, 2 * heads * head, inner),
    st.integers(1, 3), st.integers(1, 4), st.integers(2, 5), st.integers(1, 40),
)  # fmt: skip


def options_of(shape: Shape, pre_norm: bool) -> dict[str, Any]:
    layers, heads, width, inner = shape
    sizes = {"layers": layers, "attention_heads": heads, "embed_dim": width, "ffn_embed_dim": inner}
    sizes["normalize_before"] = pre_norm
    found = {f"{side}_{name}": size for side in WORDS for name, size in sizes.items()}
    return {**found, "share_decoder_input_output_embed": True}


@few_examples
@given(SHAPES, st.booleans(), st.integers(0, 2**31), st.data())
def test_weights_are_those_of_the_models_themselves(shape: Shape, pre_norm: bool, seed: int, data: st.DataObject):
    stock = build(arch="transformer", **options_of(shape, pre_norm))
    assert weights(shape, BOTH, pre_norm) == sum(parameter.numel() for parameter in stock.parameters())
    grid = Grid.even(shape[0], shape[1])
    kept = data.draw(st.integers(0, grid.total))
    small = build_with(Layout.full(grid).random_subset(kept, seed), **options_of(shape, pre_norm))
    assert pruned_weights(shape, BOTH, pre_norm, kept) == small.weight_count()


@given(SHAPES, st.tuples(st.integers(4, 9000), st.integers(4, 9000)), st.booleans(), st.data())
def test_the_small_model_is_short_of_less_than_a_neuron_a_layer(
    shape: Shape, words: tuple[int, int], pre_norm: bool, data: st.DataObject
):
    kept = data.draw(st.integers(0, 3 * shape[0] * shape[1]))
    target = pruned_weights(shape, words, pre_norm, kept)
    assume(target >= weights((*shape[:2], 4 * shape[1], 1), words, pre_norm))
    small = small_shape(shape, words, pre_norm, kept)
    assert small[:2] == shape[:2]
    assert small[2] <= shape[2]
    assert small[2] % shape[1] == 0
    assert 0 <= target - weights(small, words, pre_norm) < 2 * shape[0] * (2 * small[2] + 1)


@given(SHAPES, st.booleans())
def test_with_all_heads_it_is_the_model_itself(shape: Shape, pre_norm: bool):
    assert small_shape(shape, BOTH, pre_norm, 3 * shape[0] * shape[1]) == shape


def test_the_benchmark_grows_narrower_and_keeps_its_proportions():
    preset = planned.presets.PRESETS["converged"]
    found = [small_shape(preset.sizes, (4000, 4000), True, kept) for kept in (72, 24, 12, 6)]
    assert found[0] == preset.sizes
    assert [shape[2] for shape in found] == sorted((shape[2] for shape in found), reverse=True)
    assert all(1.5 < inner / width < 2.5 for _, _, width, inner in found)
