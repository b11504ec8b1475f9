"""Blocks of weight matrices: their scores against loops over blocks, masks of exactly a share, and files that are none."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build_with, few_examples, many_examples
from scored import batch_of
from torch import Tensor

from fairseq_dsp.checkpoints.batches import loss_of
from fairseq_dsp.errors import Refusal
from fairseq_dsp.scoring.blocks import SCORERS, score_blocks
from fairseq_dsp.units.blocks import BlockScores, matrices_of, read_block_scores, refuse_uneven
from fairseq_dsp.units.layout import Layout

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))


def file_of(scores: dict[str, Tensor], block: int = 16) -> BlockScores:
    tables = {name: table.tolist() for name, table in scores.items()}
    return BlockScores("0.1.0", "magnitude", block, None, None, None, None, None, "dense.pt", {"float32": "1"}, tables)


@few_examples
@given(SIZES, st.integers(0, 99))
def test_scores_are_those_of_slow_loops(sizes, seed):
    rows, columns, block = sizes
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(rows * block, columns * block, generator=generator, dtype=torch.float64))
    batches = [torch.randn(columns * block, 3, generator=generator, dtype=torch.float64) for _ in range(2)]

    def loss(batch: Tensor) -> Tensor:
        return (weight @ batch).tanh().square().sum(dim=0)

    magnitude = score_blocks({"fc1.weight": weight}, block, "magnitude", [], loss)["fc1.weight"]
    gradient = score_blocks({"fc1.weight": weight}, block, "gradient", batches, loss)["fc1.weight"]
    derivatives = [torch.autograd.grad(loss(batch).mean(), weight)[0] for batch in batches]
    for i in range(rows):
        for j in range(columns):
            place = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            numbers = [float(w) ** 2 for w in weight[place].flatten()]
            assert float(magnitude[i, j]) == pytest.approx((sum(numbers) / block**2) ** 0.5)
            changes = [abs(float((weight[place] * derivative[place]).sum())) for derivative in derivatives]
            assert float(gradient[i, j]) == pytest.approx(sum(changes) / 2, rel=1e-9, abs=1e-12)


@many_examples
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 100).map(lambda hundredths: hundredths / 100),
    st.integers(0, 99),
)
def test_a_mask_keeps_whole_blocks_of_the_highest_scores_of_all_matrices(rows, columns, density, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {
        "a": torch.randint(4, (rows, columns), generator=generator).double(),
        "b": torch.rand(2, 3, generator=generator),
    }
    masks = file_of(scores).masks(density)
    total = rows * columns + 6
    blocks = {name: mask[::16, ::16] for name, mask in masks.items()}
    assert sum(int(kept.sum()) for kept in blocks.values()) == round(100 * density) * total // 100
    for name, mask in masks.items():
        assert torch.equal(mask, blocks[name].repeat_interleave(16, 0).repeat_interleave(16, 1))
    kept = [
        float(s) for name in scores for s, k in zip(scores[name].flatten(), blocks[name].flatten(), strict=True) if k
    ]
    gone = [
        float(s)
        for name in scores
        for s, k in zip(scores[name].flatten(), blocks[name].flatten(), strict=True)
        if not k
    ]
    assert not kept or not gone or min(kept) >= max(gone)


def test_matrices_are_the_linear_maps_of_layers():
    names = [
        "encoder.embed_tokens.weight",
        "encoder.layers.0.fc1.weight",
        "encoder.layers.0.fc1.bias",
        "decoder.output_projection.weight",
    ]
    names += ["decoder.layers.1.encoder_attn.out_proj.weight", "decoder.layers.1.final_layer_norm.weight", "weight"]
    found = matrices_of({name: torch.zeros(1) for name in names})
    assert [*found] == ["encoder.layers.0.fc1.weight", "decoder.layers.1.encoder_attn.out_proj.weight"]


@pytest.mark.parametrize("layout", ["enc:1.0/dec:0.1/cross:1.1", "enc:1.1/dec:1.1/cross:0.0"])
def test_sites_without_units_have_no_blocks_and_the_others_have_scores(layout):
    """Without cross-attention nothing reads the encoder, whose blocks change nothing."""
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("embed_dim", 16), ("ffn_embed_dim", 16), ("attention_heads", 1))}  # fmt: skip
    model = build_with(Layout.parse(layout), **sizes)
    named = dict(model.named_parameters())
    matrices = matrices_of(named)
    assert [*matrices] == [name for name in matrices_of_all(named) if named[name].numel()]
    refuse_uneven(matrices, 16)
    for scorer in SCORERS:
        found = score_blocks(matrices, 16, scorer, [batch_of()], partial(loss_of, model))
        assert found.keys() == matrices.keys()
        read = [name for name, table in found.items() if bool(table.any())]
        unread = [
            name for name in matrices if scorer == "gradient" and "cross:0" in layout and "encoder.layers" in name
        ]
        assert read == [name for name in matrices if name not in unread]


def matrices_of_all(named: dict[str, Tensor]) -> list[str]:
    return [name for name in named if name.endswith(("_proj.weight", "fc1.weight", "fc2.weight"))]


def test_blocks_that_do_not_divide_are_refused():
    refuse_uneven({"fc1.weight": torch.zeros(32, 16)}, 16)
    with pytest.raises(
        Refusal, match="must divide the rows and columns of every matrix, but is 32, and fc1.weight is 32 x 16"
    ):
        refuse_uneven({"fc1.weight": torch.zeros(32, 16), "fc2.weight": torch.zeros(32, 32)}, 32)
    with pytest.raises(Refusal, match="has none"):
        refuse_uneven({}, 16)


def test_a_file_is_read_as_it_was_written(tmp_path: Path):
    file = file_of({"a": torch.rand(2, 3)})
    (tmp_path / "blocks.json").write_text(file.text())
    assert read_block_scores(str(tmp_path / "blocks.json"), "--scores") == file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, "must be of fairseq-dsp-score --units blocks"),
        ({"format": None}, "must be of fairseq-dsp-score --units blocks"),
        ({"block": 17}, "`block` must be 16 or 32, but is 17"),
        ({"scores": {}}, "`scores` must be tables"),
        ({"scores": {"a": [[1.0, 2.0], [1.0]]}}, "`scores` must be tables"),
        ({"scores": {"a": [[1.0, None]]}}, "`scores` must be tables"),
        ({"scores": {"a": [[float("nan")]]}}, "NaN is no number"),
        ({"seed": "x"}, "`seed` must be"),
    ],
)
def test_a_file_that_is_none_is_refused(change: dict, words: str, tmp_path: Path):
    content = json.loads(replace(file_of({"a": torch.rand(2, 3)})).text()) | change
    (tmp_path / "blocks.json").write_text(json.dumps(content))
    with pytest.raises(Refusal, match=words):
        read_block_scores(str(tmp_path / "blocks.json"), "--scores")
