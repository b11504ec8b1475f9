"""Options that do not go together: one sentence each, exit code 2, no file, all reasons at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import OURS, QUIET, STOCK, Result, assert_refused, budget, train

SHORT = [*QUIET, "--max-update", 2]
FULL = "enc:11.11/dec:11.11/cross:11.11"


def test_data_folders_without_the_languages_or_their_words_are_refused(data: Path, tmp_path: Path):
    lacking = tmp_path / "lacking"
    shutil.copytree(data, lacking)
    (lacking / "dict.aa.txt").unlink()
    (lacking / "dict.bb.txt").write_text("xx\n")
    several = tmp_path / "several"
    shutil.copytree(data, several)
    (several / "train.aa-cc.aa.idx").touch()
    for folder, extra, words, reasons in (
        (tmp_path / "none", [], ["must be a folder of fairseq-preprocess", "none"], 1),
        (tmp_path, [], ["holds no train.SRC-TGT.SRC.idx"], 1),
        (lacking, [], ["dict.aa.txt", "dict.bb.txt must be a dictionary"], 2),
        (data, ["--source-lang", "xx", "--target-lang", "yy"], ["no dict.xx.txt", "no dict.yy.txt"], 2),
        (data, ["--target-lang", "aa"], ["must name one of the language pairs", "aa-bb", "?-aa"], 1),
        (several, [], ["aa-bb, aa-cc", "?-?"], 1),
    ):
        done = train(folder, tmp_path / "save", *SHORT, *budget(4), *extra, ok=False)
        assert_refused(done, *words, reasons=reasons)
        assert not list((tmp_path / "save").glob("*"))


@pytest.fixture
def attempt(data: Path, tmp_path: Path):
    """Runs a training that must be refused before it writes a checkpoint."""

    def run_it(*extra: object, **parts: str) -> Result:
        done = train(data, tmp_path / "save", *SHORT, *extra, ok=False, **parts)
        assert not list(tmp_path.rglob("*.pt"))
        return done

    return run_it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--encoder-layers-to-keep", "0"], ["`--encoder-layers-to-keep`", "but is [0]"]),
        (["--decoder-layers-to-keep", "0,1"], ["`--decoder-layers-to-keep`", "[0, 1]"]),
        (["--quant-noise-pq", "0.1"], ["`--quant-noise-pq`", "0.1"]),
        (["--quant-noise-scalar", "0.2"], ["`--quant-noise-scalar`", "0.2"]),
        (["--no-cross-attention"], ["`--no-cross-attention`"]),
        (["--ddp-backend", "fully_sharded"], ["`--ddp-backend`", "fully_sharded"]),
        (["--ddp-backend", "slowmo"], ["`--ddp-backend`", "slowmo"]),
        (["--base-layers", "1"], ["`--base-layers`", "but is 1"]),
        (["--head-selection", "ste", "--initial-temperature", "0.5"], ["`--initial-temperature`", "ste", "0.5"]),
        (["--head-selection", "ste", "--final-temperature", "0.5"], ["`--final-temperature`", "ste", "0.5"]),
        (["--head-selection", "ste", "--relaxation", "projection"], ["`--relaxation`", "ste", "projection"]),
        (["--relaxation", "sigmoid"], ["`--relaxation`", "successive-softmax, projection", "sigmoid"]),
        (
            ["--head-selection", "magic"],
            [
                "`--head-selection`",
                "dsp, ste, hard-concrete, simple, lagrangian, pass, function-norm, site-threshold, fixed, stratified",
                "magic",
            ],
        ),
        (["--head-selection", "fixed", "--keep-sampling"], ["`--keep-sampling`"]),
        (["--head-selection", "fixed", "--cooldown-updates", "3"], ["`--cooldown-updates`", "but is 3"]),
        (["--l0-penalty", "0.5"], ["`--l0-penalty`", "hard-concrete", "0.5"]),
        (["--unpruned-heads", "auto"], ["`--unpruned-heads`", "dsp", "auto"]),
        (["--head-selection", "hard-concrete", "--l0-penalty", "-1"], ["`--l0-penalty`", "at least 0", "-1.0"]),
        (["--head-selection", "hard-concrete", "--keep-sampling"], ["`--keep-sampling`", "hard-concrete"]),
        (["--head-selection", "hard-concrete", "--final-temperature", "1"], ["`--final-temperature`", "1.0"]),
        (["--lagrangian-warmup", "9"], ["`--lagrangian-warmup` belongs to lagrangian", "dsp", "but is 9"]),
        (
            ["--head-selection", "lagrangian", "--lagrangian-warmup", "15001"],
            ["`--lagrangian-warmup` must be between 0 and the cooldown (", "15001"],
        ),
        (["--head-selection", "pass", "--l0-penalty", "1"], ["`--l0-penalty`", "pass", "1.0"]),
        (["--head-selection", "simple", "--relaxation", "projection"], ["`--relaxation`", "simple", "projection"]),
        (["--norm-penalty", "1"], ["`--norm-penalty` belongs to function-norm", "dsp", "1.0"]),
        (["--head-selection", "function-norm", "--norm-penalty", "-1"], ["`--norm-penalty`", "at least 0", "-1.0"]),
        (["--head-selection", "function-norm", "--norm-penalty", "nan"], ["`--norm-penalty`", "at least 0", "nan"]),
        (["--head-selection", "function-norm", "--norm", "big"], ["`--norm`", "absolute or relative", "big"]),
        (["--head-selection", "function-norm", "--keep-sampling"], ["`--keep-sampling`", "function-norm"]),
        (["--head-selection", "function-norm", "--checkpoint-activations"], ["`--checkpoint-activations`", "measures"]),
        (["--threshold-target", "0.5"], ["`--threshold-target` belongs to site-threshold", "dsp", "0.5"]),
        (
            ["--head-selection", "site-threshold", "--threshold-penalty", "nan"],
            ["`--threshold-penalty`", "at least 0", "nan"],
        ),
        (
            ["--head-selection", "site-threshold", "--threshold-target", "1.5"],
            ["`--threshold-target`", "below 1", "1.5"],
        ),
        (["--initial-temperature", "0"], ["`--initial-temperature`", "above 0", "0.0"]),
        (["--initial-temperature", "nan"], ["`--initial-temperature`", "nan"]),
        (["--final-temperature", "-1"], ["`--final-temperature`", "-1"]),
        (["--initial-temperature", "0.1", "--final-temperature", "0.2"], ["`--final-temperature`", "0.1", "0.2"]),
        (["--cooldown-updates", "-1"], ["`--cooldown-updates`", "-1"]),
        (["--importance-lr", "-0.1"], ["`--importance-lr`", "-0.1"]),
        (["--importance-lr", "nan"], ["`--importance-lr`", "nan"]),
        (["--pipelined"], ["`--pipelined`", "--finetune-from-model"]),
        (["--head-layout", "enc:1.1/dec:1.1/cros:1.1"], ["`--head-layout`", "cros:1.1"]),
        (["--head-layout", ""], ["`--head-layout`", "''"]),
        (["--head-layout", "enc:1x.11/dec:11.11/cross:11.11"], ["`--head-layout`", "1x.11"]),
        (["--head-layout", "enc:11/dec:11/cross:11"], ["`--head-layout` must fit the model", "enc:11/dec:11/cross:11"]),
        (["--head-layout", "no/such/file.pt"], ["--head-layout", "no/such/file.pt"]),
        (["--head-layout", "enc:10.00/dec:10.00/cross:00.01"], ["`--unpruned-heads`", "3", "but is 4"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_options_that_do_not_fit_are_refused_with_one_sentence(options, words, attempt):
    assert_refused(attempt("--unpruned-heads", 4, *options), *words)


def test_all_reasons_come_at_once(attempt):
    options = ["--quant-noise-pq", "0.1", "--no-cross-attention", "--head-selection", "ste", "--final-temperature", "1"]
    done = attempt(*options)
    assert_refused(done, "quant-noise-pq", "no-cross-attention", "final-temperature", "unpruned-heads", reasons=4)


def test_a_budget_out_of_range_and_other_reasons_come_at_once(attempt):
    done = attempt("--unpruned-heads", "99", "--quant-noise-pq", "0.1", "--pipelined", "--cooldown-updates=-4")
    assert_refused(done, "unpruned-heads", "quant-noise-pq", "cooldown-updates", "pipelined", reasons=4)


@pytest.mark.parametrize("part", ["task", "arch", "criterion", "optimizer"])
def test_any_single_stock_part_is_refused(part: str, attempt):
    done = attempt(*([] if part == "task" else ["--unpruned-heads", 4]), **{part: STOCK[part]})
    # without our task there is no option for the budget either
    assert_refused(done, f"`--{part}` must be", f"but is {STOCK[part]}", reasons=2 if part == "task" else 1)


@pytest.mark.parametrize("part", ["task", "arch", "criterion", "optimizer"])
def test_any_single_part_of_ours_among_stock_parts_is_refused(part: str, attempt):
    budget_option = ["--unpruned-heads", 4] if part == "task" else []
    assert_refused(attempt(*budget_option, stock=True, **{part: OURS[part]}), reasons=4 if part == "arch" else 1)


def test_the_stock_model_is_not_accepted_by_our_task_without_a_budget(attempt):
    assert_refused(attempt(arch=STOCK["arch"]), "`--arch`", "transformer_tiny")


@pytest.mark.parametrize("method", ["dsp", "ste"])
def test_every_learned_method_needs_the_budget_even_with_a_layout(method: str, attempt):
    assert_refused(attempt("--head-selection", method, "--head-layout", FULL), "`--unpruned-heads` must be given")


def test_a_pipelined_run_needs_a_checkpoint_that_exists(attempt, tmp_path: Path):
    missing = tmp_path / "none.pt.gone"
    done = attempt(*budget(4), "--pipelined", "--finetune-from-model", missing)
    assert_refused(done, "`--finetune-from-model`", "none.pt.gone")


METRICS = {
    "bleu": ["`--best-checkpoint-metric bleu` needs `--eval-bleu`"],
    "accuracy": ["`--best-checkpoint-metric accuracy` needs `--report-accuracy`"],
    "n_correct": ["needs `--report-accuracy`"],
    "los": ["`--best-checkpoint-metric` must be one of loss, nll_loss, ppl, bleu", "but is los"],
    "gnorm": ["`--best-checkpoint-metric` must be one of", "but is gnorm"],  # training's alone
}


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_that_no_validation_yields_is_refused_before_the_first_epoch(metric: str, data: Path, tmp_path: Path):
    extra = ["--best-checkpoint-metric", metric, "--maximize-best-checkpoint-metric", "--no-epoch-checkpoints"]
    done = train(data, tmp_path / "save", *extra, *budget(4), "--max-update", 1, ok=False)
    assert_refused(done, *METRICS[metric])
    assert "begin training epoch" not in done.out


@pytest.mark.parametrize("metric", ["ppl", "accuracy", "heads_enc", "wpb"])
def test_one_that_it_yields_chooses_the_best_checkpoint(metric: str, data: Path, tmp_path: Path):
    extra = ["--best-checkpoint-metric", metric, "--report-accuracy", "--no-epoch-checkpoints"]
    done = train(data, tmp_path / "save", *extra, *budget(4), "--max-update", 1)
    assert (tmp_path / "save/checkpoint_best.pt").exists()
    worst = "`--best-checkpoint-metric accuracy` without `--maximize-best-checkpoint-metric` keeps the worst"
    assert (worst in done.out) == (metric == "accuracy")


def test_without_validation_nobody_asks_for_the_metric(data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *SHORT, *budget(4), "--best-checkpoint-metric", "bleu")
