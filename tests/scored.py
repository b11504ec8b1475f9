"""A small model to score, and the derivatives of its loss by its units' gates, one sentence and one gate at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from models import PAD, build_with, sentences
from torch import Tensor

from fairseq_dsp.checkpoints.batches import loss_of, words_of
from fairseq_dsp.modules.surgery import attentions, modules_at
from fairseq_dsp.scoring.map_features import FEATURES
from fairseq_dsp.scoring.subject import Subject
from fairseq_dsp.units.kinds import KIND_OF
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.scorer_model import ScorerModel

GRID = Grid.of_heads((3, 3), (3, 3), (3, 3))
ALL = Layout.full(GRID)
SOME = Layout.parse("enc:101.111/dec:000.011/cross:110.100")

# Heads, and neurons in groups of 7, of 2 and one by one.
PAIRS = Layout.full(Grid.of_stacks(enc=(3, 3), dec=(3, 3), cross=(3, 3), ffn_enc=(2, 2), ffn_dec=(2, 2)))
SINGLE = Layout.full(Grid.of_stacks(enc=(1, 1), dec=(1, 1), cross=(1, 1), ffn_enc=(14, 14), ffn_dec=(14, 14)))
UNEVEN = Layout.parse("enc:101.111/dec:000.011/cross:110.100/ffn-enc:1011000.0000000/ffn-dec:1111111.0000001")

# A trained scorer that nobody trained.
NETWORK = ScorerModel(
    version="0.1.0",
    features=FEATURES,
    means=tuple(0.1 * n for n in range(len(FEATURES))),
    scales=tuple(1.0 + n for n in range(len(FEATURES))),
    hidden=tuple(tuple(0.3 * (n - m) for n in range(len(FEATURES))) for m in range(3)),
    biases=(0.1, -0.2, 0.3),
    output=(1.0, -2.0, 0.5),
    models=("dense.pt",),
    steps=3,
    seed=1,
)


def dense(layout: Layout = ALL) -> Any:
    heads = max(layout.grid.of("enc"))
    return build_with(layout, encoder_attention_heads=heads, decoder_attention_heads=heads)


def batch_of(seed: int = 0) -> dict[str, Any]:
    """Three sentence pairs of different lengths, as fairseq's batches are."""
    source, lengths, previous = sentences(seed)
    target = torch.cat([previous[:, 1:], torch.full((3, 1), 2)], dim=1)
    for row, length in enumerate((4, 2, 3)):
        target[row, length:] = PAD
        previous[row, length:] = PAD
    inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
    return {"net_input": inputs, "target": target}


def subject_of(model: Any, seeds: tuple[int, ...] = (0, 1), seed: int = 5) -> Subject:
    return subject_over(model, [batch_of(each) for each in seeds], seed)


def subject_over(model: Any, batches: list[dict[str, Any]], seed: int = 5) -> Subject:
    return Subject.of(model, batches, partial(loss_of, model), partial(words_of, model), seed)


def subject_without_model(grid: Grid) -> Subject:
    """For scorers that look at the grid alone."""
    return Subject(grid, {}, [], lambda batch: batch, 1, lambda batch: {}, {})


def sentence_of(batch: dict[str, Any], row: int) -> dict[str, Any]:
    """One pair of a batch by itself, without padding."""
    whole = batch["net_input"]
    length, words = int(whole["src_lengths"][row]), int((batch["target"][row] != PAD).sum())
    inputs = {
        "src_tokens": whole["src_tokens"][row : row + 1, :length],
        "src_lengths": whole["src_lengths"][row : row + 1],
        "prev_output_tokens": whole["prev_output_tokens"][row : row + 1, :words],
    }
    return {"net_input": inputs, "target": batch["target"][row : row + 1, :words]}


def slow_derivatives(model: Any, batches: list[dict[str, Any]], live: Tensor) -> Tensor:
    """(L(gate + e) - L(gate - e)) / 2e of every unit and sentence: [n, sentences]; 0 for a unit that is not live."""
    grid, step = model.layout.surviving, 1e-5
    readers = []  # of every unit: the map that reads what it computed, and which columns of its weight are the unit's
    for site, module in modules_at(model, grid).items():
        reader = module.out_proj if KIND_OF[site.stack].name == "heads" else module.fc2
        width = reader.weight.size(1) // max(grid.size(site), 1)
        readers += [(reader, slice(unit * width, (unit + 1) * width)) for unit in range(grid.size(site))]
    weights = [reader.weight.detach().clone() for reader, _ in readers]

    def loss_with(gates: list[float], sentence: dict[str, Any]) -> float:
        with torch.no_grad():
            for (reader, _), weight in zip(readers, weights, strict=True):
                reader.weight.copy_(weight)
            for (reader, columns), gate in zip(readers, gates, strict=True):
                reader.weight[:, columns] *= gate
            log_probs = model(**sentence["net_input"])[0].log_softmax(-1)
        target = sentence["target"][0]
        return -sum(float(log_probs[0, position, word]) for position, word in enumerate(target.tolist()))

    pairs = [sentence_of(batch, row) for batch in batches for row in range(3)]
    rows = []
    for head in range(grid.total):
        derivatives = []
        for pair in pairs:
            up, down = live.tolist(), live.tolist()
            up[head] += step
            down[head] -= step
            derivatives.append((loss_with(up, pair) - loss_with(down, pair)) / (2 * step) if live[head] else 0.0)
        rows.append(derivatives)
    with torch.no_grad():
        for (reader, _), weight in zip(readers, weights, strict=True):
            reader.weight.copy_(weight)
    return torch.tensor(rows, dtype=torch.float64)


def change_places(model: Any, order: Sequence[int]) -> None:
    """Gives the heads of every site another order, in place; the model computes what it computed.

    Args:
        order: of the three heads, of size 4, that every site of `dense` has: which head comes first, and so on.
    """
    places = torch.tensor([4 * head + place for head in order for place in range(4)])
    with torch.no_grad():
        for _, attention in attentions(model, ALL.grid):
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                projection.weight.copy_(projection.weight[places].clone())
                projection.bias.copy_(projection.bias[places].clone())
            attention.out_proj.weight.copy_(attention.out_proj.weight[:, places].clone())
