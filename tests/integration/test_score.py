"""`fairseq-dsp-score`, and `fairseq-dsp-prune --scores`, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import HEADS, QUIET, Result, assert_refused, generate, heads_in, load, prune, run, train
from scored import NETWORK

from fairseq_dsp.scoring import SCORERS
from fairseq_dsp.units.layout import Layout

SCORE = "fairseq_dsp.cli.score"
ALL = "enc:11.11/dec:11.11/cross:11.11"


def needed(scorer: str, folder: Path) -> list[Any]:
    """What the scorer cannot do without; files lie in a folder of their own."""
    if scorer == "attention-statistics":
        return ["--statistic", "confidence"]
    if scorer == "one-shot":
        (folder.parent / f"{folder.name}-scorer.json").write_text(NETWORK.text())
        return ["--scorer-model", folder.parent / f"{folder.name}-scorer.json"]
    return []


def score(data: Any, path: Any, output: Path, *extra: Any, scorer: str = "gradient", ok: bool = True) -> Result:
    arguments = [
        data,
        "--path",
        path,
        "--scorer",
        scorer,
        "--output",
        output,
        "--cpu",
        *needed(scorer, output.parent),
        *extra,
    ]
    done = run(SCORE, *arguments, folder=output.parent)
    assert not ok or done.code == 0, done.err[-3000:]
    return done


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


class TestScoring:
    @pytest.mark.parametrize(
        ("scorer", "options", "said"),
        [
            ("attention-statistics", [], {"statistic": "confidence"}),
            ("function-norm", [], None),
            ("function-norm", ["--norm", "relative"], {"norm": "relative"}),
            ("gradient", [], None),
        ],
    )
    def test_says_the_options_of_the_scorer_s_own(self, scorer, options, said, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--subset", "valid", *options, scorer=scorer)
        assert content(tmp_path / "scores.json").get("options") == said
        prune(dense, tmp_path / "small.pt", "--scores", tmp_path / "scores.json", "--unpruned-heads", 3)
        assert heads_in(tmp_path / "small.pt") == 3

    @pytest.mark.parametrize("scorer", SCORERS)
    def test_a_dense_checkpoint_of_stock_fairseq_and_pruning_by_it(self, scorer, data, dense, tmp_path):
        subset = ["--subset", "valid"] if SCORERS[scorer].reads_data else []
        score(data, dense, tmp_path / "scores.json", *subset, scorer=scorer)
        found = content(tmp_path / "scores.json")
        assert found["layout"] == ALL
        assert found["scorer"] == scorer
        assert found["checkpoint"] == dense.name
        assert (found["order"], found["iterative"], found["seed"]) == (None, None, 1)
        read = ("valid", 1, 4096, 37) if SCORERS[scorer].reads_data else (None,) * 4
        assert tuple(found[name] for name in ("subset", "batches", "max_tokens", "sentences")) == read
        best = sorted(range(HEADS), key=lambda head: -found["scores"][head])
        for k in (0, 5, HEADS):
            prune(dense, tmp_path / f"{k}.pt", "--scores", tmp_path / "scores.json", "--unpruned-heads", k)
            assert heads_in(tmp_path / f"{k}.pt") == k
            layout = Layout.parse(load(tmp_path / f"{k}.pt")["cfg"]["model"].head_layout)
            assert [head for head, kept in enumerate(layout.kept) if kept] == sorted(best[:k])
        assert load(tmp_path / "5.pt")["fairseq_dsp"]["method"] == scorer

    def test_is_a_function_of_its_options(self, data, dense, tmp_path):
        options = ["--batches", 2, "--max-tokens", 200]
        for name, seed in (("one", 3), ("two", 3), ("three", 4)):
            done = score(data, dense, tmp_path / name, *options, "--seed", seed)
            assert done.err == ""  # short work does not say how far it is
        one, two, three = (content(tmp_path / name) for name in ("one", "two", "three"))
        assert one == two
        assert one["subset"] == "train"
        assert one["batches"] == three["batches"] == 2
        assert 0 < one["sentences"] < 200
        assert one["scores"] != three["scores"]  # other batches

    def test_of_all_batches_counts_every_sentence_of_the_training_set(self, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--batches", "all", "--max-tokens", 300)
        assert content(tmp_path / "scores.json")["sentences"] == 200

    def test_again_after_every_few_heads_gives_an_order_to_cut_from(self, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--iterative", 5, "--subset", "valid")
        score(data, dense, tmp_path / "once.json", "--iterative", HEADS, "--subset", "valid")
        found, once = content(tmp_path / "scores.json"), content(tmp_path / "once.json")
        assert found["iterative"] == 5
        assert sorted(found["order"]) == list(range(HEADS))
        assert found["order"][:5] == once["order"][:5]
        assert once["order"] == sorted(range(HEADS), key=lambda head: once["scores"][head])
        prune(dense, tmp_path / "4.pt", "--scores", tmp_path / "scores.json", "--unpruned-heads", 4, "--cross-floor", 0)
        layout = Layout.parse(load(tmp_path / "4.pt")["cfg"]["model"].head_layout)
        assert {head for head, kept in enumerate(layout.kept) if kept} == set(found["order"][-4:])

    def test_of_a_gated_checkpoint_is_that_of_its_weights_with_all_heads_on(self, data, trained, tmp_path):
        state = torch.load(trained, weights_only=False)
        state["model"]["head_gates.importance"].neg_()
        state["model"]["head_gates.fixed_mask"].fill_(-1)
        torch.save(state, tmp_path / "other.pt")
        for name, path in (("one", trained), ("two", tmp_path / "other.pt")):
            score(data, path, tmp_path / name, "--subset", "valid")
        one, two = content(tmp_path / "one"), content(tmp_path / "two")
        assert one["scores"] == two["scores"]
        assert all(value > 0 for value in one["scores"])
        prune(trained, tmp_path / "small.pt", "--scores", tmp_path / "one", "--unpruned-heads", 7)
        assert heads_in(tmp_path / "small.pt") == 7

    def test_of_a_rewritten_checkpoint_is_of_the_heads_that_are_left(self, data, pruned, tmp_path):
        score(data, pruned, tmp_path / "scores.json", "--subset", "valid")
        found = content(tmp_path / "scores.json")
        assert found["layout"] == load(pruned)["cfg"]["model"].head_layout
        assert len(found["scores"]) == 5
        prune(pruned, tmp_path / "smaller.pt", "--scores", tmp_path / "scores.json", "--unpruned-heads", 2)
        assert heads_in(tmp_path / "smaller.pt") == 2

    def test_with_recomputed_activations_in_the_options_is_the_same(self, data, dense, tmp_path):
        state = torch.load(dense, weights_only=False)
        state["cfg"]["model"].checkpoint_activations = True
        torch.save(state, tmp_path / "recomputing.pt")
        for name, path in (("one", dense), ("two", tmp_path / "recomputing.pt")):
            score(data, path, tmp_path / name, "--subset", "valid")
        assert content(tmp_path / "one")["scores"] == content(tmp_path / "two")["scores"]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_of_weights_in_half_precision(self, dtype, data, dense, tmp_path):
        state = torch.load(dense, weights_only=False)
        state["model"] = {name: value.to(dtype) for name, value in state["model"].items()}
        torch.save(state, tmp_path / "half.pt")
        for name, path in (("one", dense), ("two", tmp_path / "half.pt")):
            score(data, path, tmp_path / name, "--subset", "valid")
        one, two = content(tmp_path / "one"), content(tmp_path / "two")
        assert two["scores"] == pytest.approx(one["scores"], rel=0.2)

    @pytest.mark.parametrize("scorer", [name for name, scorer in SCORERS.items() if not scorer.reads_data])
    def test_needs_no_data_where_it_reads_none(self, scorer, dense, tmp_path):
        score(tmp_path / "nowhere", dense, tmp_path / "scores.json", scorer=scorer)
        assert content(tmp_path / "scores.json")["subset"] is None
        arguments = ["--path", dense, "--scorer", scorer, "--output", tmp_path / "other.json", "--cpu"]
        assert run(SCORE, *arguments, folder=tmp_path).code == 0  # no word of a folder
        assert (tmp_path / "other.json").read_text() == (tmp_path / "scores.json").read_text()

    def test_takes_the_folder_in_any_place(self, data, dense, tmp_path):
        arguments = ["--path", dense, "--scorer", "gradient", "--cpu", "--subset", "valid", "--output"]
        assert run(SCORE, *arguments, tmp_path / "last.json", data, folder=tmp_path).code == 0
        assert run(SCORE, data, *arguments, tmp_path / "first.json", folder=tmp_path).code == 0
        assert (tmp_path / "first.json").read_text() == (tmp_path / "last.json").read_text()

    def test_of_one_of_several_language_pairs(self, data, dense, tmp_path):
        """Where the checkpoint does not tell its languages."""
        both = tmp_path / "both"
        shutil.copytree(data, both)
        (both / "train.xx-yy.xx.idx").touch()
        state = torch.load(dense, weights_only=False)
        state["cfg"]["task"]["source_lang"] = state["cfg"]["task"]["target_lang"] = None
        torch.save(state, tmp_path / "untold.pt")
        assert_refused(
            score(both, tmp_path / "untold.pt", tmp_path / "one", "--subset", "valid", ok=False),
            "`--source-lang` and `--target-lang`", "?-?",
        )  # fmt: skip
        languages = ["--source-lang", "aa", "--target-lang", "bb"]
        score(both, tmp_path / "untold.pt", tmp_path / "one", "--subset", "valid", *languages)
        score(data, dense, tmp_path / "two", "--subset", "valid")
        assert content(tmp_path / "one")["scores"] == content(tmp_path / "two")["scores"]

    def test_then_pruning_then_fine_tuning_with_stock_parts(self, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", "--subset", "valid")
        small = tmp_path / "small.pt"
        prune(dense, small, "--scores", tmp_path / "scores.json", "--unpruned-heads", 6)
        parts = {"stock": True, "arch": "dsp_transformer_tiny"}
        options = ["--head-layout", small, "--finetune-from-model", small, "--max-update", 4]
        train(data, tmp_path / "save", *QUIET, *options, **parts)
        assert heads_in(tmp_path / "save/checkpoint_last.pt") == 6


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--subset", "test"], ["`--subset`", "train or valid", "test"]),
            (["--subset", "test1"], ["`--subset`", "train or valid", "test1"]),
            (["--subset", "dev"], ["`--subset`", "train or valid", "dev"]),
            (["--batches", "0"], ["`--batches`", "at least 1", "0"]),
            (["--batches", "many"], ["`--batches`", "whole number", "many"]),
            (["--max-tokens=-5"], ["`--max-tokens`", "at least 1", "-5"]),
            (["--max-tokens", "1"], ["`--subset train`", "but has none"]),
            (["--iterative", "0"], ["`--iterative`", "at least 1", "0"]),
            (["--seed", "x"], ["`--seed`", "whole number", "x"]),
        ],
        ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
    )
    def test_of_an_option_is_one_sentence_and_nothing_is_written(self, options, words, data, dense, tmp_path):
        assert_refused(score(data, dense, tmp_path / "scores.json", *options, ok=False), *words)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("scorer", "options", "words"),
        [
            (
                "gradient",
                ["--statistic", "entropy"],
                ["`--statistic` belongs to `--scorer attention-statistics`, but is entropy"],
            ),
            (
                "magnitude",
                ["--norm", "relative"],
                ["`--norm` belongs to `--scorer function-norm`", "`--scorer magnitude`"],
            ),
            ("function-norm", ["--norm", "big"], ["`--norm` must be absolute or relative, but is big."]),
            ("gradient", ["--scorer-model", "x"], ["`--scorer-model` belongs to `--scorer one-shot`, but is x"]),
            ("one-shot", [], ["`--scorer-model` must be given for `--scorer one-shot`"]),
            (
                "one-shot",
                ["--scorer-model", "nowhere"],
                ["`--scorer-model` must be a file, but nowhere cannot be read"],
            ),
            ("attention-statistics", ["--statistic", "kurtosis"], ["`--statistic`", "entropy, confidence", "kurtosis"]),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_of_options_of_other_scorers_and_of_values_that_there_are_none_of(
        self, scorer, options, words, data, dense, tmp_path
    ):
        folder = [] if scorer == "magnitude" else [data]
        arguments = [*folder, "--path", dense, "--scorer", scorer, "--output", tmp_path / "out", "--cpu", *options]
        assert_refused(run(SCORE, *arguments, folder=tmp_path), *words)
        assert not list(tmp_path.iterdir())

    def test_of_no_statistic(self, data, dense, tmp_path):
        arguments = [data, "--path", dense, "--scorer", "attention-statistics", "--output", tmp_path / "out", "--cpu"]
        assert_refused(run(SCORE, *arguments, folder=tmp_path), "`--statistic` must be one of", "not given")

    def test_come_all_at_once(self, tmp_path):
        (tmp_path / "out").mkdir()
        options = ["--subset", "test", "--batches", "0", "--seed", "x"]
        done = score(tmp_path / "none", "x.pt", tmp_path / "out", *options, scorer="best", ok=False)
        assert_refused(done, "--scorer", "--subset", "--batches", "--seed", "DATA-BIN", "is a folder", reasons=6)

    @pytest.mark.parametrize("scorer", ["magnitude", "random"])
    def test_of_scoring_again_what_does_not_change(self, scorer, data, dense, tmp_path):
        done = score(data, dense, tmp_path / "scores.json", "--iterative", 3, scorer=scorer, ok=False)
        assert_refused(done, "`--iterative`", scorer)

    @pytest.mark.parametrize("scorer", ["magnitude", "random"])
    def test_of_options_that_a_scorer_without_sentences_would_ignore(self, scorer, dense, tmp_path):
        options = ["--subset", "valid", "--batches", 3, "--max-tokens", 9, "--source-lang", "aa", "--target-lang", "bb"]
        done = score("nowhere", dense, tmp_path / "scores.json", *options, scorer=scorer, ok=False)
        names = ["`--subset`", "`--batches`", "`--max-tokens`", "`--source-lang`", "`--target-lang`"]
        assert_refused(done, *names, f"`--scorer {scorer}` reads no sentences", reasons=5)

    def test_of_a_seed_where_nothing_is_drawn(self, dense, tmp_path):
        arguments = ["--path", dense, "--output", tmp_path / "out", "--cpu", "--seed", 2, "--scorer"]
        done = run(SCORE, *arguments, "magnitude", folder=tmp_path)
        assert_refused(done, "`--seed` must not be given for `--scorer magnitude`, which draws nothing, but is 2.")
        assert run(SCORE, *arguments, "random", folder=tmp_path).code == 0

    def test_of_sentences_without_a_folder(self, dense, tmp_path):
        arguments = ["--path", dense, "--scorer", "gradient", "--output", tmp_path / "out", "--cpu"]
        assert_refused(run(SCORE, *arguments, folder=tmp_path), "DATA-BIN must be given for `--scorer gradient`")

    def test_of_overwriting_unless_forced(self, data, dense, tmp_path):
        (tmp_path / "scores.json").write_text("mine")
        assert_refused(score(data, dense, tmp_path / "scores.json", scorer="random", ok=False), "--force")
        assert (tmp_path / "scores.json").read_text() == "mine"
        score(data, dense, tmp_path / "scores.json", "--force", scorer="random")

    def test_of_a_broken_checkpoint(self, data, tmp_path):
        (tmp_path / "broken.pt").write_bytes(b"x" * 100)
        assert_refused(score(data, tmp_path / "broken.pt", tmp_path / "scores.json", ok=False), "broken.pt")

    def test_of_data_without_dictionaries_or_subset_or_with_others(self, data, dense, tmp_path):
        folder = tmp_path / "bin"
        shutil.copytree(data, folder)
        for file in folder.glob("valid*"):
            file.unlink()
        done = score(folder, dense, tmp_path / "scores.json", "--subset", "valid", ok=False)
        for side in ("aa", "bb"):
            assert f"valid.aa-bb.{side}.idx" in done.err
        assert_refused(done, "must hold valid in both languages", reasons=2)
        os.truncate(folder / "train.aa-bb.bb.bin", 100)
        assert_refused(score(folder, dense, tmp_path / "scores.json", ok=False), "whole data sets", "train.aa-bb.bb")
        with (folder / "dict.bb.txt").open("a") as dictionary:
            dictionary.write("more 1\n")
        assert_refused(score(folder, dense, tmp_path / "scores.json", ok=False), "dict.bb.txt")
        (folder / "dict.aa.txt").unlink()
        assert_refused(score(folder, dense, tmp_path / "scores.json", ok=False), "dict.aa.txt")


class TestFloor:
    @pytest.fixture
    def lopsided(self, data, dense, tmp_path):
        """Scores by which every cross-attention head goes first, and the last of them first of all."""
        file = tmp_path / "scores.json"
        score(data, dense, file, scorer="magnitude")
        changed = content(file)
        changed["scores"] = [10.0 + head for head in range(8)] + [4.0, 3.0, 2.0, 1.0]
        file.write_text(json.dumps(changed))
        return file

    @pytest.mark.parametrize(
        ("floor", "cross"), [((), "10.00"), (("--cross-floor", "0"), "00.00"), (("--cross-floor", "layer"), "10.10")]
    )
    def test_keeps_cross_attention_whatever_the_scores_say(self, floor, cross, dense, lopsided, tmp_path):
        prune(dense, tmp_path / "small.pt", "--scores", lopsided, "--unpruned-heads", 4, *floor)
        layout = load(tmp_path / "small.pt")["cfg"]["model"].head_layout
        assert layout.endswith(f"cross:{cross}")
        assert heads_in(tmp_path / "small.pt") == 4

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--scores", "FILE", "--cross-floor", "5"), "must be at most 4"),
            (("--scores", "FILE", "--cross-floor", "4"), "must fit the budget of 3 heads"),
            (("--scores", "FILE", "--cross-floor", "many"), "a number of heads or layer, but is many"),
            (("--cross-floor", "1"), "must come with `--scores`"),
        ],
    )
    def test_a_floor_that_cannot_be_kept_is_a_sentence(self, options, words, dense, lopsided, tmp_path):
        given = [lopsided if word == "FILE" else word for word in options]
        assert_refused(prune(dense, tmp_path / "no.pt", *given, "--unpruned-heads", 3, ok=False), words)
        assert not (tmp_path / "no.pt").exists()


class TestRescaling:
    def test_lowers_the_loss_of_the_cut_model_which_keeps_its_heads_and_shapes(self, data, dense, tmp_path):
        score(data, dense, tmp_path / "scores.json", scorer="joint-fisher")
        choice = ["--scores", tmp_path / "scores.json", "--unpruned-heads", 4]
        prune(dense, tmp_path / "cut.pt", *choice)
        done = prune(dense, tmp_path / "rescaled.pt", *choice, "--rescale", data)
        assert done.err == ""
        whole, cut, rescaled = map(float, re.findall(r"(\d+\.\d+) (?:with all heads|cut|rescaled)", done.out))
        assert whole < rescaled < cut
        states = [load(tmp_path / f"{name}.pt") for name in ("cut", "rescaled")]
        assert states[0]["cfg"]["model"].head_layout == states[1]["cfg"]["model"].head_layout
        shapes = [{name: value.shape for name, value in state["model"].items()} for state in states]
        assert shapes[0] == shapes[1]
        assert states[1]["fairseq_dsp"]["rescaled"] == 200
        assert "H-0" in generate(data, tmp_path / "rescaled.pt", folder=tmp_path).out

    def test_of_a_model_that_chooses_among_its_heads_is_refused(self, data, trained, tmp_path):
        done = prune(trained, tmp_path / "no.pt", "--rescale", data, ok=False)
        assert_refused(done, "`--rescale` must be for a model whose heads are all on")

    def test_without_a_data_folder_is_refused_before_any_work(self, dense, tmp_path):
        options = ["--layout", ALL, "--rescale", tmp_path / "nowhere"]
        assert_refused(prune(dense, tmp_path / "no.pt", *options, ok=False), "--rescale", "nowhere")
