"""Heads that are not exchangeable: each begins with one place that it attends to, and keeps it. Used by `choosing`.

Queries and keys are frozen so that at place t the head's query meets the key of one place r(t), by codes e of the places:

    W_q P_t = g e_r(t),    W_k P_s = g e_s,    P the frozen position embeddings

One cross-attention head of the model attends to t, one to p(t), one head of decoder self-attention to where target_t-3 is
fed; which, the seed decides. All others attend to places drawn at random. In a deeper layer they can still come to be of use,
where feed-forward layers learn to give places other names, but that takes updates that the right heads do not need.
(Queries and keys that are merely random serve nothing: frozen at four times their first size they let all 24 heads together
learn next to nothing in 600 updates.)
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from fairseq_dsp.benchmark.lookup import DISTANCE, Head, Lookup
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.kind import unit_places
from fairseq_dsp.units.layout import Grid

_SHARPNESS = 20.0  # logit of the right place where embeddings have their first size; it shrinks in deeper layers
_FIRST_POSITION = 2  # rows of fairseq's learned positions before the first


def needed_heads(grid: Grid, seed: int) -> tuple[Head, Head, Head]:
    """The heads that attend to t, to p(t) and to target_t-3, drawn with the seed."""
    draw = random.Random(f"roles {seed}")
    cross = [(site, head) for site in grid.sites if site.stack == "cross" for head in range(grid.size(site))]
    dec = [(site, head) for site in grid.sites if site.stack == "dec" for head in range(grid.size(site))]
    here, there = draw.sample(cross, 2)
    return here, there, draw.choice(dec)


def roles_of(grid: Grid, lookup: Lookup, seed: int) -> Mapping[Head, Tensor]:
    """r of every head: [length], the place that it attends to from each place. In decoder self-attention never a later one."""
    length = len(lookup.permutation)
    places = torch.arange(length)
    # the decoder is fed a place late: what was put out DISTANCE places ago lies DISTANCE - 1 back
    earlier = (places - (DISTANCE - 1)).clamp(min=0)
    wanted = dict(zip(needed_heads(grid, seed), (places, lookup.permutation, earlier), strict=True))
    generator = torch.Generator().manual_seed(seed)
    roles = {}
    for site in grid.sites:
        for head in range(grid.size(site)):
            drawn = torch.randperm(length, generator=generator)
            if site.stack == "dec":
                drawn = (torch.rand(length, generator=generator) * (places + 1)).long()
            roles[site, head] = wanted.get((site, head), drawn)
    return roles


@torch.no_grad()
def freeze_roles(model: DspTransformerModel, lookup: Lookup, seed: int) -> None:
    """Gives every head that the model has its role, in place, and freezes queries, keys and position embeddings.

    Args:
        model: fresh, with learned positions, as wide as the sentences are long at least.
    """
    grid = model.layout.grid
    roles = roles_of(grid, lookup, seed)
    generator = torch.Generator().manual_seed(seed)
    length = len(lookup.permutation)
    inverse = {}
    for side in (model.encoder, model.decoder):
        positions = side.embed_positions.weight
        rows = torch.randn(length, positions.size(1), generator=generator)
        positions.requires_grad_(False)
        positions[_FIRST_POSITION : _FIRST_POSITION + length] = rows
        inverse[side] = torch.linalg.pinv(rows)  # [C, length]
        words = side.embed_tokens.weight
        words -= words @ inverse[side] @ rows  # words start without a part that looks like a place
    for site, attention in attentions(model, grid):
        query_side = model.encoder if site.stack == "enc" else model.decoder
        key_side = model.decoder if site.stack == "dec" else model.encoder
        dim = attention.head_dim
        codes = torch.nn.functional.normalize(torch.randn(length, dim, generator=generator), dim=1)
        gain = (_SHARPNESS * dim**0.5) ** 0.5
        rows = unit_places(model.layout.units(site), dim)
        queries = [gain * (inverse[query_side] @ codes[roles[site, head]]).T for head in range(grid.size(site))]
        keys = [gain * (inverse[key_side] @ codes).T for _ in range(grid.size(site))]
        for projection, of_heads in ((attention.q_proj, queries), (attention.k_proj, keys)):
            projection.weight.copy_(torch.cat(of_heads)[rows])
            projection.bias.zero_()
            projection.requires_grad_(False)
