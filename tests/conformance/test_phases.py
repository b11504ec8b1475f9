"""Every phase of a model's life x every way in which torch and fairseq handle a model: what it computes stays what it was."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq.dataclass.configs import EMAConfig
from fairseq.models.ema import EMA
from models import assert_same, build_gated, build_with, gradients, randomise, scores, scores_as_generated
from torch import Tensor

from fairseq_dsp.methods import METHODS
from fairseq_dsp.modules.surgery import attentions, shrink_state

KEPT, COOLDOWN = 7, 10
Answers = dict[str, Tensor]


class Life:
    """A model in one phase, made as often as it is asked for, and what it computes there.

    Args:
        method: what chooses its heads; `, neurons too` where groups of neurons are units as well, `, sublayers` where these go as a whole.
        phase: `choosing` (training, heads drawn), `fixed` (training, heads fixed), `evaluated` or `rewritten`.
    """

    def __init__(self, method: str, phase: str) -> None:
        self.method, _, more = method.partition(", ")
        self.phase = phase
        self.kept = 20 if more == "neurons too" else KEPT
        # gates that are far from 0 and 1
        self.options: dict[str, Any] = {"initial_temperature": 2.0} if self.method == "dsp" else {}
        if more == "neurons too":
            self.options["ffn_group"] = 2
        self.whole = more == "sublayers"
        if self.whole:
            self.options |= {"prune": "sublayers", "budget": str(KEPT)}
        self.trains = phase != "evaluated"

    def build(self, **options: Any) -> Any:
        """The model with nothing but the shape of this phase's."""
        if self.phase != "rewritten":
            return self._built(**options)
        return build_with(self._gated().deployed_layout(), **options)

    def live(self, model: Any) -> Any:
        """The model as training or evaluation finds it."""
        if self.phase in ("choosing", "fixed"):
            model.set_num_updates(3 if self.phase == "choosing" else COOLDOWN + 1)
        return model.train(self.phase in ("choosing", "fixed"))

    def model(self) -> Any:
        model = self.live(self._gated() if self.phase != "rewritten" else self.build())
        if self.phase == "rewritten":
            source = self._gated()
            model.load_state_dict(shrink_state(source.state_dict(), model.layout))
        scores(model)  # in a training pass heads get fixed
        return model

    def answers(self, model: Any) -> Answers:
        """All that the model computes in this phase, by name."""
        found = {"output": scores(model).detach()}
        if self.phase in ("evaluated", "rewritten"):
            found["generated"] = scores_as_generated(model).detach()
        if self.trains:
            mode = model.training
            found |= gradients(model)
            model.train(mode)
        return found

    def _gated(self) -> Any:
        model = self._built()
        randomise(model, 5)
        for name in model.head_gates.method.records():  # as if there had been updates
            record = model.head_gates.get_buffer(name)
            record.copy_(torch.rand(record.shape, generator=torch.Generator().manual_seed(5)))
        return model

    def _built(self, **options: Any) -> Any:
        kept = None if self.whole else self.kept
        return build_gated(self.method, kept, cooldown_updates=COOLDOWN, **self.options, **options)


def assert_answers(found: Answers, expected: Answers, tolerance: float = 1e-11) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # the importance is float32 in a model of any precision
        assert_same(found[name].to(value.dtype), value, max(tolerance, 1e-5 if name.startswith("head_gates") else 0))


@pytest.fixture(params=["dsp", "lagrangian", "function-norm", "site-threshold", "dsp, neurons too", "dsp, sublayers"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["choosing", "fixed", "evaluated", "rewritten"])
def life(request: pytest.FixtureRequest, method: str) -> Life:
    return Life(method, request.param)


def moved(model: Any) -> Any:
    """The model after its weights have changed, in place."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    return model


def test_the_phases_are_what_they_say(life: Life):
    model = life.model()
    if life.phase == "rewritten":
        assert model.head_gates is None
        counts = model.layout.by_kind()
        assert sum(attention.num_heads for _, attention in attentions(model, model.layout.grid)) == counts["heads"][0]
        kept = [len(model.layout.units(site)) for site in model.layout.grid.sites]
        assert (sum(count > 0 for count in kept) if life.whole else sum(kept)) == life.kept
        return
    gates = model.head_gates.gates().detach()
    hard = set(gates.tolist()) <= {0.0, 1.0}
    chosen = life.phase != "choosing"
    assert hard == (chosen or life.method in ("function-norm", "site-threshold"))
    assert not chosen or gates.sum() == life.kept
    assert (model.head_gates.fixed_mask >= 0).all() == (life.phase == "fixed")


def test_a_deep_copy_computes_the_same_and_is_its_own(life: Life):
    model, expected = life.model(), life.answers(life.model())
    twin = copy.deepcopy(model)
    assert_answers(life.answers(twin), expected)
    assert (scores(moved(twin)) - expected["output"]).abs().max() > 1e-3
    assert_answers(life.answers(model), expected)


def test_a_moving_average_of_nothing_but_now_evaluates_as_the_model(life: Life):
    model = life.model()
    average = EMA(model, EMAConfig(store_ema=True, ema_decay=0.0, ema_fp32=True))
    moved(model)
    average.step(model)
    smooth = average.get_model().eval()
    model.eval()
    for way in (scores, scores_as_generated):
        assert_same(way(smooth), way(model), 1e-4)  # it averages in float32
    assert not [name for name, parameter in smooth.named_parameters() if parameter.requires_grad]
    expected = life.answers(life.live(model))
    average.step(model)
    assert_answers(life.answers(life.live(model)), expected)  # the model goes on as if there were none


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_uses_the_same_gates_and_computes_nearly_the_same(life: Life, dtype: torch.dtype):
    model, expected = life.model(), scores(life.model()).detach()
    gates = None if model.head_gates is None else model.head_gates.gates().detach()
    model.to(dtype)
    assert gates is None or torch.equal(model.head_gates.gates(), gates)
    found = scores(model)
    assert found.dtype == dtype
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15}[dtype] * float(expected.abs().max())
    assert float((found.double() - expected).abs().max()) < tolerance
    if life.trains:
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients(model).values())


def test_inference_mode_computes_the_same_and_leaves_nothing_behind(life: Life):
    model, expected = life.model(), life.answers(life.model())
    with torch.inference_mode():
        assert_same(scores(model).clone(), expected["output"])
        if "generated" in expected:
            assert_same(scores_as_generated(model).clone(), expected["generated"])
    assert_answers(life.answers(model), expected)


def test_recomputed_activations_compute_the_same(life: Life):
    if life.phase != "rewritten" and METHODS[life.method].measures:
        with pytest.raises(SystemExit):
            life.build(checkpoint_activations=True)
        return
    expected = life.answers(life.model())
    model = life.build(checkpoint_activations=True)
    model.load_state_dict(life.model().state_dict())
    assert_answers(life.answers(life.live(model)), expected)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("way", [through_a_file, copy.deepcopy, dict])
def test_a_state_makes_another_model_compute_the_same(life: Life, way: Callable[[Any], Any]):
    model, expected = life.model(), life.answers(life.model())
    twin = moved(life.build())
    twin.load_state_dict(way(model.state_dict()))
    assert_answers(life.answers(life.live(twin)), expected)
    assert_answers(life.answers(model), expected)
