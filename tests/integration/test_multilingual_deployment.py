"""A multilingual checkpoint in every other command: averaged, measured, exported, served, each with its tokens of languages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import AVERAGE, QUIET, ROOT, assert_refused, budget, load, prune, run
from languages import LANGS, PAIRS, SENTENCES, STOCK_TASK, generate_pair, train_languages

import fairseq_dsp
from fairseq_dsp.checkpoints.batches import draw_batches
from fairseq_dsp.checkpoints.pair_batches import multilingual_task, pairs_dataset
from fairseq_dsp.checkpoints.stock import read_sentences
from fairseq_dsp.export.ctranslate2 import EOS
from fairseq_dsp.options.languages import languages_of
from fairseq_dsp.plugin.building import ungated

EXPORT, BENCH = "fairseq_dsp.cli.export", "fairseq_dsp.cli.bench"
PAD = 1
SERVE = ROOT / "examples/translation/serve_ctranslate2.py"
QUICK = "--workloads generate --batch-size 4 --beam 2 --pairs 1 --warmup 0 --cpu --no-memory".split()


@pytest.fixture(scope="module")
def learned(several: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of ours that has learned something, rewritten: 5 heads."""
    folder = tmp_path_factory.mktemp("learned")
    train_languages(several, folder / "save", *QUIET, *budget(5), "--max-epoch", 50, "--lr", "3e-2", "--dropout", 0)
    prune(folder / "save/checkpoint_last.pt", folder / "small.pt")
    return folder / "small.pt"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"encoder_langtok": "src", "lang_tok_style": "mbart"},
        {"decoder_langtok": False},
        {"langtoks_specs": ["main", "dae"], "langtoks": {"main": ("src.dae", "tgt.dae")}},
        {"langtoks_specs": ["mined", "main"], "langtoks": {"main": ("tgt.mined", "tgt")}},
    ],
    ids=str,
)
def test_words_that_a_server_sends_are_those_that_sentences_of_training_begin_with(given, several, multilingual):
    options = torch.load(multilingual, weights_only=False)["cfg"]["task"]
    vars(options).update({"langtoks": None, **given})
    languages = languages_of(options)
    for pair in PAIRS:
        task = multilingual_task(options, str(several), [pair], None, "the folder")
        item = pairs_dataset(task, options, "valid", "the folder")[0]
        around = languages.around(*pair.split("-"))
        for side, words in around.items():
            dictionary = getattr(task, f"{side}_dictionary")
            assert [dictionary[word] for word in item[side][: len(words)]] == words
            assert not any(dictionary[word].startswith(("__", "[")) for word in item[side][len(words) :])


@pytest.mark.parametrize("replacing", [False, True])
def test_sentences_that_an_export_translates_are_those_that_a_batch_holds(replacing, several, multilingual):
    model, options, _ = ungated(str(multilingual))
    vars(options)["lang_tok_replacing_bos_eos"] = replacing
    for pairs in (PAIRS, PAIRS[1:]):
        batches = draw_batches(model, options, str(several), "valid", None, 500, 1, pairs)
        names = ("src_tokens", "prev_output_tokens")
        seen = [[words for batch in batches for words in batch["net_input"][name].tolist()] for name in names]
        wanted = zip(*([[word for word in words if word not in (PAD, EOS)] for words in side] for side in seen), strict=True)  # fmt: skip
        languages = pairs[0].split("-") if len(pairs) == 1 else (None, None)
        found = read_sentences(SimpleNamespace(task=options), str(several), *languages, "valid")
        assert sorted(found) == sorted(wanted)


def test_averaging_asks_for_the_same_languages(several, multilingual_trained, multilingual, dense, tmp_path):
    done = run(AVERAGE, tmp_path / "mean.pt", multilingual_trained, multilingual_trained, folder=tmp_path)
    assert done.code == 0, done.err
    assert load(tmp_path / "mean.pt")["cfg"]["task"].langs == list(LANGS)
    for name, change in (
        ("order", {"langs": list(reversed(LANGS))}),
        ("tokens", {"decoder_langtok": False, "langtoks": None}),
        ("kinds", {"langtoks_specs": ["main", "dae"]}),
        ("kind", {"langtoks": {"main": ("tgt.dae", "tgt")}}),
    ):
        state = torch.load(multilingual_trained, weights_only=False)
        vars(state["cfg"]["task"]).update(change)
        torch.save(state, tmp_path / f"{name}.pt")
    done = run(AVERAGE, tmp_path / "out", multilingual_trained, tmp_path / "order.pt", folder=tmp_path)
    assert_refused(done, "`--langs`", "in another order")
    done = run(AVERAGE, tmp_path / "out", multilingual_trained, tmp_path / "tokens.pt", folder=tmp_path)
    assert_refused(done, "`--decoder-langtok` must be True")
    done = run(AVERAGE, tmp_path / "out", multilingual_trained, tmp_path / "kinds.pt", folder=tmp_path)
    assert_refused(done, "`--langtoks-specs` must be main", "but is main,dae.")
    done = run(AVERAGE, tmp_path / "out", multilingual_trained, tmp_path / "kind.pt", folder=tmp_path)
    assert_refused(done, "`--langtoks` must be {'main': ('tgt', 'tgt')}", "but is {'main': ('tgt.dae', 'tgt')}.")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pair", PAIRS)
