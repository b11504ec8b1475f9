"""`PrunableAttention` against fairseq's attention with the same parameters, on every path that fairseq takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attentions import BATCH, EMBED, HEADS, KEYS, QUERIES, padding, pair, states
from fairseq.modules import MultiheadAttention
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, few_examples

from fairseq_dsp.modules.attention import PrunableAttention

CAUSAL = torch.full((QUERIES, QUERIES), float("-inf"), dtype=torch.float64).triu(1)

# fairseq takes its softmax in float32 wherever it returns weights, and so do we.
SOFTMAX = 1e-6


def assert_same_answer(ours: Any, theirs: Any) -> None:
    """The same output, and the same weights or none in both."""
    assert_same(ours[0], theirs[0], SOFTMAX)
    assert (ours[1] is None) == (theirs[1] is None)
    if ours[1] is not None:
        assert_same(ours[1].double(), theirs[1].double(), SOFTMAX)


asking = pytest.mark.parametrize(
    "asked",
    [{"need_weights": False}, {"need_weights": True}, {"need_weights": True, "need_head_weights": True}],
    ids=["no weights", "weights", "head weights"],
)


@asking
class TestEqualsFairseqs:
    @few_examples
    @given(lengths=st.lists(st.integers(1, QUERIES), min_size=BATCH, max_size=BATCH))
    def test_in_the_encoder_with_padding(self, asked, lengths):
        stock, ours = pair(self_attention=True)
        stock._set_skip_embed_dim_check()  # its other path forgets need_head_weights
        x, pad = states(), padding(lengths, QUERIES)
        assert_same_answer(*(each(x, x, x, key_padding_mask=pad, **asked) for each in (ours, stock)))

    def test_in_the_decoder_with_a_causal_mask_and_padding(self, asked):
        stock, ours = pair(self_attention=True)
        stock._set_skip_embed_dim_check()
        x, pad = states(), padding([5, 3, 1, 2], QUERIES)
        answers = [each(x, x, x, key_padding_mask=pad, attn_mask=CAUSAL, **asked) for each in (ours, stock)]
        assert_same_answer(*answers)

    @few_examples
    @given(lengths=st.lists(st.integers(1, KEYS), min_size=BATCH, max_size=BATCH))
    @pytest.mark.parametrize("size", [EMBED, 7])
    def test_across_to_an_encoder_of_the_same_or_another_width(self, asked, size, lengths):
        stock, ours = pair(encoder_decoder_attention=True, kdim=size, vdim=size)
        x, source, pad = states(), states(KEYS, size=size, seed=2), padding(lengths, KEYS)
        answers = [each(x, source, source, key_padding_mask=pad, static_kv=True, **asked) for each in (ours, stock)]
        assert_same_answer(*answers)

    def test_in_cached_decoding_step_by_step(self, asked):
        stock, ours = pair(self_attention=True)
        x, caches = states(), ({}, {})
        for step in x.split(1):
            answers = [
                each(step, step, step, incremental_state=cache, **asked)
                for each, cache in zip((ours, stock), caches, strict=True)
            ]
            assert_same_answer(*answers)

    def test_in_cached_decoding_when_padding_comes_and_goes(self, asked):
        stock, ours = pair(self_attention=True)
        caches = ({}, {})
        pads = [None, torch.tensor([[True], [False], [False], [False]]), None, torch.zeros(BATCH, 1).bool(), None]
        for step, pad in zip(states().split(1), pads, strict=True):
            answers = [
                each(step, step, step, key_padding_mask=pad, incremental_state=cache, **asked)
                for each, cache in zip((ours, stock), caches, strict=True)
            ]
            assert_same_answer(*answers)

    def test_in_cached_decoding_when_the_padding_covers_what_is_cached(self, asked):
        stock, ours = pair(self_attention=True)
        caches = ({}, {})
        first, second = states().split(1)[:2]
        pad = padding([2, 1, 2, 2], 2)
        for step, key_padding_mask in ((first, None), (second, pad)):
            answers = [
                each(step, step, step, key_padding_mask=key_padding_mask, incremental_state=cache, **asked)
                for each, cache in zip((ours, stock), caches, strict=True)
            ]
            assert_same_answer(*answers)

    def test_for_beams_that_share_a_source_under_a_mask(self, asked):
        stock, ours = pair(encoder_decoder_attention=True)
        query, source = states(batch=2 * BATCH), states(KEYS, seed=2)
        mask = states(batch=1, size=KEYS, seed=3)[:, 0]
        answers = [each(query, source, source, attn_mask=mask, static_kv=True, **asked) for each in (ours, stock)]
        assert_same_answer(*answers)

    @pytest.mark.parametrize("beam", [1, 2])
    def test_in_beam_search_that_reorders_and_drops_sentences(self, asked, beam):
        """Every step reorders within sentences; after the second step the first sentence leaves the batch."""
        stock, ours = pair(encoder_decoder_attention=True)
        caches = ({}, {})
        sentences, pad = BATCH, padding([6, 4, 2, 5], KEYS)
        source = states(KEYS, seed=2)
        stock.set_beam_size(beam)
        source, pad = source.repeat_interleave(beam, dim=1), pad.repeat_interleave(beam, dim=0)
        for number in range(4):
            step = states(1, sentences * beam, seed=number)
            answers = [
                each(step, source, source, key_padding_mask=pad, incremental_state=cache, static_kv=True, **asked)
                for each, cache in zip((ours, stock), caches, strict=True)
            ]
            assert_same_answer(*answers)
            order = torch.arange(sentences * beam).view(-1, beam).flip(1).flatten()
            if number == 1:
                order, sentences = order[beam:], sentences - 1
                source, pad = source[:, beam:], pad[beam:]
            for each, cache in zip((ours, stock), caches, strict=True):
                each.reorder_incremental_state(cache, order)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_a_mask_of_truth_hides_what_an_infinite_one_hides(dtype, weights):
    """The kind: a mask of another kind of number, added to the scores as it is. With padding and beams that share a source."""
    _, ours = pair(encoder_decoder_attention=True)
    query, source, pad = states(batch=2 * BATCH), states(KEYS, seed=2), padding([6, 4, 2, 5], KEYS)
    hidden = torch.arange(KEYS) > torch.arange(QUERIES)[:, None]
    added = torch.zeros(QUERIES, KEYS, dtype=torch.float64).masked_fill(hidden, float("-inf"))
    for key_padding_mask in (None, pad):
        found, expected = (
            ours(query, source, source, key_padding_mask, need_weights=weights, static_kv=True, attn_mask=mask)
            for mask in (hidden.to(dtype), added)
        )
        assert_same(found[0], expected[0])


class TestCache:
    def test_makes_decoding_step_by_step_equal_to_the_full_sequence(self):
        _, ours = pair(self_attention=True)
        x, cache = states(), {}
        steps = [ours(step, step, step, incremental_state=cache, need_weights=False)[0] for step in x.split(1)]
        assert_same(torch.cat(steps), ours(x, x, x, attn_mask=CAUSAL, need_weights=False)[0])

    def test_holds_the_heads_that_exist_only(self):
        _, ours = pair(self_attention=True)
        ours.keep_heads([2])
        x, cache = states(1), {}
        ours(x, x, x, incremental_state=cache)
        (entry,) = cache.values()
        assert entry["prev_key"].shape == entry["prev_value"].shape == (BATCH, 1, 1, EMBED // HEADS)

    def test_is_reordered_with_the_hypotheses(self):
        _, ours = pair(self_attention=True)
        x, cache = states(2), {}
        order = torch.tensor([2, 2, 0, 1])
        ours(x[:1], x[:1], x[:1], incremental_state=cache)
        ours.reorder_incremental_state(cache, order)
        step = x[1:, order]
        reordered = ours(step, step, step, incremental_state=cache)[0]
        assert_same(reordered, ours(x, x, x, attn_mask=CAUSAL[:2, :2])[0][1:, order], SOFTMAX)

    def test_of_two_attentions_are_two(self):
        cache: dict = {}
        x = states(1)
        for _, ours in (pair(self_attention=True), pair(self_attention=True)):
            ours(x, x, x, incremental_state=cache)
        assert len(cache) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [False, True])
def test_in_half_precision_stays_there_and_near_the_float64_answer(dtype, weights):
    _, ours = pair(encoder_decoder_attention=True)
    x, source, pad = states(), states(KEYS, seed=2), padding([6, 4, 2, 5], KEYS)
    exact = ours(x, source, source, key_padding_mask=pad, need_weights=weights)[0].detach()
    ours, x, source = ours.to(dtype), x.to(dtype), source.to(dtype)
    answer = ours(x, source, source, key_padding_mask=pad, need_weights=weights)[0]
    assert answer.dtype == dtype
    assert (answer - exact).abs().max() < 0.05 * exact.abs().max()


class TestWithoutHeads:
    def test_returns_the_bias_caches_nothing_and_has_no_weights(self):
        _, ours = pair(self_attention=True)
        ours.keep_heads([])
        x, cache = states(), {}
        output, weights = ours(x, x, x, incremental_state=cache, need_weights=True, need_head_weights=True)
        assert torch.equal(output, ours.out_proj.bias.expand(QUERIES, BATCH, EMBED))
        assert weights is None
        assert cache == {}
        assert ours.reorder_incremental_state(cache, torch.tensor([1, 0])) == {}

    def test_and_without_a_bias_returns_zeros(self):
        stock = MultiheadAttention(EMBED, HEADS, self_attention=True)
        stock.out_proj.bias = None
        ours = PrunableAttention(stock)
        ours.keep_heads([])
        assert torch.equal(ours(states().float(), None, None)[0], torch.zeros(QUERIES, BATCH, EMBED))


class TestKeepHeads:
    @pytest.mark.parametrize("kept", [[], [1], [0, 2], [0, 1, 2]])
    def test_keeps_the_kept_heads_parameters_and_no_more(self, kept):
        _, ours = pair(self_attention=True)
        dense = copy.deepcopy(ours)
        ours.keep_heads(kept)
        assert (ours.num_heads, ours.head_dim) == (len(kept), EMBED // HEADS)
        for name in ("q_proj", "k_proj", "v_proj"):
            small, large = getattr(ours, name), getattr(dense, name)
            assert torch.equal(small.weight.view(len(kept), 4, EMBED), large.weight.view(HEADS, 4, EMBED)[kept])
            assert torch.equal(small.bias.view(len(kept), 4), large.bias.view(HEADS, 4)[kept])
        columns = dense.out_proj.weight.view(EMBED, HEADS, 4)[:, kept]
        assert torch.equal(ours.out_proj.weight.view(EMBED, len(kept), 4), columns)
        assert torch.equal(ours.out_proj.bias, dense.out_proj.bias)

    def test_copies_so_that_no_dense_storage_is_saved(self):
        _, ours = pair(self_attention=True)
        ours.keep_heads([1])
        for parameter in ours.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()

    def test_keeps_what_is_frozen_frozen_and_lets_nothing_empty_want_a_gradient(self):
        _, ours = pair(self_attention=True)
        ours.k_proj.requires_grad_(False)
        ours.keep_heads([0, 1])
        assert not ours.k_proj.weight.requires_grad
        assert ours.q_proj.weight.requires_grad
        ours.keep_heads([])
        assert not any(p.requires_grad for p in ours.parameters() if p.numel() == 0)
        assert ours.out_proj.bias.requires_grad


def test_splits_the_joint_projection_of_the_oldest_checkpoints():
    stock, ours = pair(self_attention=True)
    state = {f"layer.{name}": value for name, value in stock.state_dict().items()}
    for kind in ("weight", "bias"):
        state[f"layer.in_proj_{kind}"] = torch.cat([state.pop(f"layer.{p}_proj.{kind}") for p in "qkv"])
    ours.upgrade_state_dict_named(state, "layer")
    assert set(state) == {f"layer.{name}" for name in stock.state_dict()}
    assert all(torch.equal(state[f"layer.{name}"], value) for name, value in stock.state_dict().items())
