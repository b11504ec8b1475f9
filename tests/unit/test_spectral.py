"""Spectral norms: what a map computes with them, and that folding them changes nothing but names, in a model and in a state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import (
    assert_recomputing_changes_no_gradient,
    assert_same,
    build,
    build_gated,
    build_with,
    gradients,
    randomise,
    scores,
    scores_as_generated,
)
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.spectral import folded, is_unfolded, unfolded
from fairseq_dsp.modules.spectral import MAPS, fold, normalise, parse_maps
from fairseq_dsp.units.layout import Layout

ALL = "fc1,fc2,out_proj,v_proj"
SOME = "enc:101.000/dec:111.010/cross:011.110"


def trained(model: Any, passes: int = 3) -> Any:
    """A few steps, so that singular vectors, scales and weights are no fresh ones."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for update in range(passes):
        model.set_num_updates(update)
        gradients(model)
        optimizer.step()
    return model.eval()


def test_a_map_has_the_largest_stretch_that_its_scale_says():
    layer = nn.ModuleDict({"fc1": nn.Linear(6, 9).double(), "fc2": nn.Linear(9, 6).double()})
    before = layer["fc1"].weight.clone()
    normalise(layer, "fc1")
    assert_same(layer.eval()["fc1"].weight, before, 1e-9)  # it computes what it computed
    layer.train()
    for _ in range(200):
        weight = layer["fc1"].weight  # each is a step
    scale = layer["fc1"].parametrizations.weight[1].scale
    assert_same(torch.linalg.matrix_norm(weight, 2), scale.abs(), 1e-6)
    assert isinstance(layer["fc2"].weight, nn.Parameter)


@pytest.mark.parametrize("options", [{}, {"method": "ste"}, {"method": "function-norm", "norm": "relative"}, {"ffn_group": 7}, {"layout": SOME}, {"checkpoint_activations": True}], ids=str)  # fmt: skip
class TestInAModel:
    def built(self, options: dict[str, Any], **more: Any) -> Any:
        options = dict(options)
        if (layout := options.pop("layout", None)) is not None:
            return build_with(Layout.parse(layout), **options, **more)
        return build_gated(options.pop("method", "dsp"), 5, cooldown_updates=2, **options, **more)

    def test_folding_changes_no_score_and_leaves_plain_weights(self, options):
        model = trained(self.built(options, spectral_norm=ALL))
        before, state = scores(model), model.state_dict()
        names = set(self.built(options).state_dict())
        twin = copy.deepcopy(model)
        fold(twin)
        assert_same(scores(twin), before, 1e-6)
        assert torch.equal(scores(model), before)  # a copy is its own
        assert twin.state_dict().keys() == names == folded(state).keys()
        for name, value in folded(state).items():
            assert_same(value, twin.state_dict()[name])
        assert not is_unfolded(names)
        assert is_unfolded(state)

    def test_a_baked_model_computes_the_same(self, options):
        model = trained(self.built(options, spectral_norm=ALL))
        before = scores(model)
        model.bake()
        assert_same(scores(model), before, 1e-6)
        assert_same(scores_as_generated(model), before, 1e-6)
        assert not is_unfolded(model.state_dict())

    def test_a_plain_state_is_what_it_was_in_a_model_with_spectral_norms(self, options):
        plain, model = self.built(options), self.built(options, spectral_norm=ALL)
        randomise(plain, 3)
        model.load_state_dict(copy.deepcopy(plain.state_dict()), strict=True)
        assert_same(scores(model.eval()), scores(plain), 1e-9)

    def test_a_state_is_resumed_exactly(self, options):
        model, resumed = trained(self.built(options, spectral_norm=ALL)), self.built(options, spectral_norm=ALL)
        resumed.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
        for each in (model, resumed):
            each.set_num_updates(3)
        ours, theirs = gradients(resumed), gradients(model)
        assert ours.keys() == theirs.keys()
        assert any(name.endswith("scale") for name in ours)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in resumed.state_dict().items())

    def test_an_unfolded_state_is_refused_by_a_model_without(self, options, capsys):
        state = trained(self.built(options, spectral_norm="fc2")).state_dict()
        with pytest.raises(SystemExit):
            self.built(options).load_state_dict(state)
        assert "a spectral norm that was not folded" in capsys.readouterr().err


@pytest.mark.parametrize("maps", [ALL, "q_proj,k_proj", "fc1"])
class TestRecomputedActivations:
    """A step of power iteration between a pass and its repetition would be another function's gradient."""

    def built(self, maps: str, **more: Any) -> Any:
        options = {"kept": "4..9", "relaxation": "projection", "initial_temperature": 1.0, "final_temperature": 0.1}
        return build_gated("dsp", spectral_norm=maps, cooldown_updates=9, **options, **more)

    def test_change_no_gradient(self, maps):
        plain, recomputed = self.built(maps), self.built(maps, checkpoint_activations=True)
        for update in range(3):
            assert_recomputing_changes_no_gradient(plain, recomputed, update)
            before, after = plain.state_dict(), recomputed.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)  # vectors go on alike
            randomise(plain, update)

    def test_several_passes_of_an_update_compute_with_the_same_weights(self, maps):
        model, steady = self.built(maps, checkpoint_activations=True), self.built(maps)
        model.train().zero_grad()
        losses = []
        for k in (9, 4):  # as `--sandwich` has it
            with model.head_gates.at(k):
                losses.append(scores(model, k).square().sum())
        sum(losses).backward()
        steady.load_state_dict(copy.deepcopy(model.state_dict()))
        for module in steady.train().modules():
            if isinstance(module, _SpectralNorm):
                module.eval()
        for k in (9, 4):
            with steady.head_gates.at(k):
                scores(steady, k).square().sum().backward()
        for one, other in zip(model.parameters(), steady.parameters(), strict=True):
            if other.grad is not None:
                assert_same(one.grad, other.grad, 1e-9)


