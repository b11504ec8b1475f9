"""The commands that reproduce.py plans: each method's own, with the checkpoints and scores of its own seed. Nothing is trained."""

from __future__ import annotations

import pytest
from planned import BEST, LAST, SEEDS, TEMPERATURES, assert_cut, assert_translated, checkpoint, runs, value
from reproduction import plan, presets
from reproduction.commands import Setup

from fairseq_dsp.errors import Refusal


@SEEDS
class TestEveryMethodIs:
    def test_dense_which_stock_fairseq_trains(self, seed: int):
        run = runs("dense")[f"dense-s{seed}"]
        train, generate = run.steps
        parts = [value(train, f"--{part}") for part in ("arch", "task", "criterion", "optimizer")]
        assert parts == ["transformer_tiny", "translation", "label_smoothed_cross_entropy", "adam"]
        assert [word for word in train.words if "dsp" in word] == ["fairseq_dsp"]  # of --user-dir
        assert value(train, "--seed") == str(seed)
        assert (run.needs, run.budget, value(train, "--max-epoch")) == ((), 12, "4")
        assert_translated(run, checkpoint(f"dense-s{seed}", BEST))

    def test_dsp_from_the_start_with_its_temperatures_and_cut_from_the_best(self, seed: int):
        run = runs("dsp")[f"dsp-k4-s{seed}"]
        train, cut, _ = run.steps
        assert [value(train, name) for name in ("--head-selection", "--unpruned-heads")] == ["dsp", "4"]
        assert [value(train, name) for name in ("--cooldown-updates", "--importance-lr")] == ["100", "0.05"]
        assert [value(train, name) for name in TEMPERATURES] == ["0.5", "0.01"]
        assert value(train, "--seed") == str(seed)
        assert not {"--finetune-from-model", "--pipelined", "--head-layout"} & set(train.words)
        assert run.needs == ()
        assert_cut(cut, checkpoint(run.name, BEST), f"runs/{run.name}/pruned.pt")
        assert_translated(run, f"runs/{run.name}/pruned.pt")

    def test_pipelined_which_learns_heads_of_the_dense_model_of_its_seed(self, seed: int):
        planned = runs("pipelined")
        run = planned[f"pipelined-k4-s{seed}"]
        train, cut, _ = run.steps
        assert "--pipelined" in train.words
        assert value(train, "--finetune-from-model") == checkpoint(f"dense-s{seed}", BEST)
        assert run.needs == (f"dense-s{seed}",)
        assert f"dense-s{seed}" in planned  # though nobody asked for dense
        assert [value(train, name) for name in ("--head-selection", "--unpruned-heads")] == ["dsp", "4"]
        assert [value(train, name) for name in TEMPERATURES] == ["0.5", "0.01"]
        # the heads alone, for an epoch at whose end they are fixed
        assert [value(train, name) for name in ("--max-epoch", "--cooldown-updates")] == ["1", "75"]
        assert_cut(cut, checkpoint(run.name, BEST), f"runs/{run.name}/pruned.pt")
        assert_translated(run, f"runs/{run.name}/pruned.pt")

    def test_ste_which_has_no_temperatures(self, seed: int):
        run = runs("ste")[f"ste-k4-s{seed}"]
        train, cut, _ = run.steps
        assert [value(train, name) for name in ("--head-selection", "--unpruned-heads")] == ["ste", "4"]
        assert not set(TEMPERATURES) & set(train.words)
        assert [value(train, name) for name in ("--cooldown-updates", "--importance-lr")] == ["100", "0.05"]
        assert_cut(cut, checkpoint(run.name, BEST), f"runs/{run.name}/pruned.pt")
        assert_translated(run, f"runs/{run.name}/pruned.pt")

    def test_hard_concrete_trained_once_and_cut_from_the_last_to_every_budget(self, seed: int):
        planned = runs("hard-concrete", budgets=(4, 2, "auto"), l0_penalties=((1.0, 0.25),))
        training = f"hard-concrete-l0.25-s{seed}"
        assert [
            name for name, run in planned.items() if run.seed == seed and any(step.trains for step in run.steps)
        ] == [training]
        (train,) = planned[training].steps
        assert planned[training].budget is None
        options = ("--head-selection", "--unpruned-heads", "--l0-penalty", "--importance-lr")
        assert [value(train, name) for name in options] == ["hard-concrete", "auto", "0.25", "0.05"]
        # as in its paper: no temperature that falls, heads are never fixed
        assert not {*TEMPERATURES, "--cooldown-updates"} & set(train.words)
        assert "--l0-penalty" not in runs("hard-concrete")[f"hard-concrete-s{seed}"].steps[0].words  # its default
        for budget, choice, method in (
            (4, ["--unpruned-heads", "4"], "hard-concrete"),
            (2, ["--unpruned-heads", "2"], "hard-concrete"),
            ("auto", [], "hard-concrete-auto"),  # its own number
        ):
            run = planned[f"hard-concrete-k{budget}-s{seed}"]
            assert (run.method, run.budget, run.needs, run.training) == (method, budget, (training,), training)
            assert_cut(run.steps[0], checkpoint(training, LAST), f"runs/{run.name}/pruned.pt", *choice)
            assert len(run.steps) == 2
            assert_translated(run, f"runs/{run.name}/pruned.pt")

    def test_hard_concrete_with_the_penalty_that_leaves_about_as_many_heads_as_the_budget(self, seed: int):
        planned = runs(
            "hard-concrete", budgets=(7, 6, 2, "auto"), l0_penalties=((0.5, 0.1), (1.0, 0.01))
        )  # of 12 heads
        few, many = f"hard-concrete-l0.1-s{seed}", f"hard-concrete-l0.01-s{seed}"
        for name, penalty in ((few, "0.1"), (many, "0.01")):
            assert value(planned[name].steps[0], "--l0-penalty") == penalty
        for budget, training in ((7, many), (6, few), (2, few), ("auto", many)):
            run = planned[f"hard-concrete-k{budget}-s{seed}"]
            assert (run.needs, run.training) == ((training,), training)
            assert run.steps[0].words[1] == checkpoint(training, LAST)

    def test_gradient_scored_again_after_every_four_heads(self, seed: int):
        planned = runs("gradient-iterative")
        (score,) = planned[f"gradient-iterative-scores-s{seed}"].steps
        assert [value(score, name) for name in ("--scorer", "--iterative")] == ["gradient", "4"]
        run = planned[f"gradient-iterative-k4-s{seed}"]
        assert run.needs == (f"dense-s{seed}", f"gradient-iterative-scores-s{seed}")
        assert value(run.steps[0], "--scores") == score.output

    @pytest.mark.parametrize("scorer", ["gradient", "random"])
    def test_the_dense_model_of_its_seed_cut_by_scores_of_its_seed(self, scorer: str, seed: int):
        planned = runs(scorer)
        scores, dense = f"runs/{scorer}-scores-s{seed}/scores.json", checkpoint(f"dense-s{seed}", BEST)
        (score,) = planned[f"{scorer}-scores-s{seed}"].steps
        assert score.words[0] == "fairseq-dsp-score"
        assert score.output == scores
        options = ("--path", "--scorer", "--seed", "--output")
        assert [value(score, name) for name in options] == [dense, scorer, str(seed), scores]
        assert planned[f"{scorer}-scores-s{seed}"].needs == (f"dense-s{seed}",)
        for budget in ("4", "2"):
            run = planned[f"{scorer}-k{budget}-s{seed}"]
            small = f"runs/{run.name}/pruned.pt"
            assert_cut(run.steps[0], dense, small, "--scores", scores, "--unpruned-heads", budget)
            assert len(run.steps) == 2
            assert run.needs == (f"dense-s{seed}", f"{scorer}-scores-s{seed}")
            assert_translated(run, small)

    @pytest.mark.parametrize("scorer", ["gradient", "random"])
    def test_cut_by_scores_and_then_finetuned_with_the_heads_that_are_left(self, scorer: str, seed: int):
        planned = runs(f"{scorer}-finetune")
        run = planned[f"{scorer}-finetune-k4-s{seed}"]
        cut, train, _ = run.steps
        small, scores = f"runs/{run.name}/pruned.pt", f"runs/{scorer}-scores-s{seed}/scores.json"
        dense = checkpoint(f"dense-s{seed}", BEST)
        assert_cut(cut, dense, small, "--scores", scores, "--unpruned-heads", "4")
        assert value(train, "--head-layout") == value(train, "--finetune-from-model") == small
        assert [value(train, f"--{part}") for part in ("arch", "task")] == ["dsp_transformer_tiny", "translation"]
        assert [value(train, name) for name in ("--max-epoch", "--seed")] == ["1", str(seed)]
        assert float(value(train, "--lr")) < presets.PRESETS["smoke"].learning_rate
        assert run.needs == (f"dense-s{seed}", f"{scorer}-scores-s{seed}")
        assert set(run.needs) <= planned.keys()
        assert_translated(run, checkpoint(run.name, BEST))

    def test_fixed_which_has_no_heads_to_remove(self, seed: int):
        run = runs("fixed")[f"fixed-k4-s{seed}"]
        train, _ = run.steps
        assert [value(train, name) for name in ("--head-selection", "--unpruned-heads")] == ["fixed", "4"]
        assert value(train, "--seed") == str(seed)  # draws the heads
        assert not {*TEMPERATURES, "--cooldown-updates", "--importance-lr"} & set(train.words)
        assert run.needs == ()
        assert_translated(run, checkpoint(run.name, BEST))


