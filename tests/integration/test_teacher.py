"""`--teacher` and `--distillation`: what a trained model says is learned beside the target, by a choice and after a cut."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from commands import OURS, PLUGIN, QUIET, VALIDATE, assert_refused, budget, different, load, prune, run, train
from models import build

from fairseq_dsp.plugin.teacher import Teacher, objections_to_vocabulary

HALF = ["--max-update", 6]


def tensors_of(path: Path) -> dict:
    state = load(path)
    return {"model": state["model"], "optimizer": state["last_optimizer_state"]}


def taught(dense: Path, *more: object) -> list[object]:
    return [*QUIET, *budget(5, cooldown=4), "--finetune-from-model", dense, "--teacher", dense, *more]


@pytest.mark.parametrize("method", ["dsp", "ste", "lagrangian", "fixed"])
def test_every_method_may_have_one_and_no_checkpoint_holds_it(method: str, dense: Path, data: Path, tmp_path: Path):
    flags = [*QUIET, "--unpruned-heads", 5, "--head-selection", method, "--finetune-from-model", dense, *HALF]
    train(data, tmp_path / "alone", *flags)
    done = train(data, tmp_path / "taught", *flags, "--teacher", dense, "--distillation", 0.5)
    ours, alone = (load(tmp_path / name / "checkpoint_last.pt") for name in ("taught", "alone"))
    assert ours["model"].keys() == alone["model"].keys()
    assert not ours.get("criterion")
    assert different(ours["model"], alone["model"])
    assert all(value > 0 for value in done.logged("teacher_kl"))
    assert all(value >= 0 for value in done.logged("teacher_wall"))
    prune(tmp_path / "taught/checkpoint_last.pt", tmp_path / "small.pt")


def test_a_student_that_is_its_teacher_has_nothing_to_learn(dense: Path, data: Path, tmp_path: Path):
    flags = [
        *QUIET,
        "--unpruned-heads",
        12,
        "--head-selection",
        "fixed",
        "--dropout",
        0,
        "--finetune-from-model",
        dense,
    ]
    done = train(data, tmp_path / "save", *flags, "--teacher", dense, "--distillation", 1, "--lr", 0, "--max-update", 2)
    assert done.logged("teacher_kl")
    assert max(done.logged("teacher_kl")) < 1e-3
    assert max(done.logged("gnorm")) < 1e-3


def test_what_is_left_after_a_cut_is_taught_by_the_stock_task_too(dense: Path, data: Path, tmp_path: Path):
    prune(dense, tmp_path / "small.pt", "--layout", "enc:00.10/dec:00.01/cross:10.01")
    start = ["--head-layout", tmp_path / "small.pt", "--finetune-from-model", tmp_path / "small.pt", "--teacher", dense]
    parts = {"arch": OURS["arch"], "criterion": OURS["criterion"]}
    done = train(data, tmp_path / "save", *QUIET, *start, *HALF, stock=True, **parts)
    assert done.logged("teacher_kl")
    assert sum(name.endswith("kept_mask") for name in load(tmp_path / "save/checkpoint_last.pt")["model"]) == 6
    lost = ["--teacher", tmp_path / "none.pt", "--max-update", 9]
    done = train(data, tmp_path / "other", *QUIET, *start[:4], *lost, ok=False, stock=True, **parts)
    assert_refused(done, "`--teacher`: the checkpoint must be a file")


def test_a_run_that_was_stopped_equals_one_that_was_not(dense: Path, data: Path, tmp_path: Path):
    flags = taught(dense, "--distillation", 0.3)
    train(data, tmp_path / "whole", *flags, "--max-update", 6)
    for update in (3, 6):
        train(data, tmp_path / "parts", *flags, "--max-update", update)
    ours, theirs = (tensors_of(tmp_path / name / "checkpoint_last.pt") for name in ("parts", "whole"))
    assert different(ours, theirs) == []


def test_validation_is_that_of_the_target_alone_and_needs_no_teacher(dense: Path, data: Path, tmp_path: Path):
    teacher = tmp_path / "teacher.pt"
    shutil.copy(dense, teacher)
    flags = [*budget(5, cooldown=4), "--finetune-from-model", dense, "--teacher", teacher, "--max-epoch", 1]
    done = train(data, tmp_path / "save", *flags, "--no-epoch-checkpoints")
    (logged,) = done.logged("nll_loss", "valid")
    teacher.unlink()
    arguments = [data, *PLUGIN, "--path", tmp_path / "save/checkpoint_last.pt", "--cpu", "--batch-size", 25]
    arguments += ["--task", "translation"]
    again = run(VALIDATE, *arguments, "--num-workers", 0, "--required-batch-size-multiple", 1, folder=tmp_path)
    assert again.code == 0, again.err
    assert again.logged("nll_loss", "valid") == [pytest.approx(logged, abs=2e-3)]


def test_what_cannot_teach_is_one_sentence(dense: Path, data: Path, tmp_path: Path):
    state = load(dense)
    state["model"]["encoder.embed_tokens.weight"] = state["model"]["encoder.embed_tokens.weight"][:-1]
    torch.save(state, tmp_path / "words.pt")
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    (tmp_path / "save").mkdir()
    shutil.copy(dense, tmp_path / "save/mine.pt")
    start = [*QUIET, *budget(5), *HALF]
    for flags, words in (
        (["--teacher", tmp_path / "none.pt"], "`--teacher`: the checkpoint must be a file"),
        (["--teacher", tmp_path / "broken.pt"], "`--teacher`: the checkpoint must be whole"),
        (["--teacher", tmp_path / "words.pt"], "`--teacher` must have the vocabularies of the model"),
        (["--teacher", tmp_path / "save/mine.pt"], "`--teacher` must not lie in `--save-dir`"),
        (["--teacher", dense, "--distillation", 0], "`--distillation` must be above 0 and at most 1, but is 0.0."),
        (["--teacher", dense, "--distillation", 1.5], "`--distillation` must be above 0 and at most 1, but is 1.5."),
        (["--distillation", 0.5], "`--distillation` needs a trained model"),
        (["--teacher", dense, "--ignore-prefix-size", 1], "`--ignore-prefix-size` must be 0 with `--teacher`"),
    ):
        assert_refused(train(data, tmp_path / "save", *start, *flags, ok=False), words)
    assert [path.name for path in (tmp_path / "save").iterdir()] == ["mine.pt"]


def test_one_that_translates_the_other_way_is_refused_and_one_of_other_names_is_logged(
    dense: Path, data: Path, tmp_path: Path
):
    """Its dictionaries are as large, as with one dictionary for both languages."""
    state = torch.load(dense, weights_only=False)
    for name, pair in {"turned": ("bb", "aa"), "other": ("aa", "other")}.items():
        state["cfg"]["task"]["source_lang"], state["cfg"]["task"]["target_lang"] = pair
        torch.save(state, tmp_path / f"{name}.pt")
    start = [*QUIET, *budget(5, cooldown=4), "--finetune-from-model", dense, *HALF]
    done = train(data, tmp_path / "save", *start, "--teacher", tmp_path / "turned.pt", ok=False)
    assert_refused(done, "`--teacher` must translate aa-bb", "translates bb-aa", reasons=1)
    done = train(data, tmp_path / "save", *start, "--teacher", tmp_path / "other.pt")
    assert "was trained on aa-other, and this training is on aa-bb" in done.err + done.out


def test_an_adaptive_softmax_cannot_teach_for_it_says_nothing_of_every_word():
    teacher = Teacher(build(adaptive_softmax_cutoff="5,9", arch="transformer", decoder_input_dim=12))
    words = {side: len(getattr(teacher.model, side).embed_tokens.weight) for side in ("encoder", "decoder")}
    (reason,) = objections_to_vocabulary("big.pt", teacher, words)
    assert reason == "`--teacher` must have a plain softmax, but that of big.pt is adaptive."
    assert objections_to_vocabulary("big.pt", Teacher(build(arch="transformer")), words) == []


def test_one_that_is_lost_new_or_weighed_otherwise_is_refused_where_training_goes_on(
    dense: Path, data: Path, tmp_path: Path
):
    teacher = tmp_path / "teacher.pt"
    shutil.copy(dense, teacher)
    train(data, tmp_path / "save", *taught(teacher, "--max-update", 2))
    train(data, tmp_path / "alone", *QUIET, *budget(5, cooldown=4), "--max-update", 2)
    longer = ["--max-update", 4]
    for save, flags, words in (
        ("save", [*QUIET, *budget(5, cooldown=4), *longer], "`--teacher` must be given to go on from"),
        ("save", taught(teacher, *longer, "--distillation", 0.9), "`--distillation` must stay 0.5"),
        ("alone", [*QUIET, *budget(5, cooldown=4), "--teacher", teacher, *longer], "`--teacher` must not be given"),
    ):
        assert_refused(train(data, tmp_path / save, *flags, ok=False), words)
    done = train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=4), "--teacher", dense, *longer)
    assert "goes on with" in done.out  # the same file elsewhere
    teacher.unlink()
    done = train(
        data, tmp_path / "save", *QUIET, *budget(5, cooldown=4), "--teacher", teacher, "--max-update", 6, ok=False
    )
    assert_refused(done, "`--teacher`: the checkpoint must be a file")
