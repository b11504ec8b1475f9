"""`HeadGates` inside a model: one draw an update, exact in evaluation, float32 always, fixed after the cooldown."""

from __future__ import annotations

import copy
from typing import Any

import devices
import pytest
import torch
from models import assert_same, build_gated, build_with, gradients, scores, scores_as_generated
from torch import Tensor, nn

from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.gates import initial_importance
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.subset import hard_top_k

COOLDOWN, KEPT, HEADS = 10, 7, 18


def gated(method: str = "dsp", update: int = 3, **options: Any) -> Any:
    model = build_gated(method, KEPT, cooldown_updates=COOLDOWN, **options)
    model.set_num_updates(update)
    return model


def gates_of_a_pass(model: Any) -> Tensor:
    """The gates that the sites of the model saw in one forward pass: [H]."""
    seen: list[Tensor] = []
    owner = model.head_gates
    yielded, constant = owner.gates, owner.constant_marks

    def marks(anew: bool) -> tuple[bool, ...] | None:
        found = constant(anew)
        if found is not None:
            seen.append(torch.tensor(found, dtype=torch.float32))
        return found

    owner.gates, owner.constant_marks = lambda: seen.append(yielded()) or seen[-1], marks
    scores(model)
    del owner.gates, owner.constant_marks
    assert all(torch.equal(gates, seen[0]) for gates in seen)
    return seen[0]


def test_the_mean_importance_is_by_type():
    gates = build_gated("dsp", KEPT).head_gates
    with torch.no_grad():
        gates.importance.copy_(torch.arange(HEADS) / 10)
    spans = dict(gates.grid.spans())
    for stack, mean in gates.mean_importance().items():
        some = [gates.importance[span] for site, span in spans.items() if site.stack == stack]
        assert mean == pytest.approx(torch.cat(some).mean().item())


class TestPrecision:
    @pytest.mark.parametrize(
        "convert",
        [
            nn.Module.half,
            nn.Module.bfloat16,
            nn.Module.double,
            lambda m: m.to(torch.float16),
            lambda m: m.to(devices.device()),
        ],
    )
    def test_of_importance_and_marks_stays_float32(self, convert):
        model = gated()
        model.head_gates.importance.data += 1e-6  # not a half-precision number
        before = model.head_gates.importance.detach().clone()
        parameter = model.head_gates.importance
        convert(model)
        assert model.head_gates.importance is parameter
        assert parameter.dtype == model.head_gates.fixed_mask.dtype == torch.float32
        assert torch.equal(parameter.detach(), before)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_of_a_half_precision_models_output_is_the_models(self, dtype):
        model = gated().to(dtype)
        assert scores(model.eval()).dtype == dtype
        assert scores(model.train()).dtype == dtype


class TestEvaluation:
    @pytest.mark.parametrize("update", [0, 3, COOLDOWN - 1])
    def test_gates_are_the_hard_top_k_of_the_importance(self, update):
        model = gated(update=update)
        gates = gates_of_a_pass(model)
        assert torch.equal(gates, hard_top_k(model.head_gates.importance, KEPT))
        assert not gates.requires_grad

    def test_does_not_depend_on_the_update(self):
        model = gated(update=1)
        before = scores(model)
        model.set_num_updates(2)
        assert torch.equal(scores(model), before)

    def test_of_encoder_and_decoder_alone_equals_that_of_the_model(self):
        model = gated()
        scores(model.train())  # a draw of training must not linger
        assert_same(scores_as_generated(model.eval()), scores(model))

    def test_leaves_the_state_alone(self):
        model = gated(update=COOLDOWN + 1)
        before = copy.deepcopy(model.state_dict())
        scores(model)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class TestTraining:
    def test_draws_once_for_all_sites_of_a_pass(self):
        model = gated().train()
        drawn = []
        model.head_gates._draw = lambda: drawn.append(1) or type(model.head_gates)._draw(model.head_gates)
        scores(model)
        assert len(drawn) == 1

    def test_draws_the_same_in_every_pass_of_an_update_and_another_in_the_next(self):
        model = gated(update=3).train()
        first = gates_of_a_pass(model)
        torch.rand(1)
        assert torch.equal(gates_of_a_pass(model), first)
        model.set_num_updates(4)
        assert not torch.equal(gates_of_a_pass(model), first)

    @pytest.mark.parametrize(("relaxation", "bounded"), [("successive-softmax", False), ("projection", True)])
    def test_gates_of_either_relaxation_sum_to_k_and_only_those_of_a_projection_stay_below_1(self, relaxation, bounded):
        model = gated(relaxation=relaxation, initial_temperature=0.3).train()
        draws = []
        for update in range(5):
            model.set_num_updates(update)
            draws.append(gates_of_a_pass(model).detach())
            assert draws[-1].sum().item() == pytest.approx(KEPT, abs=1e-4)
        assert bool((torch.stack(draws) <= 1).all()) == bounded

    def test_draws_differ_between_seeds(self):
        assert not torch.equal(gates_of_a_pass(gated(seed=1).train()), gates_of_a_pass(gated(seed=2).train()))

    def test_does_not_touch_torchs_generator(self):
        model = gated().train()
        before = torch.get_rng_state()
        scores(model)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("update", [3, COOLDOWN])
    @pytest.mark.parametrize("options", [{"initial_temperature": 2.0}, {"pipelined": True}, {"method": "ste"}], ids=str)
    def test_with_recomputed_activations_has_the_same_gradients(self, options, update):
        plain = gated(update=update, **options)
        checkpointed = gated(update=update, checkpoint_activations=True, **options)
        ours, theirs = gradients(checkpointed), gradients(plain)
        assert ours.keys() == theirs.keys()
        assert ours["head_gates.importance"].any() == (update < COOLDOWN)
        for name in ours:
            assert_same(ours[name], theirs[name], 1e-5 if name.startswith("head_gates") else 1e-11)

    def test_forgets_its_draw_after_the_pass(self):
        model = gated(update=3).train()
        before = gates_of_a_pass(model)
        model.set_num_updates(4)
        assert not torch.equal(model.head_gates.gates(), before)
        copy.deepcopy(model)  # impossible for a tensor in the middle of a graph

    def test_of_importance_alone_leaves_the_weights_without_gradient(self):
        assert set(gradients(gated(pipelined=True))) == {"head_gates.importance"}


