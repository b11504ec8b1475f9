"""Only live heads are computed once gates are constants, and nothing else about the model changes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from fairseq.dataclass.configs import EMAConfig
from fairseq.models.ema import EMA
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, build_gated, few_examples, gradients, scores, scores_as_generated, sentences
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_dsp.modules.site_gates import SiteGates
from fairseq_dsp.modules.surgery import attentions

HEADS = 18


def fixed(importance: list[float] | None = None, kept: int = 7, **options: Any) -> Any:
    """A model whose cooldown is over, with the most important heads as given."""
    model = build_gated("dsp", kept, cooldown_updates=10, **options)
    if importance is not None:
        model.head_gates.importance.data.copy_(torch.tensor(importance))
    model.set_num_updates(10)
    return model


class WithoutLiveHeads:
    """Makes a model compute all heads and multiply by gates of 0 and 1: the slow way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, model: Any, of: Any) -> Any:
        with self.monkeypatch.context() as patch:
            patch.setattr(SiteGates, "live", lambda site, sublayer, search: None)
            return of(model)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> WithoutLiveHeads:
    return WithoutLiveHeads(monkeypatch)


importances = st.permutations(range(HEADS)).map(lambda order: [float(i) for i in order])


def test_training_with_fixed_heads_gives_the_gradients_of_the_masked_model(slowly):
    @few_examples
    @given(importances, st.integers(0, HEADS))
    def holds(importance, kept):
        model = fixed(importance, kept)
        fast = gradients(model)
        slow = slowly(model, gradients)
        assert fast.keys() == slow.keys() == dict(model.named_parameters()).keys()
        for name in fast:
            assert_same(fast[name], slow[name])

    holds()


def test_evaluation_equals_the_masked_model_in_full_and_cached_decoding(slowly):
    @few_examples
    @given(importances, st.integers(0, HEADS))
    def holds(importance, kept):
        model = fixed(importance, kept).eval()
        for way in (scores, scores_as_generated):
            assert_same(way(model), slowly(model, way))

    holds()


def test_parameters_and_state_keep_their_shapes():
    model = fixed()
    before = {name: value.shape for name, value in model.state_dict().items()}
    gradients(model)
    scores(model.eval())
    assert {name: value.shape for name, value in model.state_dict().items()} == before


def test_recomputed_activations_change_no_gradient():
    plain, recomputed = gradients(fixed()), gradients(fixed(checkpoint_activations=True))
    for name in plain:
        assert_same(recomputed[name], plain[name])


def test_weights_that_are_frozen_still_let_the_loss_go_backward():
    found = gradients(fixed(pipelined=True))
    assert found.keys() == {"head_gates.importance"}
    assert not found["head_gates.importance"].any()


