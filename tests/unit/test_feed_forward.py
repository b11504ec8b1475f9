"""Gates on groups of neurons: against the formula a group at a time, while all are computed and while the live ones are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fairseq.dataclass.configs import EMAConfig
from fairseq.models.ema import EMA
from hypothesis import given
from hypothesis import strategies as st
from models import (
    assert_recomputing_changes_no_gradient,
    assert_same,
    build_gated,
    build_with,
    few_examples,
    gradients,
    randomise,
    scores,
    scores_as_generated,
    sentences,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.feed_forward import gate_neurons, ungate_neurons
from fairseq_dsp.modules.site_gates import ConstantGates
from fairseq_dsp.units.layout import Layout

EMBED, GROUPS, GROUP = 6, 4, 3
COOLDOWN = 10
ALL = "1111111.1111111"


class Layer(nn.Module):
    """What a layer of fairseq does between its norms."""

    def __init__(self, activation: Any = torch.relu) -> None:
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(EMBED, 12), nn.Linear(12, EMBED), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


def layer(activation: Any = torch.relu) -> Layer:
    made = Layer(activation).double()
    randomise(made)
    return made


X = torch.randn(5, 3, EMBED, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sum_of_groups(plain: Layer, gates: Tensor, x: Tensor) -> Tensor:
    """sum_j g_j W2_j f(W1_j x + b1_j) + b2, a group at a time."""
    total = plain.fc2.bias.expand_as(x)
    for j in range(GROUPS):
        rows = slice(j * GROUP, (j + 1) * GROUP)
        hidden = plain.activation(x @ plain.fc1.weight[rows].T + plain.fc1.bias[rows])
        total = total + gates[j] * (hidden @ plain.fc2.weight[:, rows].T)
    return total


class TestFormula:
    @pytest.mark.parametrize("activation", [torch.relu, nn.functional.gelu])
    @few_examples
    @given(values=st.lists(st.floats(-2, 2), min_size=GROUPS, max_size=GROUPS))
    def test_output_is_the_gated_sum_of_the_groups(self, activation, values):
        gates, ours = torch.tensor(values, dtype=torch.float64), layer(activation)
        expected = sum_of_groups(ours, gates, X)
        gate_neurons(ours, ConstantGates(gates), GROUPS)
        assert_same(ours(X), expected)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_gradients_of_gates_and_parameters_are_those_of_the_sum(self, frozen):
        ours = layer().requires_grad_(not frozen)
        gates = torch.tensor([0.3, 0.0, 1.4, 1.0], dtype=torch.float64, requires_grad=True)
        wanted = [gates] if frozen else [gates, *ours.parameters()]
        weights = torch.randn(X.shape, dtype=torch.float64)
        expected = torch.autograd.grad((sum_of_groups(ours, gates, X) * weights).sum(), wanted)
        gate_neurons(ours, ConstantGates(gates), GROUPS)
        found = torch.autograd.grad((ours(X) * weights).sum(), wanted)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_gradient_of_gates_is_taken_in_float32_by_a_half_precision_model(self, frozen):
        ours = layer().to(torch.bfloat16).requires_grad_(not frozen)
        gates = torch.ones(GROUPS, requires_grad=True)
        gate_neurons(ours, ConstantGates(gates), GROUPS)
        ours(X.to(torch.bfloat16)).float().sum().backward()
        assert gates.grad.dtype == torch.float32
        assert not torch.equal(gates.grad, gates.grad.to(torch.bfloat16).float())

    def test_names_and_parameters_stay_and_without_gates_the_maps_are_plain_again(self):
        ours = layer()
        before, names = list(ours.parameters()), list(ours.state_dict())
        gate_neurons(ours, ConstantGates(torch.ones(GROUPS)), GROUPS)
        assert list(ours.state_dict()) == names
        assert all(one is other for one, other in zip(ours.parameters(), before, strict=True))
        with pytest.raises(Refusal, match="bake"):
            torch.jit.script(ours)
        ungate_neurons(ours)
        assert type(ours.fc1) is type(ours.fc2) is nn.Linear
        assert all(one is other for one, other in zip(ours.parameters(), before, strict=True))
        assert_same(torch.jit.script(nn.Sequential(ours.fc1, ours.fc2))(X), ours.fc2(ours.fc1(X)))


def choosing(kept: int = 20, fixed: bool = False, **options: Any) -> Any:
    """A small model whose heads and groups of neurons are being chosen, 18 + 28 units, or have been."""
    model = build_gated(kept=kept, ffn_group=2, cooldown_updates=COOLDOWN, **options)
    model.set_num_updates(2 * COOLDOWN if fixed else 0)
    return model


def baked(model: Any) -> Any:
    twin = copy.deepcopy(model)
    twin.bake()
    return twin


class TestInAModel:
    def test_all_units_are_one_vector_and_one_draw(self):
        model = choosing()
        assert model.head_gates.importance.numel() == 18 + 28
        assert model.deployed_layout().count == 20
        assert model.deployed_layout().grid.of("ffn-dec") == (7, 7)
        found = gradients(model)
        assert (found["head_gates.importance"][18:] != 0).any()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and name not in found]

    @pytest.mark.parametrize("kept", [0, 1, 20, 46])
    @pytest.mark.parametrize("options", [{}, {"encoder_normalize_before": True, "activation_fn": "gelu"}])
    def test_evaluation_computes_what_the_small_model_does(self, kept, options):
        model = choosing(kept, **options)
        assert_same(scores(model), scores(baked(model)))
        assert_same(scores_as_generated(model), scores_as_generated(baked(model)))

    @pytest.mark.parametrize("kept", [0, 1, 20, 46])
    def test_training_once_units_are_fixed_computes_what_the_small_model_does(self, kept):
        model = choosing(kept, fixed=True)
        found = gradients(model)
        assert not [name for name, p in model.named_parameters() if p.requires_grad and name not in found]
        small = baked(model.eval())
        assert_same(scores(model.train()), scores(small.train()))
        whole = gradients(small)
        norms = [name for name in whole if "norm" in name or "embed" in name or name.endswith("fc2.bias")]
        assert norms
        assert all(torch.equal(found[name] != 0, whole[name] != 0) for name in norms)
        for name in norms:
            assert_same(found[name], whole[name])

    @pytest.mark.parametrize("phase", ["evaluated", "fixed"])
    def test_only_live_neurons_are_computed(self, phase):
        model = choosing(10, fixed=True).train(phase == "fixed")
        scores(model)
        counts = []
        for each in (model, baked(model.eval()).train(phase == "fixed")):
            each.train(phase == "fixed")
            with FlopCounterMode(display=False) as counter:
                scores(each)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1]

    @pytest.mark.parametrize("fixed", [False, True])
    def test_recomputed_activations_change_no_gradient(self, fixed):
        plain, recomputed = choosing(fixed=fixed), choosing(fixed=fixed, checkpoint_activations=True)
        assert_recomputing_changes_no_gradient(plain, recomputed, 2 * COOLDOWN if fixed else 0)

    @pytest.mark.parametrize("fixed", [False, True])
    def test_a_copy_has_gates_of_its_own(self, fixed):
        model = choosing(fixed=fixed)
        gradients(model)
        twin = copy.deepcopy(model)
        assert_same(scores(twin.eval()), scores(model.eval()))
        with torch.no_grad():
            twin.head_gates.importance.neg_()
            twin.head_gates.fixed_mask.fill_(-1)
        assert (scores(twin) - scores(model)).abs().max() > 1e-3

    def test_a_moving_average_computes(self):
        model = choosing().float()
        average = EMA(model, EMAConfig(store_ema=True, ema_decay=0.5))
        average.step(model, 1)
        assert_same(scores(average.get_model().eval()), scores(model.eval()), 1e-5)

    @pytest.mark.parametrize("fixed", [False, True])
    def test_half_precision_computes(self, fixed):
        model = choosing(fixed=fixed).to(torch.bfloat16)
        assert scores(model.train()).isfinite().all()
        whole = scores(choosing(fixed=fixed).float().eval())
        assert (scores(model.eval()).float() - whole).abs().max() < 0.2 * whole.abs().max()

    def test_an_evaluation_in_inference_mode_leaves_a_model_that_trains(self):
        model = choosing(fixed=True)
        with torch.inference_mode():
            scores(model.eval())
        assert gradients(model)


@pytest.mark.parametrize("first", ["enc:111.111/dec:000.111/cross:111.111", "enc:000.111/dec:000.111/cross:000.111"])
def test_what_a_pass_comes_to_first_asks_anew_whichever_sites_are_empty(first):
    """An optimizer changes through `.data`, which no version counts: only a new pass sees it."""
    layout = f"{first}/ffn-enc:{ALL}/ffn-dec:{ALL}"
    model, (source, lengths, previous) = build_gated(kept=16, head_layout=layout, ffn_group=2), sentences()
    scores(model)
    model.head_gates.importance.data.neg_()
    small = baked(model)
    assert_same(model.encoder(source, lengths)["encoder_out"][0], small.encoder(source, lengths)["encoder_out"][0])
    encoded = small.encoder(source, lengths)
    model.head_gates.importance.data.neg_()
    assert_same(model.decoder(previous, encoded)[0], baked(model).decoder(previous, encoded)[0])


def test_a_sublayer_without_neurons_adds_its_bias():
    nothing = Layout.parse("enc:111.111/dec:111.111/cross:111.111/ffn-enc:0000000.0000000/ffn-dec:0000000.0000000")
    model = build_with(nothing)
    states = torch.randn(4, 2, 12, dtype=torch.float64)
    for side in (model.encoder, model.decoder):
        made = side.layers[0]
        assert_same(made.fc2(made.activation_fn(made.fc1(states))), made.fc2.bias.expand_as(states))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_sublayer_without_neurons_has_every_precision(dtype):
    model = build_with(Layout.parse("enc:111.000/dec:111.111/cross:111.111/ffn-enc:0.0/ffn-dec:1.0"), ffn_group=14)
    assert scores(model.to(dtype)).isfinite().all()
