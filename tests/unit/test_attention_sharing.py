"""`PrunableAttention` over hypotheses of one sentence: the source is computed and kept once."""

from __future__ import annotations

import pytest
import torch
from attentions import BATCH, KEYS, padding, pair, states
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, few_examples

from fairseq_dsp.modules.shared_sources import equal_neighbours


class TestHypothesesOfASentence:
    """Its keys and values are computed and kept once, found by looking, whatever the caller then does with the hypotheses."""

    @few_examples
    @given(st.data())
    def test_answer_as_if_nothing_were_shared(self, data):
        """Random orders: within sentences, across them, fewer of them, repeated ones; equal sentences side by side."""
        _, ours = pair(encoder_decoder_attention=True)
        beam, sentences = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
        distinct = data.draw(st.lists(st.integers(0, 2), min_size=sentences, max_size=sentences))
        rows = torch.tensor(distinct).repeat_interleave(beam)
        pads = padding([6, 4, 2], KEYS) if data.draw(st.booleans()) else None
        sources, shared = states(KEYS, batch=3, seed=2), {}
        for number in range(4):
            step, source, pad = (
                states(1, len(rows), seed=number),
                sources[:, rows],
                None if pads is None else pads[rows],
            )
            with torch.no_grad():
                found = ours(step, source, source, pad, shared, need_weights=False, static_kv=True)[0]
            assert_same(found, ours(step, source, source, pad, need_weights=False)[0])
            hypotheses = torch.arange(len(rows))
            if data.draw(st.booleans()) and len(rows) % beam == 0:  # as a search: whole sentences, then within them
                stay = data.draw(st.lists(st.sampled_from(range(len(rows) // beam)), min_size=1, unique=True))
                hypotheses = hypotheses.view(-1, beam)[sorted(stay)].roll(1, 1).flatten()
            else:
                order = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, max_size=8))
                hypotheses = hypotheses[order]
            ours.reorder_incremental_state(shared, hypotheses)
            rows = rows[hypotheses]

    def test_are_computed_once_a_sentence_and_stay_so_when_sentences_leave(self):
        _, ours = pair(encoder_decoder_attention=True)
        source, cache = states(KEYS, seed=2).repeat_interleave(3, dim=1), {}
        with torch.no_grad():
            ours(states(1, 3 * BATCH), source, source, incremental_state=cache, static_kv=True)
        kept = cache[ours.cache_key]["prev_key"]
        assert kept.size(0) == BATCH
        ours.reorder_incremental_state(cache, torch.arange(3 * BATCH).view(-1, 3).roll(1, 1).flatten())
        assert cache[ours.cache_key]["prev_key"] is kept
        ours.reorder_incremental_state(cache, torch.arange(3, 3 * BATCH))
        assert torch.equal(cache[ours.cache_key]["prev_key"], kept[1:])
        ours.reorder_incremental_state(cache, torch.tensor([0, 3, 6, 1]))
        assert torch.equal(cache[ours.cache_key]["prev_key"], kept[1:][[0, 1, 2, 0]])

    @pytest.mark.parametrize("what", ["key", "mask", "uneven"])
    def test_share_nothing_that_differs(self, what):
        key, pad = states(KEYS, 1).repeat(1, 6, 1), padding([4] * 6, KEYS)
        assert equal_neighbours(key, pad) == equal_neighbours(key, None) == 6
        if what == "key":
            key[3, 4, 5] += 1e-9
        elif what == "mask":
            pad[2, 3] ^= True
        else:
            key[:, :1] += 1
        assert equal_neighbours(key, pad) == 1
