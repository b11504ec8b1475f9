"""Gates on the heads of a `PrunableAttention`, against the formula written a head at a time, on every path."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from fairseq.modules import MultiheadAttention
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, few_examples, randomise
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fairseq_dsp.modules.attention import PrunableAttention
from fairseq_dsp.modules.site_gates import ConstantGates

EMBED, HEADS, BATCH, QUERIES, KEYS = 12, 3, 4, 5, 6
SIZE = EMBED // HEADS


def attention(cross: bool = False) -> PrunableAttention:
    stock = MultiheadAttention(EMBED, HEADS, self_attention=not cross, encoder_decoder_attention=cross)
    ours = PrunableAttention(stock).double().eval()
    randomise(ours)
    return ours


def states(length: int, seed: int) -> Tensor:
    return torch.randn(length, BATCH, EMBED, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gate(ours: PrunableAttention, values: list[float] | Tensor) -> Tensor:
    """Installs constant gates and returns them."""
    gates = torch.as_tensor(values, dtype=torch.float64)
    ours.gates = ConstantGates(gates)
    return gates


X, SOURCE = states(QUERIES, 1), states(KEYS, 2)
PADDING = torch.arange(KEYS) >= torch.tensor([6, 4, 2, 5])[:, None]


def self_attended(ours: PrunableAttention) -> Tensor:
    return ours(X, X, X, need_weights=False)[0]


def self_attended_with_weights(ours: PrunableAttention) -> Tensor:
    return ours(X, X, X)[0]


def cached(ours: PrunableAttention) -> Tensor:
    cache: dict = {}
    return torch.cat([ours(x, x, x, incremental_state=cache, need_weights=False)[0] for x in X.split(1)])


def cross_attended(ours: PrunableAttention) -> Tensor:
    return ours(X, SOURCE, SOURCE, key_padding_mask=PADDING, static_kv=True, need_weights=False)[0]


def cross_attended_with_weights(ours: PrunableAttention) -> Tensor:
    return ours(X, SOURCE, SOURCE, key_padding_mask=PADDING, static_kv=True)[0]


def beams_sharing_a_source(ours: PrunableAttention) -> Tensor:
    query = torch.cat([X, -X], dim=2).view(QUERIES, 2 * BATCH, EMBED)
    return ours(query, SOURCE, SOURCE, key_padding_mask=PADDING, static_kv=True, need_weights=False)[0]


on_every_path = pytest.mark.parametrize(
    ("path", "cross"),
    [
        (self_attended, False),
        (self_attended_with_weights, False),
        (cached, False),
        (cross_attended, True),
        (cross_attended_with_weights, True),
        (beams_sharing_a_source, True),
    ],
)
Path = Callable[[PrunableAttention], Tensor]


@on_every_path
@pytest.mark.parametrize("training", [False, True])
class TestOnEveryPath:
    def test_gates_of_zero_leave_the_bias_alone(self, path: Path, cross, training):
        ours = attention(cross).train(training)
        ungated = path(ours)
        gate(ours, [0, 0, 0])
        gated = path(ours)
        assert_same(gated, ours.out_proj.bias.expand_as(gated))
        assert (gated - ungated).abs().max() > 0.1

    def test_gates_of_one_change_nothing(self, path: Path, cross, training):
        ours = attention(cross).train(training)
        ungated = path(ours)
        gate(ours, [1, 1, 1])
        assert_same(path(ours), ungated)

    def test_gates_of_zero_and_one_equal_the_removal_of_heads(self, path: Path, cross, training):
        ours = attention(cross).train(training)
        gate(ours, [1, 0, 1])
        masked = path(ours)
        ours.gates = None
        ours.keep_heads([0, 2])
        assert_same(path(ours), masked, 1e-7)


def gated_sum_of_heads(ours: PrunableAttention, gates: Tensor, query: Tensor, source: Tensor, pad: Tensor) -> Tensor:
    """sum_i g_i softmax(X Q_i (Y K_i)^T / sqrt(d)) Y V_i O_i + b, a sentence and a head at a time."""
    sentences = []
    for b in range(BATCH):
        x, y = query[:, b], source[~pad[b], b]
        total = ours.out_proj.bias.expand(QUERIES, EMBED)
        for i in range(HEADS):
            rows = slice(i * SIZE, (i + 1) * SIZE)
            q, k, v = (
                inputs @ projection.weight[rows].T + projection.bias[rows]
                for inputs, projection in ((x, ours.q_proj), (y, ours.k_proj), (y, ours.v_proj))
            )
            head = torch.softmax(q @ k.T / math.sqrt(SIZE), dim=-1) @ v
            total = total + gates[i] * head @ ours.out_proj.weight[:, rows].T
        sentences.append(total)
    return torch.stack(sentences, dim=1)


class TestFormula:
    @few_examples
    @given(st.lists(st.floats(-2, 2), min_size=HEADS, max_size=HEADS))
    def test_output_is_the_gated_sum_of_the_heads(self, values):
        ours = attention(cross=True)
        gates = gate(ours, values)
        assert_same(cross_attended(ours), gated_sum_of_heads(ours, gates, X, SOURCE, PADDING))

    @pytest.mark.parametrize("frozen", [False, True])
    @pytest.mark.parametrize("path", [cross_attended, cross_attended_with_weights])
    def test_gradients_of_gates_and_parameters_are_those_of_the_sum(self, path, frozen):
        ours = attention(cross=True).train().requires_grad_(not frozen)
        gates = gate(ours, [0.3, 0.0, 1.4]).requires_grad_()
        wanted = [gates] if frozen else [gates, *ours.parameters()]
        weights = states(QUERIES, 3)
        found = torch.autograd.grad((path(ours) * weights).sum(), wanted)
        expected = torch.autograd.grad((gated_sum_of_heads(ours, gates, X, SOURCE, PADDING) * weights).sum(), wanted)
        for ours_, theirs in zip(found, expected, strict=True):
            assert_same(ours_, theirs, 1e-10 if path is cross_attended else 1e-5)

    def test_frozen_weights_get_no_product_of_the_size_of_a_gradient(self):
        ours = attention().train().requires_grad_(False)
        gates = gate(ours, [0.3, 0.0, 1.4]).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            output = self_attended(ours)
            forward = counter.get_total_flops()
            output.sum().backward()
        projection = 2 * QUERIES * BATCH * EMBED**2
        assert counter.get_total_flops() - forward == projection  # to the contexts, and no further
        assert gates.grad is not None

    @pytest.mark.parametrize("frozen", [False, True])
    def test_gradient_of_gates_is_taken_in_float32_by_a_half_precision_model(self, frozen):
        ours = attention().to(torch.bfloat16).train().requires_grad_(not frozen)
        gates = torch.ones(HEADS, requires_grad=True)
        ours.gates = ConstantGates(gates)
        x = X.to(torch.bfloat16)
        ours(x, x, x, need_weights=False)[0].float().sum().backward()
        assert gates.grad.dtype == torch.float32
        assert not torch.equal(gates.grad, gates.grad.to(torch.bfloat16).float())


class TestWeights:
    def masked(self, gates: list[float], training: bool = False, **asked: bool) -> Tensor | None:
        ours = attention(cross=True).train(training)
        gate(ours, gates)
        return ours(X, SOURCE, SOURCE, key_padding_mask=PADDING, **asked)[1]

    def test_of_a_masked_head_have_no_say_in_the_average(self):
        ours = attention(cross=True)
        ours.keep_heads([0, 2])
        small = ours(X, SOURCE, SOURCE, key_padding_mask=PADDING)[1]
        assert_same(self.masked([1, 0, 1]).double(), small.double(), 1e-6)

    def test_of_a_masked_head_are_not_among_the_heads(self):
        every_head = self.masked([1, 1, 1], need_head_weights=True)
        live = self.masked([1, 0, 1], need_head_weights=True)
        assert torch.equal(live, every_head[[0, 2]])

    def test_are_none_where_no_head_is_live(self):
        assert self.masked([0, 0, 0]) is None

    def test_are_averaged_over_all_heads_in_training(self):
        assert torch.equal(self.masked([1, 0, 1], training=True), self.masked([1, 1, 1], training=True))
