"""`--task translation_multi_simple_epoch_dsp`: a budget for several language pairs, validated pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import GENERATE, PLUGIN, QUIET, VALIDATE, budget, different, heads_in, load, prune, run, weights
from languages import LANGS, LANGUAGES, PAIRS, SENTENCES, TASK, TOKENS, generate_pair, train_languages
from test_processes import train_in_two

from fairseq_dsp.methods import METHODS
from fairseq_dsp.units.layout import Layout

BLEU = ["--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 15}', "--batch-size-valid", 8]
SAVE = "--no-epoch-checkpoints"


def state_of(path: Path) -> dict[str, Any]:
    state = load(path)
    return {"model": state["model"], "optimizer": state["last_optimizer_state"]}


@pytest.mark.parametrize(
    "tokens",
    [
        TOKENS,
        ["--encoder-langtok", "src", "--lang-tok-replacing-bos-eos", "--decoder-langtok"],
        ["--decoder-langtok", "--lang-tok-style", "mbart"],
    ],
    ids=lambda words: "".join(words),
)
def test_trains_a_budget_validates_each_pair_and_generates_each_under_stock_fairseq(tokens, several, tmp_path):
    done = train_languages(several, tmp_path / "save", SAVE, *budget(5), *BLEU, "--max-epoch", 3, tokens=tokens)
    for name in ("loss", "nll_loss", "bleu"):
        values = [done.logged(f"{name}_{pair}", "valid") for pair in PAIRS]
        assert [len(found) for found in values] == [3, 3]
        worst = min if name == "bleu" else max
        for epoch, found in enumerate(zip(*values, strict=True)):
            assert done.logged(f"{name}_worst", "valid")[epoch] == pytest.approx(worst(found), abs=2e-3)
            assert done.logged(f"{name}_mean", "valid")[epoch] == pytest.approx(sum(found) / 2, abs=2e-2)
    assert load(tmp_path / "save/checkpoint_last.pt")["cfg"]["task"].langs == list(LANGS)
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "small.pt")
    assert heads_in(tmp_path / "small.pt") == 5
    for pair in PAIRS:
        texts = [
            generate_pair(several, path, pair, tokens=tokens, folder=tmp_path)
            for path in (tmp_path / "small.pt", tmp_path / "save/checkpoint_last.pt")
        ]
        assert [each.code for each in texts] == [0, 0], texts[0].err[-2000:]
        assert len(texts[0].hypotheses()) == SENTENCES["test"][pair]
        assert texts[0].hypotheses() == texts[1].hypotheses()


@pytest.mark.parametrize("kinds", [["heads,ffn", "--budget", "parameters=0.8"], ["sublayers", "--budget", 6]], ids=str)
def test_other_kinds_of_units_are_chosen_too(kinds, several, tmp_path):
    train_languages(
        several, tmp_path / "save", *QUIET, *budget(5, cooldown=4)[2:], "--prune", *kinds, "--max-update", 7
    )
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "small.pt")
    layout = Layout.parse(load(tmp_path / "small.pt")["fairseq_dsp"]["layout"])
    assert 0 < layout.count < layout.grid.total
    for pair in PAIRS:
        texts = [generate_pair(several, path, pair, folder=tmp_path) for path in (tmp_path / "small.pt", tmp_path / "save/checkpoint_last.pt")]  # fmt: skip
        assert texts[0].hypotheses() == texts[1].hypotheses()


VIRTUAL = ["--virtual-epoch-size", 60]  # sentences: 4 epochs are a pass


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--sampling-method", "temperature"],
        ["--sampling-method", "RoundRobin"],
        VIRTUAL,
        [*VIRTUAL, "--virtual-data-size", 180, "--sampling-method", "temperature"],
    ],
    ids=str,
)
def test_a_run_that_was_stopped_and_started_again_equals_one_that_was_not(extra, several, tmp_path):
    schedule = [*QUIET, *budget(5, cooldown=10), *extra]  # 9 updates an epoch
    train_languages(several, tmp_path / "whole", *schedule, "--max-update", 13)
    for end in (7, 11, 13):
        train_languages(several, tmp_path / "parts", *schedule, "--max-update", end)
    ours, theirs = (state_of(tmp_path / folder / "checkpoint_last.pt") for folder in ("parts", "whole"))
    assert different(ours, theirs) == []


@pytest.mark.parametrize("metric", ["loss_worst", "bleu_mean", f"bleu_{PAIRS[0]}"])
def test_the_best_checkpoint_is_that_of_the_pair_or_mean_that_is_named(metric, several, tmp_path):
    largest = ["--maximize-best-checkpoint-metric"] if metric.startswith("bleu") else []
    extra = [SAVE, *budget(5), *BLEU, "--max-epoch", 4, "--lr", "3e-2", "--best-checkpoint-metric", metric, *largest]
    done = train_languages(several, tmp_path / "save", *extra)
    values = done.logged(metric, "valid")
    assert len(values) == 4
    best = load(tmp_path / "save/checkpoint_best.pt")["extra_state"]
    assert best["best"] == pytest.approx((max if largest else min)(values), abs=1e-3)


def test_two_processes_validate_each_pair_as_one_does(several, tmp_path):
    extra = [SAVE, *budget(5, cooldown=2), *BLEU, "--max-update", 2, "--dropout", 0]
    task = {"task": TASK}
    one = train_languages(several, tmp_path / "one", *extra, "--batch-size", 220)
    two = train_in_two(several, tmp_path / "two", *LANGUAGES, *TOKENS, *extra, "--batch-size", 110, **task)
    for name in [f"{figure}_{part}" for figure in ("loss", "nll_loss", "bleu") for part in ("worst", "mean", *PAIRS)]:
        values = one.logged(name, "valid")
        assert len(values) == 2
        assert type(one)(0, two, "").logged(name, "valid") == pytest.approx(values, abs=3e-3), name


NEEDED = {
    "hard-concrete": ["--unpruned-heads", "auto"],  # finds its number itself
    "function-norm": ["--norm-penalty", 0.1],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_rewritten(method, several, tmp_path):
    learned = ["--cooldown-updates", 1] if METHODS[method].has_window else []
    extra = [*QUIET, "--unpruned-heads", 5, *learned, *NEEDED.get(method, []), "--head-selection", method]
    train_languages(several, tmp_path / "save", *extra, "--max-update", 2)
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "small.pt")
    assert method == "hard-concrete" or heads_in(tmp_path / "small.pt") == 5


def test_pipelined_starts_from_a_trained_multilingual_model(multilingual, several, tmp_path):
    extra = [*QUIET, *budget(5, cooldown=3), "--pipelined", "--finetune-from-model", multilingual, "--max-update", 3]
    train_languages(several, tmp_path / "save", *extra)
    before, after = weights(multilingual), weights(tmp_path / "save/checkpoint_last.pt")
    assert all(after[name].equal(value) for name, value in before.items())


def test_the_bleu_of_a_pair_is_that_of_fairseq_s_own_generation(several, tmp_path):
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 3, "max_len_b": 40}', "--batch-size-valid", 8]
    extra = [SAVE, *budget(5), *bleu, "--max-epoch", 50, "--validate-interval", 50, "--lr", "3e-2", "--dropout", 0]
    done = train_languages(several, tmp_path / "save", *extra)
    for pair in PAIRS:
        (logged,) = done.logged(f"bleu_{pair}", "valid")
        options = ["--gen-subset", "valid", "--scoring", "sacrebleu", "--max-len-b", 40]
        found = generate_pair(several, tmp_path / "save/checkpoint_last.pt", pair, *options, folder=tmp_path)
        assert float(found.out.split("BLEU = ")[-1].split()[0]) == pytest.approx(logged, abs=0.02)
    assert max(done.logged(f"bleu_{pair}", "valid")[0] for pair in PAIRS) > 1


def test_a_range_of_budgets_is_validated_pair_by_pair_too(several, tmp_path):
    extra = [SAVE, "--unpruned-heads", "2..8", "--importance-lr", 0.2, *BLEU, "--max-update", 6]
    done = train_languages(several, tmp_path / "save", *extra)
    for name in ("nll_loss", "bleu"):
        values = [done.logged(f"{name}_{pair}", "valid")[-1] for pair in PAIRS]
        assert done.logged(f"{name}_mean", "valid")[-1] == pytest.approx(sum(values) / 2, abs=2e-2)
    tokens = [done.logged(f"nll_loss_{part}", "valid")[-1] for part in (*PAIRS, "worst")]
    assert min(tokens) <= done.logged("nll_loss", "valid")[-1] <= max(tokens)


def test_fairseq_validate_says_the_loss_of_each_pair(several, multilingual_trained, tmp_path):
    arguments = [
        several,
        *PLUGIN,
        "--task",
        TASK,
        *LANGUAGES,
        *TOKENS,
        "--path",
        multilingual_trained,
        "--batch-size",
        7,
    ]
    done = run(VALIDATE, *arguments, "--cpu", "--num-workers", 0, folder=tmp_path)
    assert done.code == 0, done.err[-2000:]
    for part in (*PAIRS, "mean", "worst"):
        assert f"nll_loss_{part} " in done.out


def test_our_task_generates_every_sentence_of_a_pair(several, multilingual_trained, tmp_path):
    arguments = [several, *PLUGIN, "--task", TASK, *LANGUAGES, *TOKENS, "-s", "qar", "-t", "qos", "--batch-size", 8]
    arguments += ["--path", multilingual_trained, "--cpu", "--num-workers", 0, "--max-len-b", 15]
    done = run(GENERATE, *arguments, folder=tmp_path)
    assert done.code == 0, done.err[-2000:]
    assert sorted(done.hypotheses()) == list(range(SENTENCES["test"]["qar-qos"]))