class TestState:
    def test_has_the_gates_exactly_once(self):
        names = [name for name in gated().state_dict() if "gates" in name or "importance" in name]
        assert names == ["head_gates.importance", "head_gates.fixed_mask"]

    def test_parameters_have_the_importance_exactly_once(self):
        assert sum(p.numel() == HEADS and p.dim() == 1 for p in gated().parameters()) == 1

    def test_of_a_model_without_a_method_has_no_gates(self):
        model = build_with(Layout.full(Grid.of_heads((3, 3), (3, 3), (3, 3))))
        assert not [name for name in model.state_dict() if "gates" in name]

    @pytest.mark.parametrize("activations", [False, True])
    def test_of_a_deep_copy_is_its_own(self, activations):
        model = gated(checkpoint_activations=activations)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.head_gates.importance.neg_()
        for mode in (True, False):
            assert_same(scores(model.train(mode)), scores(gated().train(mode)))
            assert (scores(twin.train(mode)) - scores(model)).abs().max() > 1e-3
            assert torch.equal(gates_of_a_pass(twin), twin.head_gates.gates())
        found = gradients(twin)["head_gates.importance"]
        assert found.any()
        assert model.head_gates.importance.grad is None


@pytest.mark.parametrize("method", ["dsp", "ste"])
class TestAfterTheCooldown:
    def test_gates_are_exactly_zero_or_one_and_the_importance_gets_no_gradient(self, method):
        model = gated(method, update=COOLDOWN)
        chosen = hard_top_k(model.head_gates.importance, KEPT)
        found = gradients(model)["head_gates.importance"]
        assert torch.equal(gates_of_a_pass(model), chosen)
        assert torch.equal(found, torch.zeros(HEADS))

    def test_the_choice_is_in_the_state_and_survives_a_change_of_importance(self, method):
        model = gated(method, update=COOLDOWN).train()
        scores(model)
        chosen = model.state_dict()["head_gates.fixed_mask"].clone()
        assert chosen.sum() == KEPT
        with torch.no_grad():
            model.head_gates.importance.neg_()
        resumed = gated(method, update=COOLDOWN + 5)
        resumed.load_state_dict(model.state_dict())
        for each in (model, resumed):
            for mode in (True, False):
                assert torch.equal(gates_of_a_pass(each.train(mode)), chosen)

    def test_nothing_is_fixed_one_update_before(self, method):
        model = gated(method, update=COOLDOWN - 1).train()
        scores(model)
        assert not model.head_gates.is_fixed
        assert (model.head_gates.fixed_mask == -1).all()

    def test_keep_sampling_never_fixes(self, method):
        model = gated(method, update=100 * COOLDOWN, keep_sampling=True).train()
        scores(model)
        assert not model.head_gates.is_fixed
        assert (model.head_gates.fixed_mask == -1).all()

    def test_marks_that_an_average_has_mixed_fall_back_on_the_importance(self, method):
        model = gated(method)
        model.head_gates.fixed_mask.copy_(torch.linspace(0, 1, HEADS))
        assert torch.equal(model.head_gates.decided_mask(), hard_top_k(model.head_gates.importance, KEPT))


@pytest.mark.parametrize("part", ["model", "decoder", "attention"])
def test_torchscript_of_a_gated_model_is_refused_in_a_sentence_and_of_a_baked_one_is_not(part):
    model = gated()
    of = {"model": lambda: model, "decoder": lambda: model.decoder}
    of["attention"] = lambda: model.decoder.layers[1].encoder_attn
    with pytest.raises(Refusal, match=r"^`torch.jit.script` must .* `model.bake\(\)` first\.$"):
        torch.jit.script(of[part]())
    before = scores(model)
    model.bake()
    torch.jit.script(of[part]())
    if part == "model":
        assert_same(scores(torch.jit.script(model)), before)


class TestInitialImportance:
    def test_is_xavier_uniform_of_a_matrix_of_sites_and_heads(self):
        torch.manual_seed(1)
        bound = (6 / (18 + 400)) ** 0.5
        values = initial_importance(Grid.of_heads((400,) * 6, (400,) * 6, (400,) * 6))
        assert values.abs().max() <= bound
        assert values.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)

    @pytest.mark.parametrize("grid", [Grid.of_heads((), (), ()), Grid.of_heads((0,), (0,), (0,))])
    def test_of_no_heads_is_empty(self, grid):
        assert initial_importance(grid).numel() == 0


@pytest.mark.parametrize("kept", range(7))
def test_gates_on_a_model_that_has_lost_heads_choose_among_the_survivors(kept):
    layout = Layout.parse("enc:100.011/dec:000.110/cross:010.000")
    model = build_gated(kept=kept, head_layout=str(layout))
    assert model.head_gates.importance.numel() == layout.count
    assert model.deployed_layout().count == kept
    assert model.deployed_layout().within(layout)
    before = scores(model)
    model.bake()
    assert_same(scores(model), before)