class TestThePlan:
    def test_trains_a_dense_model_a_seed_only_where_somebody_needs_one(self):
        for method in presets.METHODS:
            dense = [name for name in runs(method) if name.startswith("dense-s") and "small" not in name]
            alone = method in (
                "dsp",
                "dsp-paper",
                "dsp-projection",
                "dsp-auto",
                "dense-small",
                "ste",
                "hard-concrete",
                "fixed",
                "stratified",
                "even",
            )
            assert dense == ([] if alone else ["dense-s1", "dense-s2"]), method

    def test_gives_no_number_of_its_own_to_any_method_but_hard_concrete(self):
        planned = runs(*presets.METHODS, budgets=("auto",))
        assert [name for name in planned if "auto" in name] == ["hard-concrete-kauto-s1", "hard-concrete-kauto-s2"]

    def test_refuses_a_number_of_its_own_where_no_method_has_one(self):
        with pytest.raises(
            Refusal, match="`--budgets` must be counts or shares where `--methods` has no hard-concrete"
        ):
            runs("dsp", "fixed", budgets=("auto",))

    def test_refuses_a_method_that_is_not_there(self):
        with pytest.raises(Refusal, match="`--methods` must be among dense, .*, but magic is not"):
            runs("dsp", "magic")

    @pytest.mark.parametrize("gpu", [False, True])
    def test_runs_every_command_where_it_was_told_to(self, gpu: bool):
        for run in runs(*presets.METHODS, gpu=gpu).values():
            for step in run.steps:
                if step.words[0] != "fairseq-dsp-prune":  # computes nothing
                    assert ("--cpu" in step.words) is not gpu, step.words

    def test_trains_in_half_precision_what_the_dense_model_is_compared_with(self):
        """Stock fairseq's command line takes --bf16 for TPUs, so dense is ours with all its heads."""
        for precision in ("fp32", "bf16", "fp16"):
            planned = runs("dense", "dsp", "pipelined", "gradient-finetune", precision=precision)
            trainings = [step for run in planned.values() for step in run.steps if step.trains]
            assert len(trainings) == 2 * (1 + 3 * 2)
            for step in trainings:
                halves = [word for word in step.words if word in ("--bf16", "--fp16")]
                assert halves == ([] if precision == "fp32" else [f"--{precision}"])
            dense = planned["dense-s1"].steps[0]
            assert value(dense, "--arch") == ("dsp_" if precision == "bf16" else "") + "transformer_tiny"
            pipelined = planned["pipelined-k4-s1"].steps[0]
            if precision == "bf16":
                assert value(dense, "--head-layout") == "enc:11.11/dec:11.11/cross:11.11"
                assert value(pipelined, "--head-layout") == checkpoint("dense-s1", BEST)
            else:
                assert "--head-layout" not in (*dense.words, *pipelined.words)

    def test_chooses_the_best_by_bleu_or_by_the_loss(self):
        (train, _) = runs("dense", select="bleu")["dense-s1"].steps
        assert {"--eval-bleu", "--maximize-best-checkpoint-metric"} <= set(train.words)
        assert value(train, "--best-checkpoint-metric") == "bleu"
        assert value(train, "--eval-bleu-remove-bpe") == "subword_nmt"
        assert not [word for word in runs("dense")["dense-s1"].steps[0].words if "bleu" in word or "metric" in word]

    def test_takes_budgets_as_counts_or_shares(self):
        assert plan.parse_budgets(["72", "0.25", "1/6", "0", "18", "1.0", "auto"], 72) == [72, 18, 12, 0, "auto"]
        for bad in ("73", "-1", "1.5", "many", "1/0"):
            with pytest.raises(Refusal, match="--budgets"):
                plan.parse_budgets([bad], 72)

    def test_of_the_paper_is_all_methods_at_ten_budgets_with_its_recipe(self):
        preset = presets.PRESETS["paper"]
        assert preset.total_heads == 72
        setup = Setup(preset, presets.schedule(preset, 1000), "de", "en", "subword_nmt", False, "fp32", (50, 60))
        planned = plan.plan(setup, preset.methods, plan.parse_budgets(preset.budgets, 72), [1])
        assert len([run for run in planned if run.budget is not None]) == 1 + 10 * 10
        joint = " ".join(next(run for run in planned if run.name == "dsp-k18-s1").steps[0].words)
        for words in ("--lr 0.0005", "--warmup-updates 4000", "--cooldown-updates 15000", "--importance-lr 0.2"):
            assert words in joint
        for words in ("--final-temperature 1e-8", "--max-epoch 60", "--max-tokens 4096", "--dropout 0.3"):
            assert words in joint

    def test_of_the_converged_benchmark_has_every_arm_and_begins_with_all_of_the_first_seed(self):
        preset = presets.PRESETS["converged"]
        setup = Setup(preset, presets.schedule(preset, 300), "de", "en", "subword_nmt", False, "fp32", (4000, 4000))
        planned = plan.plan_preset(setup, plan.parse_budgets(preset.budgets, 72))
        found = {(run.method, run.budget, run.seed) for run in planned if run.budget is not None}
        from_dense = ("random", "stratified", "gradient", "fisher", "dsp-paper", "dsp", "dsp-auto", "dsp-auto-taught")
        wanted = {f"{name}-finetune" for name in (*from_dense, "shuffled-dsp-auto", "joint-fisher-staged")}
        wanted |= {"dsp-paper", "dsp", "dsp-auto", "stratified", "even", "dense-small"}
        for seed in (1, 2):
            assert {(method, kept, seed) for method in wanted for kept in (24, 12, 6)} < found
        assert {method for method, _, seed in found if seed == 6} == set(preset.deciding)
        order = [run.seed for run in planned]
        assert order == sorted(order)  # a seed's dense model too comes after all of the seed before
        assert not any(seed == 3 for method, _, seed in found if method == "even")

    def test_of_a_dense_model_as_small_as_a_pruned_one(self):
        run = runs("dense-small", precision="bf16")["dense-small-k2-s1"]
        train, _ = run.steps
        assert (run.method, run.budget, run.needs) == ("dense-small", 2, ())
        assert value(train, "--head-layout") == "enc:11.11/dec:11.11/cross:11.11"  # it has all of its heads
        assert int(value(train, "--decoder-embed-dim")) == int(value(train, "--encoder-embed-dim")) < 64
        assert_translated(run, checkpoint(run.name, BEST))

    def test_keeps_the_shares_of_the_schedule_with_larger_batches(self):
        preset = presets.scale_batch(presets.PRESETS["paper"], 16384)
        assert preset.learning_rate == pytest.approx(1e-3)
        found = presets.schedule(preset, 250)
        assert (found.warmup, found.cooldown, found.gentle) == (1000, 3750, True)
