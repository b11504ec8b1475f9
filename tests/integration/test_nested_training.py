"""`--unpruned-heads 3..12`: one training, of which `fairseq-dsp-prune --unpruned-heads K` deploys any K."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from commands import (
    AVERAGE,
    HEADS,
    QUIET,
    assert_refused,
    budget,
    different,
    generate,
    heads_in,
    load,
    prune,
    run,
    train,
)

import fairseq_dsp

COOLDOWN, END = 6, 12
RANGE = ["--unpruned-heads", "3..12"]
NESTED = [*budget("3..12", cooldown=COOLDOWN)]
KINDS = {
    "plain": [],
    "ste": ["--head-selection", "ste"],
    "shrinking": ["--budget-schedule", "cubic", "--budget-start-updates", 2, "--nested-law", "uniform"],
    "sandwich": ["--sandwich", "--self-distillation", 0.5],
    "recomputed": ["--sandwich", "--checkpoint-activations"],
}


@pytest.fixture(scope="module")
def nested(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("nested") / "save"
    done = train(data, save, *NESTED, "--max-epoch", 2)
    (save / "log").write_text(done.out)
    return save


def tensors_of(path: Path) -> dict:
    state = load(path)
    return {"model": state["model"], "optimizer": state["last_optimizer_state"]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_equals_one_that_was_not(kind: str, data: Path, tmp_path: Path):
    flags = [*QUIET, *NESTED, *KINDS[kind]]
    train(data, tmp_path / "whole", *flags, "--max-update", END)
    for update in (4, 9, END):  # in the window, and after it
        train(data, tmp_path / "parts", *flags, "--max-update", update)
    ours, theirs = (tensors_of(tmp_path / name / "checkpoint_last.pt") for name in ("parts", "whole"))
    assert different(ours, theirs) == []


def test_any_number_of_heads_is_deployed_from_one_checkpoint(nested: Path, data: Path, tmp_path: Path):
    before: set[int] = set()
    for k in range(3, HEADS + 1):
        path = tmp_path / f"{k}.pt"
        prune(nested / "checkpoint_best.pt", path, "--unpruned-heads", k)
        assert heads_in(path) == k
        marks = [mark for mark in load(path)["cfg"]["model"].head_layout if mark in "01"]
        kept = {place for place, mark in enumerate(marks) if mark == "1"}
        assert before <= kept
        before = kept
    assert "H-0" in generate(data, tmp_path / "4.pt", folder=tmp_path).out


def test_importance_is_the_order_and_stays_once_the_cooldown_is_over(data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, *NESTED, "--save-interval-updates", 1, "--max-update", 9)
    states = [load(tmp_path / f"save/checkpoint_1_{update}.pt")["model"] for update in (4, 6, 7)]
    importance = [state["head_gates.importance"] for state in states]
    assert not torch.equal(importance[0], importance[1])
    assert torch.equal(importance[1], importance[2])
    assert not torch.equal(states[1]["encoder.layers.0.fc1.weight"], states[2]["encoder.layers.0.fc1.weight"])


def test_validation_tells_the_loss_at_several_and_the_best_has_the_lowest_mean(nested: Path):
    log = (nested / "log").read_text()
    lines = [line for line in log.splitlines() if "| valid |" in line]
    assert len(lines) == 2
    for line in lines:
        at = {int(k): float(value) for k, value in re.findall(r"nll_k(\d+) ([\d.]+)", line)}
        assert sorted(at) == [3, 4, 12]
        (mean,) = re.findall(r"\| nll_loss ([\d.]+)", line)
        assert float(mean) == pytest.approx(sum(at.values()) / 3, abs=2e-3)
        assert re.search(r"\| bsz 25", line) or re.search(r"\| bsz 18.5", line)
    losses = [float(re.findall(r"\| loss ([\d.]+)", line)[0]) for line in lines]
    assert load(nested / "checkpoint_best.pt")["extra_state"]["best"] == pytest.approx(min(losses), abs=2e-3)
    on = [float(value) for value in re.findall(r"[ ,]heads_on=([\d.]+)", log)]
    assert set(on) <= set(range(3, 13))
    assert len(set(on)) > 2


def test_bleu_is_of_the_translations_of_all(data: Path, tmp_path: Path):
    bleu = ["--eval-bleu", "--eval-tokenized-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 9}']
    done = train(data, tmp_path / "save", *NESTED, *bleu, "--max-epoch", 1, "--no-epoch-checkpoints")
    assert len(done.logged("bleu", "valid")) == 1


def test_what_it_is_asked_for_it_must_have_been_trained_for(nested: Path, data: Path, tmp_path: Path):
    last = nested / "checkpoint_last.pt"
    words = "`--unpruned-heads` must say how many heads to keep of a checkpoint that was trained for 3 to 12 of them"
    out = tmp_path / "out.pt"
    assert_refused(prune(last, out, ok=False), words)
    for k in (2, 13):
        assert_refused(prune(last, out, "--unpruned-heads", k, ok=False), words, f"but is {k}.")
    exported = run("fairseq_dsp.cli.export", "--format", "dense", last, out, folder=tmp_path)
    assert_refused(exported, words)
    assert_refused(generate(data, last, folder=tmp_path, ok=False), words)
    with pytest.raises(fairseq_dsp.Refusal, match="must say how many heads"):
        fairseq_dsp.load(last, data)
    assert not out.exists()
    chosen = ["--model-overrides", "{'unpruned_heads': 4}"]
    prune(last, tmp_path / "four.pt", "--unpruned-heads", 4)
    ours, theirs = (
        generate(data, path, *more, folder=tmp_path) for path, more in ((last, chosen), (tmp_path / "four.pt", []))
    )
    assert ours.hypotheses() == theirs.hypotheses()


def test_an_average_keeps_the_order(nested: Path, tmp_path: Path):
    done = run(
        AVERAGE, tmp_path / "mean.pt", nested / "checkpoint_last.pt", nested / "checkpoint_last.pt", folder=tmp_path
    )
    assert done.code == 0, done.err
    for name, source in (("mean", tmp_path / "mean.pt"), ("last", nested / "checkpoint_last.pt")):
        prune(source, tmp_path / f"{name}-small.pt", "--unpruned-heads", 5)
    ours, theirs = (load(tmp_path / f"{name}-small.pt")["model"] for name in ("mean", "last"))
    assert different(ours, theirs) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--unpruned-heads", "9..4"], "must be a range from a number above 0 to a larger one, but is 9..4"),
        (["--unpruned-heads", "3..13"], "must be a range within 1 to 12"),
        (["--unpruned-heads", "3..x"], "must be a whole number, but is '3..x'"),
        (
            ["--unpruned-heads", "1..9", "--cross-floor", "layer"],
            "`--cross-floor layer` must fit the budget of 1 heads",
        ),
        (["--unpruned-heads", "3..9", "--head-selection", "fixed"], "may be a range for dsp, ste, simple alone"),
        (["--unpruned-heads", 5, "--sandwich"], "`--sandwich` must come with a range of budgets"),
    ],
)
def test_a_range_that_is_none_is_one_sentence(flags: list, words: str, data: Path, tmp_path: Path):
    assert_refused(train(data, tmp_path / "save", *QUIET, *flags, "--max-update", 2, ok=False), words)


def test_the_recipe_needs_no_word_of_the_window_and_another_range_is_another_training(data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, *RANGE, "--max-update", 8)
    assert load(tmp_path / "save/checkpoint_last.pt")["cfg"]["model"].cooldown_updates == 3
    done = train(data, tmp_path / "save", *QUIET, "--unpruned-heads", "4..12", "--max-update", 10, ok=False)
    assert_refused(done, "`--unpruned-heads` must stay 3..12", reasons=len(done.refusals))
