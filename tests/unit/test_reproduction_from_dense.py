"""The commands of what goes on from a trained dense model."""

from __future__ import annotations

from typing import Any

import pytest
from planned import BEST, SEEDS, TEMPERATURES, assert_cut, assert_translated, checkpoint, runs, value


@SEEDS
class TestFromADenseModel:
    def test_heads_by_the_joint_score_are_cut_rescaled_and_trained_with_all_updates(self, seed: int):
        name = f"joint-fisher-rescaled-finetune-k4-s{seed}"
        run = runs("joint-fisher-rescaled-finetune", finetune=2, decays=True)[name]
        cut, train, _ = run.steps
        scores = f"runs/joint-fisher-scores-s{seed}/scores.json"
        options = ("--scores", scores, "--unpruned-heads", "4", "--rescale", "DATA-BIN")
        assert_cut(cut, checkpoint(f"dense-s{seed}", BEST), f"runs/{name}/pruned.pt", *options)
        assert value(train, "--finetune-from-model") == value(train, "--head-layout") == f"runs/{name}/pruned.pt"
        assert [value(train, f"--{word}") for word in ("max-epoch", "lr-scheduler", "total-num-update")] == [
            "2", "polynomial_decay", "200",
        ]  # fmt: skip
        assert_translated(run, checkpoint(name, BEST))

    def test_heads_are_drawn_by_rule_before_the_first_update(self, seed: int):
        run = runs("stratified-finetune")[f"stratified-finetune-k4-s{seed}"]
        (train, _) = run.steps
        assert [value(train, f"--{word}") for word in ("head-selection", "unpruned-heads")] == ["stratified", "4"]
        assert value(train, "--finetune-from-model") == checkpoint(f"dense-s{seed}", BEST)
        assert "--head-counts" not in train.words
        assert run.needs == (f"dense-s{seed}",)

    def test_heads_of_a_choice_are_drawn_anew_within_its_sublayers(self, seed: int):
        planned = runs("shuffled-finetune")
        run, chosen = planned[f"shuffled-finetune-k4-s{seed}"], f"joint-fisher-finetune-k4-s{seed}"
        assert value(run.steps[0], "--head-counts") == f"runs/{chosen}/pruned.pt"
        assert run.needs == (f"dense-s{seed}", chosen)
        assert "--rescale" not in planned[chosen].steps[0].words  # what it is compared with

    def test_heads_are_chosen_in_stages_by_one_command(self, seed: int):
        name, dense = f"joint-fisher-staged-finetune-k4-s{seed}", f"dense-s{seed}"
        planned = runs("joint-fisher-staged-finetune")
        cut, train, _ = planned[name].steps
        options = ("--scorer", "joint-fisher", "--stages", "4", "--unpruned-heads", "4", "--rescale", "DATA-BIN")
        assert_cut(cut, checkpoint(dense, BEST), f"runs/{name}/pruned.pt", *options)
        assert value(train, "--finetune-from-model") == value(train, "--head-layout") == f"runs/{name}/pruned.pt"
        assert planned[name].needs == (dense,)
        assert not [each for each in planned if "scores" in each]

    def test_the_default_is_told_nothing_but_the_budget_and_may_have_a_teacher_and_a_control(self, seed: int):
        planned = runs("dsp-auto-taught-finetune", "shuffled-dsp-auto-finetune", "dsp-auto")
        dense = checkpoint(f"dense-s{seed}", BEST)
        derived = {*TEMPERATURES, "--cooldown-updates", "--importance-lr", "--relaxation"}
        for method in ("dsp-auto", "dsp-auto-finetune", "dsp-auto-taught-finetune"):
            train = planned[f"{method}-k4-s{seed}"].steps[0]
            assert value(train, "--recipe") == "auto"
            assert not derived & set(train.words)
            assert ("--finetune-from-model" in train.words) is (method != "dsp-auto")
            assert ("--teacher" in train.words) is ("taught" in method)
        taught = planned[f"dsp-auto-taught-finetune-k4-s{seed}"].steps[0]
        assert [value(taught, f"--{word}") for word in ("teacher", "distillation")] == [dense, "0.5"]
        shuffled = planned[f"shuffled-dsp-auto-finetune-k4-s{seed}"]
        assert shuffled.needs == (f"dense-s{seed}", f"dsp-auto-finetune-k4-s{seed}")
        assert value(shuffled.steps[0], "--head-counts") == planned[shuffled.needs[1]].deployed

    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("dsp-finetune", ("0.05", "0.5", "0.01")),
            ("dsp-paper-finetune", ("0.2", "0.1", "1e-8")),
            ("dsp-projection-finetune", ("0.5", "1", "0.1")),
        ],
    )
    def test_heads_are_learned_in_a_quarter_of_the_updates(self, method: str, options: Any, seed: int):
        run = runs(method, finetune=2)[f"{method}-k4-s{seed}"]
        train, cut, _ = run.steps
        names = ("--importance-lr", *TEMPERATURES, "--cooldown-updates", "--max-epoch")
        assert tuple(value(train, name) for name in names) == (*options, "50", "2")
        assert ("--relaxation" in train.words) is (method == "dsp-projection-finetune")
        assert value(train, "--finetune-from-model") == checkpoint(f"dense-s{seed}", BEST)
        assert_cut(cut, checkpoint(run.name, BEST), f"runs/{run.name}/pruned.pt")