def test_evaluation_sees_weights_that_have_changed_since(slowly):
    model = fixed().eval()
    before = scores(model)
    state = {name: value * 1.5 if "proj" in name else value for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert not torch.equal(scores(model), before)
    assert_same(scores(model), slowly(model, scores))
    model.train()  # an optimizer writes through .data, which no version counts, but only while training
    for _, attention in attentions(model, model.layout.grid):
        attention.v_proj.weight.data.mul_(2)
    model.eval()
    assert_same(scores(model), slowly(model, scores))


def test_evaluation_sees_importance_that_has_changed_since():
    model = build_gated("dsp", 5).eval()
    scores(model)
    model.head_gates.importance.data.neg_()
    expected = build_gated("dsp", 5)
    expected.head_gates.importance.data.neg_()
    assert_same(scores(model), scores(expected.eval()))


def changed(model: Any, what: str) -> None:
    """Changes a model in place, past every version counter."""
    if what == "weights":
        for _, attention in attentions(model, model.layout.grid):
            for parameter in attention.parameters():
                parameter.data.mul_(1.5)
    elif what == "importance":
        model.head_gates.importance.data.neg_()
    else:
        model.head_gates.fixed_mask.data.copy_(model.head_gates.fixed_mask.flip(0))


def whole(model: Any) -> Tensor:
    """The decoder's part of a pass, over a source that no head has seen."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(5, 3, 12, generator=generator, dtype=torch.float64)
    return model.decoder(sentences()[2], encoder_out={"encoder_out": [source], "encoder_padding_mask": []})[0]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("what", ["weights", "importance", "marks"])
@pytest.mark.parametrize("way", [scores, scores_as_generated, whole])
def test_no_change_in_place_goes_unseen_in_evaluation(way, what, grad, slowly):
    """The kind: what evaluation has selected or read outlives the tensors that it came from."""
    model = fixed()
    if what == "marks":
        scores(model.train())
    model.eval()
    with torch.set_grad_enabled(grad):
        before = way(model)
        changed(model, what)
        after = way(model)
        assert not torch.equal(after, before)
        assert_same(after, slowly(model, way))


@pytest.mark.parametrize("kept", [0, 7, HEADS])
def test_nothing_selected_outlives_a_pass(kept):
    """The kind: a tensor in the middle of a graph, left where a copy of the model (an average's, a twin's) finds it."""
    for training in (True, False):
        model = fixed(kept=kept).train(training)
        scores(model)
        twin = copy.deepcopy(model)
        assert_same(scores(twin), scores(model))
        pickle.dumps(model)


@pytest.mark.parametrize("kept", [0, 7])
@pytest.mark.parametrize("made", ["outside", "inside"])
def test_inference_mode_evaluates_and_training_goes_on_after_it(made, kept):
    expected = gradients(fixed(kept=kept))
    with torch.inference_mode(made == "inside"):
        model = fixed(kept=kept).eval()
    with torch.inference_mode():
        for way in (scores, scores_as_generated):
            assert_same(way(model), way(fixed(kept=kept).eval()))
    if made == "outside":
        found = gradients(model)
        for name in expected:
            assert_same(found[name], expected[name])


def test_a_masked_model_is_evaluated_in_inference_mode_as_outside():
    model = build_gated("dsp", 7)
    gates = [attention.gates for _, attention in attentions(model, model.layout.grid)]
    for gates_ in gates:
        gates_.live = lambda sublayer, search: None  # computes and multiplies all heads
    expected = scores(model)
    with torch.inference_mode():
        assert_same(scores(model), expected)


def test_beams_reorder_the_one_cache():
    model = fixed().eval()

    def decoded(order: Tensor) -> Tensor:
        encoder_out = model.encoder(torch.tensor([[5, 6, 7]] * 2), torch.tensor([3, 3]))
        cache: dict[str, Any] = {}
        tokens = torch.tensor([[2, 4], [9, 5]])
        model.decoder(tokens[:, :1], encoder_out=encoder_out, incremental_state=cache)
        model.decoder.reorder_incremental_state_scripting(cache, order)
        return model.decoder(tokens[order], encoder_out=encoder_out, incremental_state=cache)[0]

    straight = decoded(torch.tensor([0, 1]))
    assert_same(decoded(torch.tensor([1, 0])), straight.flip(0))
    assert_same(decoded(torch.tensor([1, 1])), straight[[1, 1]])


def test_no_heads_at_all_train_the_rest_of_the_model():
    found = gradients(fixed(kept=0))
    assert found["decoder.layers.0.encoder_attn.out_proj.bias"].any()
    assert not found["decoder.layers.0.encoder_attn.q_proj.weight"].any()


def under_no_grad(model: Any) -> Any:
    """Every parameter changed in place, as `--patience`-like callbacks and averaging scripts do."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("head_gates"):
                parameter.mul_(1.25)
    return model


def loaded(model: Any) -> Any:
    """Another state, with other weights, importance and marks."""
    other = fixed()
    other.head_gates.importance.data.neg_()
    scores(other.train())
    model.load_state_dict(other.state_dict())
    return model


def averaged(model: Any) -> Any:
    """fairseq's moving average, made before the weights moved; it is what is evaluated and saved."""
    average = EMA(model, EMAConfig(ema_decay=0.5))
    average.step(under_no_grad(model))
    return average.get_model().requires_grad_()


BETWEEN = [under_no_grad, loaded, averaged, copy.deepcopy, torch.nn.Module.half, torch.nn.Module.bfloat16]


@pytest.mark.parametrize("between", BETWEEN, ids=lambda what: what.__name__)
@pytest.mark.parametrize("way", [gradients, scores, scores_as_generated])
def test_what_happens_between_two_passes_is_seen_by_the_second(way, between, slowly):
    model = fixed().train(way is gradients)
    way(model)
    model = between(model).train(way is gradients)
    fast, slow = way(model), slowly(model, way)
    tolerance = 1e-11 if next(model.parameters()).dtype == torch.float64 else 3e-2
    for name in fast if way is gradients else [...]:
        torch.testing.assert_close(fast[name], slow[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("update", [3, 10])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("way", [gradients, scores, scores_as_generated])
def test_a_copy_may_be_made_in_the_middle_of_a_pass(way, recomputed, update, monkeypatch):
    """The kind: a callback or another thread copies the model while it computes."""
    model = build_gated("dsp", 7, cooldown_updates=10, checkpoint_activations=recomputed).train(way is gradients)
    model.set_num_updates(update)
    expected = way(model)
    attend, copies = torch.nn.functional.scaled_dot_product_attention, []

    def and_copy(*args: Any, **options: Any) -> Tensor:
        copies.append(copy.deepcopy(model))
        return attend(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", and_copy)
        way(model)
    for twin in [model, *copies[:: max(len(copies) // 3, 1)]]:
        torch.testing.assert_close(way(twin), expected)


def test_a_pass_that_fails_leaves_no_draw_behind():
    model = build_gated("dsp", 7, cooldown_updates=10).train()
    with pytest.raises(IndexError):
        model(torch.tensor([[999]]), torch.tensor([1]), torch.tensor([[2]]))
    first = model.head_gates.gates()
    model.set_num_updates(5)
    assert not torch.equal(model.head_gates.gates(), first)


@torch.no_grad()
def test_a_search_selects_once_and_beams_share_what_it_keeps():
    model = fixed().eval()
    weights = {
        parameter.data_ptr() for _, each in attentions(model, model.layout.grid) for parameter in each.parameters()
    }
    source, lengths, previous = sentences()
    encoder_out = model.encoder(source.repeat_interleave(2, 0), lengths.repeat_interleave(2, 0))
    cache: dict[str, Any] = {}
    counts = []
    for length in range(1, 5):
        with Selections(weights) as selections:
            model.decoder(
                previous[:, :length].repeat_interleave(2, 0), encoder_out=encoder_out, incremental_state=cache
            )
        counts.append(selections.count)
        model.decoder.reorder_incremental_state_scripting(cache, torch.arange(6).view(3, 2).flip(1).flatten())
    assert counts == [4 * 7, 0, 0, 0]  # weights and biases of q, k, v and columns of the output, at four sites
    assert all(kept is None or isinstance(kept, Tensor) for entry in cache.values() for kept in entry.values())


class Selections(TorchDispatchMode):
    """Counts selections of rows or columns of the weights whose addresses are given."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights, self.count = weights, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.index_select.default and args[0].data_ptr() in self.weights
        return func(*args, **(kwargs or {}))