def test_a_loaded_model_translates_a_pair_as_fairseq_generate_does(pair, several, learned, tmp_path):
    source, target = pair.split("-")
    lines = (several.parent / f"test.{pair}.{source}").read_text().splitlines()
    found = fairseq_dsp.load(learned, several, source_lang=source, target_lang=target).translate(
        lines, beam=3, max_len_b=15
    )
    done = generate_pair(several, learned, pair, folder=tmp_path)
    assert dict(enumerate(found)) == done.hypotheses()
    assert len({*found}) > 1
    with pytest.raises(
        fairseq_dsp.Refusal, match="`load` must be told source_lang and target_lang of one of the model's pairs"
    ):
        fairseq_dsp.load(learned, several)


def measured(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_benchmark_reads_sentences_with_their_tokens(several, multilingual, learned, dense, data, tmp_path):
    for name, extra in (("all", []), ("one", ["--source-lang", "qar", "--target-lang", "qte"])):
        arguments = ["--path", multilingual, learned, *QUICK, "--data", several, *extra, "--json", tmp_path / name]
        done = run(BENCH, *arguments, folder=tmp_path)
        assert done.code == 0, done.err
        assert len(measured(tmp_path / name)) == 2
    done = run(BENCH, "--path", multilingual, dense, *QUICK, "--data", several, folder=tmp_path)
    assert_refused(done, "of one task")
    done = run(BENCH, "--path", multilingual, *QUICK, "--data", data, folder=tmp_path)
    assert_refused(done, "no dict.", reasons=3)


def test_the_dense_export_generates_each_pair_in_stock_fairseq(several, learned, tmp_path):
    done = run(EXPORT, "--format", "dense", learned, tmp_path / "dense.pt", folder=tmp_path)
    assert done.code == 0, done.err
    cfg = load(tmp_path / "dense.pt")["cfg"]
    assert (cfg["task"]["_name"], cfg["task"]["task"]) == (STOCK_TASK, STOCK_TASK)
    assert "unpruned_heads" not in cfg["task"]
    for pair in PAIRS:
        one, other = (generate_pair(several, path, pair, folder=tmp_path) for path in (learned, tmp_path / "dense.pt"))
        assert other.hypotheses() == one.hypotheses()
        assert len(other.hypotheses()) == SENTENCES["test"][pair]


def serve(model: Path, text: str, *extra: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SERVE), str(model), "--beam", "3", *map(str, extra)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


class TestServing:
    @pytest.fixture(scope="class")
    def served(self, several, learned, tmp_path_factory) -> Path:
        pytest.importorskip("ctranslate2")
        folder = tmp_path_factory.mktemp("served")
        arguments = ["--format", "ctranslate2", learned, folder / "model", "--data", several, "--quantization", "int8"]
        done = run(EXPORT, *arguments, folder=folder)
        assert done.code == 0, done.err
        done = run(EXPORT, *arguments[:5], several, "--force", folder=folder)
        assert done.code == 0, done.err
        return folder / "model"

    @pytest.mark.parametrize("pair", PAIRS)
    def test_translates_each_pair_as_fairseq_does(self, pair, served, several, learned, tmp_path):
        source, target = pair.split("-")
        lines = (several.parent / f"test.{pair}.{source}").read_text()
        done = serve(
            served, lines, "--source-lang", source, "--target-lang", target, "--max-length", 59
        )  # fairseq counts the token
        assert done.returncode == 0, done.stderr
        theirs = generate_pair(
            several, learned, pair, "--max-len-a", 0, "--max-len-b", 60, folder=tmp_path
        ).hypotheses()
        ours = done.stdout.splitlines()
        assert len(ours) == len(theirs)
        same = sum(ours[number] == text for number, text in theirs.items())
        assert same >= 0.8 * len(ours)  # beams that end at the limit are ranked otherwise there
        assert not any("__" in line for line in ours)
        assert len(set(ours)) > 1

    @pytest.mark.parametrize(
        "extra", [[], ["--source-lang", "qar"], ["--source-lang", "qte", "--target-lang", "qar"]], ids=str
    )
    def test_asks_for_a_pair_of_the_model(self, extra, served):
        done = serve(served, "", *extra)
        assert done.returncode == 2
        assert "must be a language pair of the model (qar-qos, qar-qte)" in done.stderr


class TestEndsThatAreLanguages:
    """`--lang-tok-replacing-bos-eos`."""

    @pytest.fixture(scope="class")
    def tokens(self) -> list[str]:
        return ["--encoder-langtok", "src", "--decoder-langtok", "--lang-tok-replacing-bos-eos"]

    @pytest.fixture(scope="class")
    def ending(self, tokens, several, tmp_path_factory) -> Path:
        save = tmp_path_factory.mktemp("ending")
        extra = [*QUIET, *budget(5), "--max-epoch", 50, "--lr", "3e-2", "--dropout", 0]
        train_languages(several, save, *extra, tokens=tokens)
        return save / "checkpoint_last.pt"

    @pytest.fixture(scope="class")
    def exported(self, several, ending, tmp_path_factory) -> Path:
        pytest.importorskip("ctranslate2")
        folder = tmp_path_factory.mktemp("exported")
        done = run(EXPORT, "--format", "ctranslate2", ending, folder / "model", "--data", several, folder=folder)
        assert done.code == 0, done.err
        extra = ["--data", several, "--quantization", "int8"]  # which translates sentences of the folder
        done = run(EXPORT, "--format", "ctranslate2", ending, folder / "int8", *extra, folder=folder)
        assert done.code == 0, done.err
        assert re.search(r"BLEU [\d.]+, and [\d.]+ in float32", done.out)
        return folder / "model"

    @pytest.mark.parametrize("pair", PAIRS)
    def test_python_and_a_server_translate_each_pair_as_fairseq_does(
        self, pair, tokens, several, ending, exported, tmp_path
    ):
        source, target = pair.split("-")
        lines = (several.parent / f"test.{pair}.{source}").read_text()
        theirs = generate_pair(
            several, ending, pair, "--max-len-a", 0, "--max-len-b", 60, tokens=tokens, folder=tmp_path
        ).hypotheses()
        found = fairseq_dsp.load(ending, several, source_lang=source, target_lang=target)
        assert dict(enumerate(found.translate(lines.splitlines(), beam=3, max_len_b=60))) == theirs
        done = serve(exported, lines, "--source-lang", source, "--target-lang", target, "--max-length", 60)
        assert done.returncode == 0, done.stderr
        ours = done.stdout.splitlines()
        assert len(ours) == len(theirs)
        assert sum(ours[number] == text for number, text in theirs.items()) >= 0.8 * len(ours)
        assert not any("__" in line for line in ours)
        assert len(set(ours)) > 1

    @pytest.mark.parametrize("kept", [["--encoder-langtok", "tgt"], ["--decoder-langtok"]], ids=" ".join)
    def test_one_side_alone_has_such_ends(self, kept, several, tmp_path):
        pytest.importorskip("ctranslate2")
        tokens = [*kept, "--lang-tok-replacing-bos-eos"]
        train_languages(several, tmp_path / "save", *QUIET, *budget(5, cooldown=1), "--max-update", 2, tokens=tokens)
        path = tmp_path / "save/checkpoint_last.pt"  # the export compares it with fairseq's model
        done = run(EXPORT, "--format", "ctranslate2", path, tmp_path / "out", "--data", several, folder=tmp_path)
        assert done.code == 0, done.err
        around = json.loads((tmp_path / "out/config.json").read_text())["fairseq_dsp"]["language_pairs"][PAIRS[0]]
        assert bool(around["source_end"]) == (kept[0] == "--encoder-langtok")
        assert bool(around["target_start"]) == (kept[0] == "--decoder-langtok")
        assert around["source"] == around["target"] == []

    def test_only_synthetic_sentences_are_measured(self, several, ending, tmp_path):
        done = run(BENCH, "--path", ending, *QUICK, "--data", several, folder=tmp_path)
        assert_refused(done, "`--data`", "`--lang-tok-replacing-bos-eos`")
        assert run(BENCH, "--path", ending, *QUICK, "--json", tmp_path / "synthetic", folder=tmp_path).code == 0
