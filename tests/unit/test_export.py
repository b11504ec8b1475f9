"""Exports compute what fairseq's model computes: for any layout, CTranslate2 and stock fairseq's own transformer."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from checked import file, served
from fairseq.models.transformer import TransformerModel
from hypothesis import given
from hypothesis import strategies as st
from models import WORDS, assert_same, build, build_gated, few_examples, layouts_of, model_options, scores

from fairseq_dsp.checkpoints.rewriting import Wish, rewrite
from fairseq_dsp.checkpoints.stock import build_stock
from fairseq_dsp.cli.export import main
from fairseq_dsp.config import PruningConfig
from fairseq_dsp.errors import Refusal
from fairseq_dsp.export import ctranslate2 as conversion
from fairseq_dsp.export.ctranslate2 import TOLERANCE, Conversion, convert, log_probabilities
from fairseq_dsp.export.dense import fold
from fairseq_dsp.export.packing import group_count
from fairseq_dsp.files.checkpoint import read_checkpoint, write_checkpoint
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.groups import has_neurons
from fairseq_dsp.units.layout import Grid, Layout

api = pytest.importorskip("ctranslate2")

# heads of different number and size on both sides, so that every way of packing comes up
SIZES = {
    "encoder_embed_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_embed_dim": 24,
    "decoder_attention_heads": 6,
    "decoder_output_dim": 24,
    "decoder_input_dim": 24,
}
GRID = Grid.of_heads((4, 4), (6, 6), (6, 6))
SOME = Layout.parse("enc:1011.0000/dec:000110.111010/cross:010000.000000")

MODELS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "one of each": {"decoder_normalize_before": True, "no_decoder_final_norm": True, "encoder_learned_pos": True},
    "shared embeddings": {"share_all_embeddings": True, "activation_fn": "gelu", "layernorm_embedding": True},
    "learned positions": {"encoder_learned_pos": True, "decoder_learned_pos": True, "no_scale_embedding": True},
    "no positions": {"no_token_positional_embeddings": True, "activation_fn": "gelu_accurate"},
    "sides that differ": {
        "encoder_embed_dim": 12,
        "encoder_attention_heads": 4,
        "activation_fn": "tanh",
        "decoder_input_dim": 10,
        "decoder_output_dim": 14,
    },
}
of_every_kind = pytest.mark.parametrize("kind", MODELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_dictionaries(tmp_path_factory.mktemp("export"))


def with_dictionaries(folder: Path) -> Path:
    """A place for files, with two dictionaries in `data` and a joined pair in `joined`."""
    for name, sizes in (("data", WORDS.values()), ("joined", (13, 13))):
        (folder / name).mkdir()
        for language, size in zip(("aa", "bb"), sizes, strict=True):
            (folder / name / f"dict.{language}.txt").write_text("".join(f"word{i} 1\n" for i in range(size - 4)))
    return folder


def saved(model: Any, path: Path, task: str = "translation", **options: Any) -> Path:
    """The model as a checkpoint file."""
    cfg = {"model": model_options(**options), "task": {"_name": task, "source_lang": "aa", "target_lang": "bb"}}
    write_checkpoint({"args": None, "cfg": cfg, "model": model.state_dict()}, file(path))
    return path


def checkpoint(folder: Path, kind: str = "post-norm", layout: Layout = SOME, **more: Any) -> Path:
    options = {**SIZES, **MODELS[kind], **more, "head_layout": str(layout)}
    if has_neurons(layout.grid):  # as training writes it
        options["ffn_group"] = 14 // max(layout.grid.of("ffn-enc"))
    return saved(build(**options).float(), folder / "small.pt", **options)


def dictionaries(folder: Path, kind: str = "post-norm") -> str:
    return str(folder / ("joined" if "share_all_embeddings" in MODELS[kind] else "data"))


def loaded(path: Path) -> Any:
    return load_model(read_checkpoint(str(path)))


def converted(folder: Path, kind: str = "post-norm", layout: Layout = SOME) -> tuple[Any, Any, Conversion]:
    """fairseq's model, CTranslate2's translator, and what the conversion reported."""
    small = checkpoint(folder, kind, layout)
    done = convert(str(small), served(folder / "ct2"), dictionaries(folder, kind))
    return loaded(small), api.Translator(str(folder / "ct2"), compute_type="float32", intra_threads=1), done


def numbers(tokens: list[str]) -> list[int]:
    special = {"<s>": 0, "<blank>": 1, "</s>": 2, "<unk>": 3}
    return [special[token] if token in special else int(token.removeprefix("word")) + 4 for token in tokens]


def refusal(*arguments: Any) -> str:
    with pytest.raises(Refusal) as caught:
        main([str(argument) for argument in arguments])
    return str(caught.value)


SOURCES = [["word2", "word0", "word6", "word1"], ["word4"]]


def assert_scored_alike(model: Any, translator: Any) -> None:
    targets = [["word5", "word3", "<unk>"], ["word1"]]
    for source, target, result in zip(SOURCES, targets, translator.score_batch(SOURCES, targets), strict=True):
        assert_same(
            log_probabilities(model, numbers(source), numbers(target)), torch.tensor(result.log_probs), TOLERANCE
        )


class TestCTranslate2:
    @of_every_kind
    @few_examples
    @given(data=st.data())
    def test_scores_as_fairseq_for_any_layout(self, folder, kind, data):
        model, translator, done = converted(folder, kind, data.draw(layouts_of(GRID)))
        assert done.difference <= TOLERANCE
        assert_scored_alike(model, translator)  # and not by the command's own check alone

    @few_examples
    @given(layouts_of(GRID))
    def test_searches_with_caches_and_beams(self, folder, layout):
        model, translator, _ = converted(folder, layout=layout)
        longest = 6
        # CTranslate2 renormalises where it forbids an end, as in a first word
        options = {"beam_size": 3, "num_hypotheses": 3, "min_decoding_length": 0, "max_decoding_length": longest}
        found = translator.translate_batch(SOURCES, return_scores=True, length_penalty=0, **options)
        for source, result in zip(SOURCES, found, strict=True):
            for tokens, total in zip(result.hypotheses, result.scores, strict=True):
                if "<blank>" in tokens:  # fairseq takes padding for padding, and its own search forbids it
                    continue
                steps = log_probabilities(model, numbers(source), numbers(tokens))
                reached = steps if len(tokens) < longest else steps[:-1]
                assert total == pytest.approx(reached.sum().item(), abs=1e-3)

    @pytest.mark.parametrize("cross", ["111000.000000", "000000.100101", "111111.011110", "001000.010100"])
    def test_aligns_as_fairseq(self, folder, cross):
        model, translator, _ = converted(folder, layout=Layout.parse(f"enc:1011.0000/dec:000110.111010/cross:{cross}"))
        options = {"beam_size": 1, "min_decoding_length": 4, "max_decoding_length": 4}
        result = translator.translate_batch(SOURCES[:1], return_attention=True, **options)[0]
        source, previous = [*numbers(SOURCES[0]), 2], [2, *numbers(result.hypotheses[0])[:-1]]
        output = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([previous]))
        theirs = torch.tensor(result.attention[0])  # without the source's end
        assert_same(output[1]["attn"][0][0, :, : theirs.size(1)], theirs, TOLERANCE)

    @pytest.mark.parametrize("quantization", ["int8", "float16"])
    def test_is_quantised_after_the_check(self, folder, quantization):
        small = checkpoint(folder)
        done = convert(str(small), served(folder / "ct2"), dictionaries(folder), quantization)
        assert done.difference <= TOLERANCE < done.quantized_difference < 1
        assert api.contains_model(str(folder / "ct2"))

    def test_takes_the_chosen_heads_of_a_gated_model(self, folder):
        layout, path = gated(folder)
        done = convert(str(path), served(folder / "ct2"), dictionaries(folder))
        assert done.layout == layout
        assert done.layout.count == 7

    def test_has_as_many_heads_as_the_fullest_sublayer_of_a_stack(self, folder):
        done = converted(folder, layout=Layout.parse("enc:0000.1100/dec:000000.000000/cross:000000.000000"))[2]
        assert done.heads == (2, 1)


def gated(folder: Path) -> tuple[Layout, Path]:
    """A checkpoint that is choosing 7 heads, and those that it would deploy."""
    model = build_gated(kept=7, **SIZES).float()
    parts = {"criterion": "label_smoothed_cross_entropy_dsp", "optimizer": "dsp_adam"}
    options = {"unpruned_heads": 7, "head_selection": "dsp", **SIZES, **parts}
    return model.deployed_layout(), saved(model, folder / "gated.pt", task="translation_dsp", **options)


@pytest.mark.parametrize(
    ("kept", "heads", "groups"),
    [(0, 1, 1), (0, 6, 1), (1, 6, 1), (2, 6, 2), (4, 6, 6), (3, 8, 4), (5, 8, 8), (3, 3, 3)],
)
def test_keys_and_values_have_the_fewest_heads_that_divide(kept, heads, groups):
    assert group_count(kept, heads) == groups


class TestDense:
    @of_every_kind
    @few_examples
    @given(data=st.data())
    def test_computes_the_same_in_stock_fairseq_for_any_layout(self, folder, kind, data):
        small = checkpoint(folder, kind, data.draw(layouts_of(GRID)))
        done = fold(str(small))
        native = build_stock(done.state["cfg"], done.state["model"])
        assert type(native) is TransformerModel
        assert_same(scores(native), scores(loaded(small)), TOLERANCE)

    @few_examples
    @given(layouts_of(GRID))
    def test_pruned_again_is_what_it_was(self, folder, layout):
        small = checkpoint(folder, layout=layout)
        write_checkpoint(fold(str(small)).state, file(folder / "dense.pt"))
        again, before = (
            rewrite(str(folder / "dense.pt"), Wish(layout=str(layout))).state["model"],
            loaded(small).state_dict(),
        )
        assert again.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in again.items())

    def test_takes_the_chosen_heads_of_a_gated_model(self, folder):
        layout, path = gated(folder)
        done = fold(str(path))
        assert done.layout == layout
        assert not [name for name in done.state["model"] if "head_gates" in name or "kept_mask" in name]

    def test_has_stock_names_and_none_of_our_options(self, folder):
        cfg = fold(str(gated(folder)[1])).state["cfg"]
        assert type(cfg["model"]) is dict
        assert cfg["model"]["_name"] == cfg["model"]["arch"] == "transformer"
        assert cfg["task"]["_name"] == "translation"
        assert "dsp" not in repr(cfg)
        assert not {option.name for option in fields(PruningConfig)} & cfg["model"].keys()

    def test_keeps_the_precision_of_the_weights(self, folder):
        options = {**SIZES, "head_layout": str(SOME)}
        half = saved(build(**options).half(), folder / "half.pt", **options)
        state = fold(str(half)).state["model"]
        assert {value.dtype for name, value in state.items() if name.endswith("weight")} == {torch.float16}


class TestRefusals:
    def test_what_ctranslate2_has_not_is_named_all_at_once(self, folder, tmp_path):
        options = {**SIZES, "activation_fn": "linear", "cross_self_attention": True, "head_layout": str(SOME)}
        path = saved(build(**options).float(), folder / "odd.pt", task="translation_lev", **options)
        said = refusal(path, tmp_path / "out", "--format", "ctranslate2", "--data", folder / "joined")
        for words in ("translation_lev", "`--activation-fn`", "linear", "`--cross-self-attention`", "11 words"):
            assert words in said
        assert len(said.splitlines()) == 4
        assert not list(tmp_path.iterdir())

    def test_data_is_needed_and_must_have_the_dictionaries(self, folder, tmp_path):
        arguments = [checkpoint(folder), tmp_path / "out", "--format", "ctranslate2"]
        assert "`--data` must be given" in refusal(*arguments)
        assert "nowhere" in refusal(*arguments, "--data", "nowhere")
        said = refusal(*arguments, "--data", folder / "data", "--source-lang", "xx", "--target-lang", "yy")
        assert "dict.xx.txt" in said
        assert "dict.yy.txt" in said

    def test_options_of_the_other_format(self, folder, tmp_path):
        arguments = [checkpoint(folder), tmp_path / "out.pt", "--format", "dense"]
        said = refusal(*arguments, "--data", folder / "data", "--quantization", "int8")
        assert "`--data`" in said
        assert "`--quantization`" in said
        assert not list(tmp_path.iterdir())

    def test_a_conversion_that_differs_is_not_written(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(conversion, "TOLERANCE", 0.0)
        said = refusal(checkpoint(folder), tmp_path / "out", "--format", "ctranslate2", "--data", folder / "data")
        assert "must agree" in said
        assert not list(tmp_path.iterdir())

    def test_ctranslate2_that_is_not_installed(self, folder, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "ctranslate2", None)
        said = refusal(checkpoint(folder), tmp_path / "out", "--format", "ctranslate2", "--data", folder / "data")
        assert "pip install 'fairseq_dsp[ctranslate2]'" in said


class TestOverwriting:
    def test_needs_force(self, folder, tmp_path, capsys):
        small = checkpoint(folder)
        for arguments in (["--format", "dense"], ["--format", "ctranslate2", "--data", str(folder / "data")]):
            target = tmp_path / arguments[1]
            main([str(small), str(target), *arguments])
            assert "`--force`" in refusal(small, target, *arguments)
            main([str(small), str(target), *arguments, "--force"])
            assert "checked" in capsys.readouterr().out
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ctranslate2", "dense"]

    def test_never_replaces_what_is_no_model(self, folder, tmp_path):
        small, arguments = checkpoint(folder), ["--format", "ctranslate2", "--data", folder / "data", "--force"]
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters/one.txt").write_text("dear")
        assert "`--force` replaces models" in refusal(small, tmp_path / "letters", *arguments)
        assert "`--force`" in refusal(small, tmp_path / "letters/one.txt", *arguments)
        assert (tmp_path / "letters/one.txt").read_text() == "dear"

    def test_never_replaces_a_model_with_files_of_the_user_s_beside_it(self, folder, tmp_path):
        target = tmp_path / "out"
        arguments = ["--format", "ctranslate2", "--data", str(folder / "data")]
        main([str(checkpoint(folder)), str(target), *arguments])
        (target / "codes").write_text("#version: 0.2")
        assert "`--force` replaces models" in refusal(checkpoint(folder), target, *arguments, "--force")
        assert (target / "codes").read_text() == "#version: 0.2"
