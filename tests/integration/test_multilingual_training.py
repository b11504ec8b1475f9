"""`--task translation_multi_simple_epoch_dsp`: a budget for several language pairs, validated pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import QUIET, budget, different, heads_in, load, prune
from languages import LANGS, PAIRS, SENTENCES, TOKENS, generate_pair, train_languages

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


@pytest.mark.parametrize(
    "extra", [[], ["--sampling-method", "temperature"], ["--sampling-method", "RoundRobin"]], ids=str
)
def test_a_run_that_was_stopped_and_started_again_equals_one_that_was_not(extra, several, tmp_path):
    schedule = [*QUIET, *budget(5, cooldown=10), *extra]  # 9 updates an epoch
    train_languages(several, tmp_path / "whole", *schedule, "--max-update", 13)
    for end in (7, 11, 13):
        train_languages(several, tmp_path / "parts", *schedule, "--max-update", end)
    ours, theirs = (state_of(tmp_path / folder / "checkpoint_last.pt") for folder in ("parts", "whole"))
    assert different(ours, theirs) == []
