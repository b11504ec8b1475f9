"""SIMPLE inside a model: hard gates from the first update, a gradient that the sample cannot make noisy."""

from __future__ import annotations

import torch
from models import build_gated, gradients, scores

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods import METHODS
from fairseq_dsp.units.subset import gumbel_noise, hard_top_k

KEPT, HEADS = 7, 18


def test_gates_of_training_are_zeros_and_ones_drawn_anew_every_update():
    model = build_gated("simple", KEPT, seed=3).train()
    draws = set()
    for update in range(6):
        model.set_num_updates(update)
        gates = model.head_gates.gates().detach()
        noise = gumbel_noise(HEADS, 3, update).float()
        assert torch.equal(gates, hard_top_k(model.head_gates.importance + noise, KEPT))
        draws.add(tuple(gates.tolist()))
    assert len(draws) == 6


def test_every_head_that_may_be_drawn_learns_whether_it_was_or_not():
    model = build_gated("simple", KEPT)
    found = gradients(model)["head_gates.importance"]
    assert (found != 0).all()
    assert abs(found.sum().item()) < 1e-5  # a common shift changes no probability


def test_what_a_draw_leaves_out_does_not_reach_the_output():
    model = build_gated("simple", KEPT).train()
    model.set_num_updates(4)
    drawn = model.head_gates.gates().detach()
    sampled = scores(model)
    with torch.no_grad():
        model.head_gates.importance.copy_(drawn)
    torch.testing.assert_close(scores(model.eval()), sampled, rtol=1e-11, atol=1e-11)


def test_heads_are_fixed_after_the_cooldown_unless_sampling_goes_on():
    for sampling, expected in ((False, 40), (True, None)):
        config = PruningConfig(head_selection="simple", cooldown_updates=40, keep_sampling=sampling)
        assert METHODS["simple"].from_config(config).fixes_at == expected
