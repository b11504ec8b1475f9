"""`fairseq-dsp-train-scorer`, and `fairseq-dsp-score --scorer one-shot` with what it leaves, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Result, assert_refused, heads_in, prune, run

import fairseq_dsp
from fairseq_dsp.units.scorer_model import read_scorer_model

TRAIN_SCORER, SCORE = "fairseq_dsp.cli.train_scorer", "fairseq_dsp.cli.score"
SHORT = ["--cpu", "--steps", 6, "--batches", 3, "--max-tokens", 200]


def train(data: Any, paths: list[Path], output: Path, *extra: Any, ok: bool = True) -> Result:
    done = run(TRAIN_SCORER, *data, "--path", *paths, "--output", output, *SHORT, *extra, folder=output.parent)
    assert not ok or done.code == 0, done.err[-3000:]
    return done


def test_a_scorer_is_trained_on_some_models_and_cuts_another(data, dense, trained, pruned, tmp_path):
    done = train([data], [dense, pruned], tmp_path / "scorer.json")
    assert "trained a scorer on 2 models in 6 steps" in done.out
    file = read_scorer_model(str(tmp_path / "scorer.json"))
    assert (file.models, file.steps, file.seed) == ((dense.name, pruned.name), 6, 1)
    options = ["--scorer", "one-shot", "--scorer-model", tmp_path / "scorer.json", "--cpu", "--subset", "valid"]
    scored = run(SCORE, data, "--path", trained, "--output", tmp_path / "scores.json", *options, folder=tmp_path)
    assert scored.code == 0, scored.err
    assert json.loads((tmp_path / "scores.json").read_text())["options"] == {"scorer_model": "scorer.json"}
    prune(trained, tmp_path / "small.pt", "--scores", tmp_path / "scores.json", "--unpruned-heads", 4)
    assert heads_in(tmp_path / "small.pt") == 4


def test_it_is_trained_on_the_heads_of_a_model_that_lost_neurons(data, dense, tmp_path):
    heads = "enc:11.11/dec:11.11/cross:11.11"
    for name, layout in (("whole", heads), ("cut", f"{heads}/ffn-enc:1010.0000/ffn-dec:0110.1111")):
        prune(dense, tmp_path / f"{name}.pt", "--layout", layout)
        train([data], [tmp_path / f"{name}.pt"], tmp_path / f"{name}.json")
    whole, cut = (read_scorer_model(str(tmp_path / f"{name}.json")) for name in ("whole", "cut"))
    assert len(cut.means) == len(whole.means)
    assert cut.hidden != whole.hidden  # other networks say other words


def test_it_is_a_function_of_its_options(data, dense, tmp_path):
    for name, folders, seed in (("one", [data], 3), ("two", [data], 3), ("three", [data], 4)):
        train(folders, [dense], tmp_path / name, "--seed", seed)
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text()
    assert read_scorer_model(str(tmp_path / "one")).hidden != read_scorer_model(str(tmp_path / "three")).hidden


def test_python_trains_the_same_and_as_many_folders_as_models_are_read_in_their_order(data, dense, pruned, tmp_path):
    train([data], [dense, pruned], tmp_path / "one")
    options = {"steps": 6, "batches": 3, "max_tokens": 200, "cpu": True}
    found = fairseq_dsp.train_scorer([dense, pruned], [data, data], tmp_path / "two", **options)
    assert found == read_scorer_model(str(tmp_path / "one"))
    scores = fairseq_dsp.score(dense, "one-shot", data, subset="valid", scorer_model=tmp_path / "two", cpu=True)
    assert scores.options == {"scorer_model": "two"}


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--subset", "test"], ["`--subset`", "train or valid", "test"]),
            (["--steps", "0"], ["`--steps`", "at least 1", "0"]),
            (["--batches", "few"], ["`--batches`", "whole number", "few"]),
            (["--seed=-1"], ["`--seed`", "at least 0", "-1"]),
        ],
        ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
    )
    def test_of_an_option_is_one_sentence_and_nothing_is_written(self, options, words, data, dense, tmp_path):
        assert_refused(train([data], [dense], tmp_path / "scorer.json", *options, ok=False), *words)
        assert not list(tmp_path.iterdir())

    def test_come_all_at_once(self, data, dense, tmp_path):
        (tmp_path / "out").mkdir()
        done = train([data, "nowhere"], [dense] * 3, tmp_path / "out", "--steps", 0, "--subset", "test", ok=False)
        words = [
            "--steps",
            "--subset",
            "one for all 3 checkpoints, or one for each, but there are 2",
            "nowhere",
            "is a folder",
        ]
        assert_refused(done, *words, reasons=5)

    def test_of_overwriting_unless_forced(self, data, dense, tmp_path):
        (tmp_path / "scorer.json").write_text("mine")
        assert_refused(train([data], [dense], tmp_path / "scorer.json", ok=False), "--force")
        assert (tmp_path / "scorer.json").read_text() == "mine"
        train([data], [dense], tmp_path / "scorer.json", "--force")

    def test_of_a_broken_checkpoint_and_of_one_head(self, data, dense, tmp_path):
        (tmp_path / "broken.pt").write_bytes(b"x" * 100)
        assert_refused(train([data], [tmp_path / "broken.pt"], tmp_path / "scorer.json", ok=False), "broken.pt")
        prune(dense, tmp_path / "one.pt", "--layout", "enc:00.00/dec:00.00/cross:10.00")
        assert_refused(train([data], [tmp_path / "one.pt"], tmp_path / "scorer.json", ok=False), "two heads or more")

    def test_of_scores_by_what_is_no_scorer(self, data, dense, tmp_path):
        train([data], [dense], tmp_path / "scorer.json")
        scores = ["--scorer", "magnitude", "--path", dense, "--output", tmp_path / "scores.json", "--cpu"]
        assert run(SCORE, *scores, folder=tmp_path).code == 0
        text = (tmp_path / "scorer.json").read_text()
        (tmp_path / "changed.json").write_text(text.replace("0.", "1.", 1))
        for name, words in (("scores.json", "of kind None"), ("changed.json", "must be undamaged")):
            options = ["--scorer", "one-shot", "--scorer-model", tmp_path / name, "--path", dense, "--cpu"]
            done = run(SCORE, data, *options, "--output", tmp_path / "out.json", folder=tmp_path)
            assert_refused(done, "`--scorer-model`", words, name)
