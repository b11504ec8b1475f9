"""Exports of models whose feed-forward networks have lost neurons: the same function for any layout of heads and neurons."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checked import file, served
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, few_examples, layouts_of, scores
from test_export import assert_scored_alike, checkpoint, converted, loaded, numbers, with_dictionaries

from fairseq_dsp.checkpoints.stock import build_stock
from fairseq_dsp.export.ctranslate2 import TOLERANCE, convert, log_probabilities
from fairseq_dsp.export.dense import fold
from fairseq_dsp.export.packing import pad_neurons
from fairseq_dsp.files.checkpoint import write_checkpoint
from fairseq_dsp.units.layout import Grid, Layout

api = pytest.importorskip("ctranslate2")

# 14 neurons a layer in groups of 2
GRID = Grid.of_stacks(enc=(4, 4), dec=(6, 6), cross=(6, 6), ffn_enc=(7, 7), ffn_dec=(7, 7))
HEADS = "enc:1011.0000/dec:000110.111010/cross:010000.000000"
SOME = Layout.parse(f"{HEADS}/ffn-enc:1010101.0000000/ffn-dec:1111111.0000010")
SUBLAYERS = Layout.parse(
    "enc:0000.1111/dec:111111.000000/cross:000000.111111/ffn-enc:1111111.0000000/ffn-dec:0000000.1111111"
)
NOTHING = Layout(GRID, (False,) * GRID.total)
KINDS = ["post-norm", "pre-norm", "shared embeddings", "no positions"]  # relu and gelu
of_every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_dictionaries(tmp_path_factory.mktemp("export"))


class TestCTranslate2:
    @of_every_kind
    @few_examples
    @given(data=st.data())
    def test_scores_as_fairseq_for_any_layout(self, folder, kind, data):
        model, translator, done = converted(folder, kind, data.draw(layouts_of(GRID)))
        assert done.difference <= TOLERANCE
        assert_scored_alike(model, translator)

    @pytest.mark.parametrize(
        "layout", [SOME, SUBLAYERS, NOTHING, Layout.full(GRID)], ids=["some", "sublayers", "none", "all"]
    )
    def test_searches_batches_whose_sentences_end_at_different_steps(self, folder, layout):
        model, translator, _ = converted(folder, layout=layout)
        sources = [["word0"] * length for length in (1, 6, 3, 5)] + [["word2", "word5", "word1"]]
        begun = [["word2"] * length for length in (0, 3, 1, 0, 4)]
        options = {"max_decoding_length": 10, "min_decoding_length": 0, "length_penalty": 0, "return_scores": True}
        # a random model goes on saying the same word: ended by it, sentences end where they are begun with fewer others
        said = translator.translate_batch(sources, beam_size=1, **options)[0].hypotheses[0][-1:]
        for beam in (1, 3):
            stop = {"end_token": said or "word3", "beam_size": beam, "return_end_token": True, **options}
            found = translator.translate_batch(sources, target_prefix=begun, **stop)
            assert len({len(each.hypotheses[0]) for each in found}) > 2
            for source, prefix, result in zip(sources, begun, found, strict=True):
                alone = translator.translate_batch([source], target_prefix=[prefix], **stop)[0]
                assert result.hypotheses == alone.hypotheses
                assert result.scores == pytest.approx(alone.scores, abs=1e-4)
        targets = [["word1"] * length for length in (1, 6, 2, 4, 3)]
        for source, target, result in zip(sources, targets, translator.score_batch(sources, targets), strict=True):
            assert_same(
                log_probabilities(model, numbers(source), numbers(target)), torch.tensor(result.log_probs), TOLERANCE
            )

    @pytest.mark.parametrize("layout", [SOME, NOTHING], ids=["some", "none"])
    @pytest.mark.parametrize("quantization", ["int8", "float16"])
    def test_loads_quantised(self, folder, layout, quantization):
        small = checkpoint(folder, layout=layout)
        done = convert(str(small), served(folder / "ct2"), str(folder / "data"), quantization)
        assert done.difference <= TOLERANCE
        assert done.quantized_difference < 1

    @pytest.mark.parametrize("layout", [SOME, NOTHING], ids=["some", "none"])
    def test_widths_are_multiples_of_16(self, folder, layout):
        model = loaded(checkpoint(folder, layout=layout))
        for side in (model.encoder, model.decoder):
            for layer in side.layers:
                (rows, bias), (columns, output) = pad_neurons(layer)
                there = layer.fc1.out_features
                assert len(rows) == len(bias) == columns.size(1) == 16
                assert not rows[there:].any()
                assert not bias[there:].any()
                assert not columns[:, there:].any()
                assert output is layer.fc2.bias


class TestDense:
    @of_every_kind
    @few_examples
    @given(data=st.data())
    def test_computes_the_same_in_stock_fairseq_for_any_layout(self, folder, kind, data):
        layout = data.draw(layouts_of(GRID))
        small = checkpoint(folder, kind, layout)
        done = fold(str(small))
        stock = build_stock(done.state["cfg"], done.state["model"])
        assert_same(scores(stock), scores(loaded(small)), TOLERANCE)
        for stack, side in (("ffn-enc", "encoder"), ("ffn-dec", "decoder")):
            width = 2 * max(1, *layout.surviving.of(stack))
            assert done.state["cfg"]["model"][f"{side}_ffn_embed_dim"] == width
            assert {layer.fc1.out_features for layer in getattr(stock, side).layers} == {width}

    def test_is_no_wider_when_folded_again(self, folder):
        done = fold(str(checkpoint(folder, layout=SOME)))
        write_checkpoint(done.state, file(folder / "dense.pt"))
        again = fold(str(folder / "dense.pt")).state["model"]
        assert all(torch.equal(value, again[name]) for name, value in done.state["model"].items())
