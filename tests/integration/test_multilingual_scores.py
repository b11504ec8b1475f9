"""Scores of a multilingual checkpoint: over the batches that training saw, pair by pair, merged, and what is cut by them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from commands import (
    HEADS,
    Result,
    Running,
    assert_refused,
    different,
    heads_in,
    load,
    prune,
    run,
    train,
    training,
    weights,
)
from languages import LANGUAGES, PAIRS, SENTENCES, TASK, TOKENS, generate_pair, train_languages

import fairseq_dsp
from fairseq_dsp.checkpoints.batches import draw_batches, loss_per_token
from fairseq_dsp.checkpoints.pair_batches import multilingual_task, pairs_dataset
from fairseq_dsp.plugin.building import ungated
from fairseq_dsp.units.layout import Layout

SCORE, MERGE = "fairseq_dsp.cli.score", "fairseq_dsp.cli.merge"
REPLACING = ["--encoder-langtok", "src", "--decoder-langtok", "--lang-tok-replacing-bos-eos"]


def score(data: Any, path: Any, output: Path, *extra: Any, scorer: str = "gradient", ok: bool = True) -> Result:
    arguments = [data, "--path", path, "--scorer", scorer, "--output", output, "--cpu", *extra]
    done = run(SCORE, *arguments, folder=output.parent)
    assert not ok or done.code == 0, done.err[-3000:]
    return done


def merge(output: Path, *inputs: Path, by: str) -> Result:
    return run(MERGE, output, *inputs, "--by", by, folder=output.parent)


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def words_of(batch: dict[str, Any]) -> Any:
    """A batch, to be compared with others."""
    inputs = batch["net_input"]
    return tuple(
        tuple(map(tuple, each.tolist()))
        for each in (inputs["src_tokens"], inputs["prev_output_tokens"], batch["target"])
    )


def train_and_note_batches() -> None:
    """fairseq-train, which saves what every update was given."""
    import fairseq_cli.train

    from fairseq_dsp.plugin.multilingual import TranslationMultiSimpleEpochDspTask as Task

    seen: list[Any] = []
    step = Task.train_step

    def noting(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(words_of(sample))
        return step(self, sample, *args, **kwargs)

    with mock.patch.object(Task, "train_step", noting):
        fairseq_cli.train.cli_main()
    torch.save(seen, os.environ["SEEN"])


@pytest.mark.parametrize(
    "sampling", [[], ["--sampling-method", "temperature", "--sampling-temperature", 5]], ids=["all", "sampled"]
)
@pytest.mark.parametrize("tokens", [TOKENS, REPLACING], ids=["before", "replacing"])
def test_scores_are_over_the_very_batches_that_training_saw(tokens, sampling, several, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.pt"))
    extra = [*LANGUAGES, *tokens, *sampling, "--unpruned-heads", 5, "--cooldown-updates", 4, "--max-epoch", 1]
    extra += ["--max-tokens", 300, "--batch-size", 1000, "--seed", 7, "--disable-validation"]
    done = Running(train_and_note_batches, training(several, tmp_path / "save", *extra, task=TASK), tmp_path).wait()
    assert done.code == 0, done.err[-2000:]
    seen = torch.load(tmp_path / "seen.pt", weights_only=False)
    model, options, _ = ungated(str(tmp_path / "save/checkpoint_last.pt"))
    batches = draw_batches(model, options, str(several), "train", None, 300, 7)
    assert sorted(map(words_of, batches)) == sorted(seen)
    assert len(seen) > 5
    if not sampling:
        rows = {row for batch in seen for row in zip(*map(real_words, batch), strict=True)}
        drawn = [draw_batches(model, options, str(several), "train", None, 300, 7, [pair]) for pair in PAIRS]
        parts = [
            {row for batch in map(words_of, found) for row in zip(*map(real_words, batch), strict=True)}
            for found in drawn
        ]
        assert parts[0] | parts[1] == rows
        assert not parts[0] & parts[1]


def real_words(side: Any) -> list[Any]:
    """Sentences of a side of a batch without padding."""
    return [tuple(word for word in sentence if word != 1) for sentence in side]


def test_words_that_more_data_brought_into_the_dictionary_are_there_where_it_is_not_read(several, multilingual):
    options = torch.load(multilingual, weights_only=False)["cfg"]["task"]
    sizes = [len(multilingual_task(options, str(several), PAIRS, None, "the folder").source_dictionary)]
    options.extra_data = {"mono_dae": "elsewhere"}
    task = multilingual_task(options, str(several), PAIRS, None, "the folder")
    assert len(task.source_dictionary) == sizes[0] + 1
    assert len(pairs_dataset(task, options, "valid", "the folder")) == sum(SENTENCES["valid"].values())
    with pytest.raises(fairseq_dsp.Refusal, match="was trained with `--extra-data` too: take `valid`"):
        pairs_dataset(task, options, "train", "the folder")


def test_the_loss_of_a_pair_is_that_which_its_validation_logs(several, tmp_path):
    extra = [*LANGUAGES, *TOKENS, "--unpruned-heads", HEADS, "--cooldown-updates", 1, "--cross-floor", 0]
    extra += ["--max-update", 4, "--no-epoch-checkpoints", "--required-batch-size-multiple", 8, "--batch-size-valid", 7]
    done = train(several, tmp_path / "save", *extra, task=TASK)
    model, options, _ = ungated(str(tmp_path / "save/checkpoint_last.pt"))
    for pair in PAIRS:
        batches = draw_batches(model, options, str(several), "valid", None, 500, 1, [pair])
        assert sum(len(batch["target"]) for batch in batches) == SENTENCES["valid"][pair]
        nats = loss_per_token(model, batches)
        assert done.logged(f"nll_loss_{pair}", "valid")[-1] * 0.6931 == pytest.approx(nats, abs=2e-3)


class TestPairs:
    @pytest.fixture(scope="class")
    def folder(self, several, multilingual, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("scores")
        score(several, multilingual, folder / "scores", "--lang-pairs", ",".join(PAIRS), "--subset", "valid")
        score(several, multilingual, folder / "all.json", "--subset", "valid", "--batches", "all")
        return folder

    def test_each_pair_has_a_file_of_its_own_and_all_together_have_one(self, several, multilingual, folder, tmp_path):
        assert sorted(path.name for path in (folder / "scores").iterdir()) == [f"scores.{pair}.json" for pair in PAIRS]
        files = {pair: content(folder / f"scores/scores.{pair}.json") for pair in PAIRS}
        for pair, file in files.items():
            assert file["pairs"] == [pair]
            assert file["sentences"] == SENTENCES["valid"][pair]
            source, target = pair.split("-")
            score(
                several,
                multilingual,
                tmp_path / pair,
                "--subset",
                "valid",
                "--source-lang",
                source,
                "--target-lang",
                target,
            )
            assert content(tmp_path / pair) == file
        whole = content(folder / "all.json")
        assert whole["pairs"] == list(PAIRS)
        assert whole["sentences"] == sum(SENTENCES["valid"].values())
        assert len({tuple(file["scores"]) for file in (*files.values(), whole)}) == 3

    def test_the_gradient_of_a_pair_is_that_of_its_own_sentences_with_their_tokens(self, several, multilingual, folder):
        model, options, _ = ungated(str(multilingual))
        from fairseq_dsp.api.score_work import subject_of
        from fairseq_dsp.scoring import SCORERS

        batches = draw_batches(model, options, str(several), "valid", None, 4096, 1, [PAIRS[1]])
        found = SCORERS["gradient"]().score(subject_of(model, batches, 1), torch.ones(HEADS))
        assert content(folder / f"scores/scores.{PAIRS[1]}.json")["scores"] == pytest.approx(found.tolist(), rel=1e-5)

    @pytest.mark.parametrize("by", ["sum", "max", "worst"])
    def test_merged_scores_cut_the_model_and_those_of_a_pair_make_its_specialist(
        self, by, several, multilingual, folder, tmp_path
    ):
        inputs = [folder / f"scores/scores.{pair}.json" for pair in PAIRS]
        assert merge(tmp_path / "merged.json", *inputs, by=by).code == 0
        merged = content(tmp_path / "merged.json")
        assert merged["pairs"] == list(PAIRS)
        assert merged["scorer"] == f"{by} of gradient"
        for name, scores in (("merged", tmp_path / "merged.json"), ("special", inputs[1])):
            prune(multilingual, tmp_path / f"{name}.pt", "--scores", scores, "--unpruned-heads", 5)
            assert heads_in(tmp_path / f"{name}.pt") == 5
            done = generate_pair(several, tmp_path / f"{name}.pt", PAIRS[1], folder=tmp_path)
            assert len(done.hypotheses()) == SENTENCES["test"][PAIRS[1]]
        best = sorted(range(HEADS), key=lambda head: -content(inputs[1])["scores"][head])[:5]
        prune(multilingual, tmp_path / "own.pt", "--scores", inputs[1], "--unpruned-heads", 5, "--cross-floor", 0)
        kept = Layout.parse(load(tmp_path / "own.pt")["cfg"]["model"].head_layout).kept
        assert [head for head, mark in enumerate(kept) if mark] == sorted(best)

    def test_the_specialist_of_a_pair_is_smaller_goes_on_learning_it_and_translates(
        self, several, multilingual, folder, tmp_path
    ):
        small, pair = tmp_path / "small.pt", PAIRS[1]
        prune(multilingual, small, "--scores", folder / f"scores/scores.{pair}.json", "--unpruned-heads", 5)
        sizes = [sum(value.numel() for value in load(path)["model"].values()) for path in (small, multilingual)]
        assert sizes[0] < sizes[1]
        extra = ["--head-layout", small, "--finetune-from-model", small, "--lang-pairs", pair, "--max-update", 3]
        extra += ["--no-epoch-checkpoints", "--best-checkpoint-metric", "nll_loss_mean"]
        done = train_languages(several, tmp_path / "save", *extra)
        assert done.logged(f"nll_loss_{pair}", "valid") == done.logged("nll_loss_worst", "valid")
        assert not done.logged(f"nll_loss_{PAIRS[0]}", "valid")
        tuned = tmp_path / "save/checkpoint_best.pt"
        before, after = (load(path) for path in (small, tuned))
        assert after["cfg"]["model"].head_layout == before["cfg"]["model"].head_layout
        hypotheses = generate_pair(several, tuned, pair, folder=tmp_path).hypotheses()
        assert len(hypotheses) == SENTENCES["test"][pair]
        source, target = pair.split("-")
        found = fairseq_dsp.load(tuned, several, source_lang=source, target_lang=target)
        lines = (several.parent / f"test.{pair}.{source}").read_text().splitlines()
        assert dict(enumerate(found.translate(lines, beam=3, max_len_b=15))) == hypotheses
        assert_refused(
            score(several, tuned, tmp_path / "out", "--lang-pairs", PAIRS[0], ok=False), f"{PAIRS[0]} is not"
        )

    def test_what_is_cut_is_rescaled_on_the_sentences_of_the_pair_that_is_asked_for(
        self, several, multilingual, folder, tmp_path
    ):
        choice = ["--scores", folder / f"scores/scores.{PAIRS[1]}.json", "--unpruned-heads", 5, "--rescale", several]
        files = {}
        for name, extra in {"all": [], **{each: ["--source-lang", "qar", "--target-lang", each] for each in ("qte", "qos")}}.items():  # fmt: skip
            prune(multilingual, tmp_path / f"{name}.pt", *choice, *extra)
            files[name] = weights(tmp_path / f"{name}.pt")
        assert all(
            different(files[one], files[other]) for one, other in (("all", "qte"), ("all", "qos"), ("qte", "qos"))
        )
        done = prune(
            multilingual, tmp_path / "no.pt", *choice, "--source-lang", "qte", "--target-lang", "qar", ok=False
        )
        assert_refused(done, "qte-qar is not")

    def test_scores_of_different_models_or_scorers_are_not_merged(
        self, several, dense, data, multilingual, multilingual_trained, folder, tmp_path
    ):
        one = folder / f"scores/scores.{PAIRS[0]}.json"
        score(several, multilingual_trained, tmp_path / "other.json", "--subset", "valid")
        score(several, multilingual, tmp_path / "fisher.json", "--subset", "valid", scorer="fisher")
        assert_refused(merge(tmp_path / "out", one, tmp_path / "other.json", by="sum"), "score file 2", "same weights")
        assert_refused(merge(tmp_path / "out", one, tmp_path / "fisher.json", by="sum"), "score file 2", "by fisher")
        assert_refused(merge(tmp_path / "out", one, by="sum"), "two score files")
        assert_refused(merge(tmp_path / "out", one, one, by="mean"), "`--by` must be one of sum, max, worst")
        assert_refused(merge(tmp_path / "out", one, tmp_path / "none", by="max"), "cannot be read")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("extra", "words"),
        [
            (["--lang-pairs", "qar-qte,qte-qar"], ("`--lang-pairs`", "qte-qar is not")),
            (["--lang-pairs", "qar"], ("`--lang-pairs`", "but is qar")),
            (
                ["--lang-pairs", "qar-qte", "--source-lang", "qar"],
                ("`--lang-pairs` must not come with `--source-lang`",),
            ),
            (["--source-lang", "qar"], ("`--source-lang` and `--target-lang`", "not given")),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_pairs_that_are_not_the_model_s(self, extra, words, several, multilingual, tmp_path):
        assert_refused(score(several, multilingual, tmp_path / "out", *extra, ok=False), *words)
        assert not (tmp_path / "out").exists()

    def test_folders_that_are_not_the_model_s(self, several, multilingual, dense, data, tmp_path):
        both = ["--lang-pairs", ",".join(PAIRS)]
        folder = Path(shutil.copytree(several, tmp_path / "bin"))
        for path in folder.glob("train.qar-qos.*"):
            path.unlink()
        assert_refused(score(folder, multilingual, tmp_path / "out", *both, ok=False), "has none of qar-qos")
        for path in folder.glob("dict.*"):
            path.write_text(path.read_text() + "__qte__ 1\nmore 1\n")
        words = "entries with the tokens of qte,qar,qos for"
        assert_refused(score(folder, multilingual, tmp_path / "out", ok=False), words)
        assert_refused(score(data, multilingual, tmp_path / "out", ok=False), "no dict.qar.txt", reasons=3)
        several_folders = f"{several}{os.pathsep}{several}"
        assert_refused(score(several_folders, multilingual, tmp_path / "out", ok=False), "DATA-BIN must be one folder")
        done = score(data, dense, tmp_path / "out", "--lang-pairs", "aa-bb", ok=False)
        assert_refused(done, "`--lang-pairs` must be for a model of several language pairs")
        assert not (tmp_path / "out").exists()
