"""One gate for all units of a sublayer: what it scales, and that a model without some sublayers computes what the gated one does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import (
    assert_recomputing_changes_no_gradient,
    assert_same,
    build,
    few_examples,
    gradients,
    scores,
    scores_as_generated,
)
from torch.utils.flop_counter import FlopCounterMode

from fairseq_dsp.plugin.decoder import NO_LAYER

COOLDOWN = 5
SITES = 10  # two layers on each side
NORMS = [{}, {"encoder_normalize_before": True, "decoder_normalize_before": True, "activation_fn": "gelu"}]


def choosing(kept: int = 6, fixed: bool = False, **options: Any) -> Any:
    """A small model whose sublayers are being chosen, or have been."""
    model = build(prune="sublayers", budget=str(kept), cooldown_updates=COOLDOWN, initial_temperature=2.0, **options)
    model.set_num_updates(2 * COOLDOWN if fixed else 0)
    return model


def baked(model: Any) -> Any:
    twin = copy.deepcopy(model).eval()
    twin.bake()
    return twin


def widths(layout: Any) -> list[int]:
    return [len(layout.units(site)) for site in layout.grid.sites]


@pytest.mark.parametrize("norms", NORMS)
@given(kept=st.integers(0, SITES), seed=st.integers(0, 99))
@few_examples
def test_evaluation_computes_what_the_small_model_does(norms, kept, seed):
    model = choosing(kept, **norms)
    with torch.no_grad():
        model.head_gates.importance.copy_(torch.randn(SITES, generator=torch.Generator().manual_seed(seed)))
    small, layout = baked(model), model.deployed_layout()
    assert sum(width > 0 for width in widths(layout)) == kept
    assert set(widths(layout)) <= {0, 3, layout.grid.of("ffn-enc")[0]}  # all of a site or nothing
    assert small.layout == layout
    assert_same(scores(small), scores(model))
    assert_same(scores_as_generated(small), scores_as_generated(model))


@pytest.mark.parametrize("norms", NORMS)
def test_a_sublayer_that_is_gone_adds_its_bias_alone(norms):
    model = choosing(0, **norms)
    layer, x = model.encoder.layers[0], torch.randn(5, 3, 12, dtype=torch.float64)
    expected = x
    for bias, norm in (
        (layer.self_attn.out_proj.bias, layer.self_attn_layer_norm),
        (layer.fc2.bias, layer.final_layer_norm),
    ):
        expected = expected + bias
        expected = expected if norms else norm(expected)
    assert_same(layer(x, encoder_padding_mask=None), expected)
    assert_same(baked(model).encoder.layers[0](x, encoder_padding_mask=None), expected)


@pytest.mark.parametrize("kept", [0, 1, 6, SITES])
def test_training_once_sublayers_are_fixed_computes_what_the_small_model_does(kept):
    model = choosing(kept, fixed=True)
    found = gradients(model)
    assert not [name for name, p in model.named_parameters() if p.requires_grad and name not in found]
    small = baked(model)
    assert_same(scores(model.train()), scores(small.train()))
    whole = gradients(small)
    for name in (name for name in whole if "norm" in name or "embed" in name):
        assert_same(found[name], whole[name])


def test_a_gate_gets_the_sum_of_what_gates_on_its_units_would_get():
    """All gates at 1, in both: a gate of the sublayer moves all of its units."""
    whole = choosing(SITES)
    parts = build(prune="heads,ffn", ffn_group=14, budget="20", cooldown_updates=COOLDOWN)
    parts.load_state_dict(
        {**whole.state_dict(), **{n: v for n, v in parts.state_dict().items() if n.startswith("head_gates")}}
    )
    found = []
    for model in (whole, parts):
        gates = torch.ones(model.head_gates.grid.total, requires_grad=True)
        model.train()
        model.head_gates.method = _Given(gates)
        scores(model).square().sum().backward()
        found.append([float(gates.grad[span].sum()) for _, span in model.head_gates.grid.spans()])
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-6)
    assert all(value != 0 for value in found[0])


class _Given:
    """A method whose gates are given."""

    fixes_at = None

    def __init__(self, gates: torch.Tensor) -> None:
        self._gates = gates

    def variables(self) -> dict[str, Any]:
        return {}

    records = variables

    def begin_update(self, *given: Any, **own: Any) -> None:
        return None

    def budget_at(self, budget: Any, update: int) -> Any:
        return budget

    def gates(self, *given: Any) -> torch.Tensor:
        return self._gates


@pytest.mark.parametrize("phase", ["evaluated", "fixed"])
def test_only_live_sublayers_are_computed(phase):
    model = choosing(4, fixed=True)
    scores(model.train(phase == "fixed"))
    counts = []
    for each in (model, baked(model)):
        each.train(phase == "fixed")
        each.decoder.alignment_layer = NO_LAYER  # whose weights are computed in a way of their own
        with FlopCounterMode(display=False) as counter:
            scores(each)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("fixed", [False, True])
def test_recomputed_activations_change_no_gradient(fixed):
    plain, recomputed = choosing(fixed=fixed), choosing(fixed=fixed, checkpoint_activations=True)
    assert_recomputing_changes_no_gradient(plain, recomputed, 2 * COOLDOWN if fixed else 0)


def test_sublayers_that_a_layout_has_emptied_are_not_chosen_among():
    layout = "enc:110.000/dec:111.010/cross:111.111/ffn-enc:0.1/ffn-dec:1.1"
    model = choosing(5, head_layout=layout)
    assert model.head_gates.importance.shape == (8,)
    small = baked(model)
    assert sum(width > 0 for width in widths(small.layout)) == 5
    assert_same(scores(small), scores(model))