@pytest.mark.parametrize("largest", [1e-3, 1.0, 1e3])
def test_folding_is_exact_in_the_precision_of_trainings(largest):
    """Of every map to 1e-6 of its largest number."""
    model = build_gated("ste", spectral_norm=ALL).float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("original", "scale")):
                value.mul_(largest)
    model = trained(model)
    plain, twin = folded(model.state_dict()), copy.deepcopy(model)
    fold(twin)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ALL.split(","):
            parts = module.parametrizations.weight
            exact = parts.original.double() * parts[1].scale.double()
            exact = exact / torch.vdot(parts[0]._u.double(), parts.original.double() @ parts[0]._v.double())
            for found in (plain[f"{name}.weight"], twin.get_submodule(name).weight, module.weight):
                assert float((found.double() - exact).abs().max() / exact.abs().max()) < 1e-6


@pytest.mark.parametrize(
    "options", [{}, {"unpruned_heads": 5, "head_selection": "ste"}, {"unpruned_heads": 5, "ffn_group": 7}], ids=str
)
def test_recomputing_activations_changes_no_gradient_and_makes_no_second_step(options):
    if not options:
        options = {"head_layout": "enc:101.111/dec:111.010/cross:011.110"}
    plain, recomputed = (build(spectral_norm=ALL, checkpoint_activations=again, **options) for again in (False, True))
    assert_recomputing_changes_no_gradient(plain, recomputed, 0)
    ours, theirs = recomputed.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.endswith(("_u", "_v")))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_in_training_whoever_asked_for_it(precision, capsys):
    """hydra's `common.fp16` is none of the model's options."""
    model = build_gated("ste", spectral_norm="fc1").to(precision)
    scores(model.eval())  # that of a finished model is not
    with pytest.raises(SystemExit):
        scores(model.train())
    assert "`--spectral-norm` must be trained in float32, or with `--amp`, but is in" in capsys.readouterr().err


def test_an_unfolded_state_is_cut_to_a_layout():
    model = trained(build_gated("ste", spectral_norm=ALL))
    small = build_with(Layout.parse(SOME), spectral_norm="out_proj")
    small.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    assert small.encoder.layers[1].self_attn.num_heads == 0
    assert_same(small.encoder.layers[0].fc1.weight, model.encoder.layers[0].fc1.weight, 1e-6)


def test_a_state_of_other_maps_is_folded_into_a_model_s_own():
    """As where a training starts from the state of one with other norms."""
    model, other = trained(build_gated("ste", spectral_norm="fc1,fc2")), build_gated("ste", spectral_norm="fc2,v_proj")
    other.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    assert_same(scores(other.eval()), scores(model), 1e-6)


def test_a_mean_of_states_is_none_of_them_and_is_refused(capsys):
    """fairseq's script for averages, and its moving average, take one of vectors that belong to other weights."""
    model = build_gated("ste", spectral_norm="fc1")
    states = [copy.deepcopy(trained(model, 5).state_dict()) for _ in range(2)]
    vectors = [state["encoder.layers.1.fc1.parametrizations.weight.0._u"] for state in states]
    vectors[1].copy_(vectors[1].roll(1))
    mean = {name: (value + states[1][name]) / 2 for name, value in states[0].items()}
    with pytest.raises(
        Refusal, match=r"norm of encoder.layers.\d.fc1 must have singular vectors of length 1, but has one of 0."
    ):
        folded(mean)
    with pytest.raises(SystemExit):
        build_gated("ste", spectral_norm="fc1").load_state_dict(mean)
    assert "`fairseq-dsp-average`" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["original", "0._u", "0._v", "1.scale"])
def test_a_spectral_norm_without_one_of_its_parts_is_refused(lost):
    state = build_gated(spectral_norm="fc1").state_dict()
    del state[f"encoder.layers.1.fc1.parametrizations.weight.{lost}"]
    with pytest.raises(Refusal, match="spectral norm of encoder.layers.1.fc1 must have"):
        folded(state)


def test_a_map_of_zeros_is_refused():
    plain, model = build_gated("ste"), build_gated("ste", spectral_norm="fc1")
    state = plain.state_dict()
    state["encoder.layers.1.fc1.weight"].zero_()
    with pytest.raises(Refusal, match="maps that are not zero, but encoder.layers.1.fc1 "):
        unfolded(state, model.state_dict())


@pytest.mark.parametrize("text", ["", "fc3", "fc1,,fc2", "fc1,fc1", "fc1 fc2"])
def test_names_that_are_none_are_refused(text):
    with pytest.raises(Refusal, match="`--spectral-norm` must be names of maps"):
        parse_maps(text)
    assert parse_maps(",".join(MAPS)) == MAPS
