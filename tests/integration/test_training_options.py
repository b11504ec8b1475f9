"""fairseq's options on what training keeps, reads, validates and ends with: as in stock fairseq, and with exactly K heads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import (
    PLUGIN,
    PREPROCESS,
    QUIET,
    TRAIN,
    VALIDATE,
    Result,
    assert_refused,
    budget,
    different,
    generate,
    heads_in,
    load,
    prune,
    run,
    train,
    training,
)


def state_of(path: Path) -> dict:
    state = load(path)
    return {"model": state["model"], "optimizer": state["last_optimizer_state"]}


def figures(done: Result, name: str, subsets: tuple[str, str] = ("valid", "valid1")) -> dict[str, list[float]]:
    """A figure of two sets that were validated in turn; fairseq writes "valid on" before the name of each."""
    both = done.logged(name, "valid")
    return {subset: both[number::2] for number, subset in enumerate(subsets)}


def test_old_checkpoints_go_and_those_kept_are_whole(data: Path, tmp_path: Path):
    """--keep-last-epochs and --keep-interval-updates; one of the kept ones is resumed in mid-epoch."""
    schedule = [*budget(5, cooldown=10), "--disable-validation", "--keep-last-epochs", 2, "--max-epoch", 4]
    schedule += ["--save-interval-updates", 3, "--keep-interval-updates", 2]  # 8 updates an epoch
    train(data, tmp_path / "whole", *schedule)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {
        "checkpoint3.pt", "checkpoint4.pt", "checkpoint_4_27.pt", "checkpoint_4_30.pt", "checkpoint_last.pt"
    }  # fmt: skip
    prune(tmp_path / "whole/checkpoint3.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5
    train(data, tmp_path / "rest", *schedule, "--restore-file", tmp_path / "whole/checkpoint_4_27.pt")
    ends = [state_of(tmp_path / f"{name}/checkpoint_last.pt") for name in ("whole", "rest")]
    assert different(*ends) == []


@pytest.mark.parametrize(("patience", "epochs"), [([], 4), (["--patience", 2], 3)])
def test_patience_ends_a_run_that_gets_no_better(patience: list, epochs: int, data: Path, tmp_path: Path):
    still = ["--lr", 0, "--max-epoch", 4, "--no-epoch-checkpoints"]  # every validation sees the same model
    done = train(data, tmp_path / "save", *budget(5, cooldown=4, lr=0), *still, *patience)
    losses = done.logged("loss", "valid")
    assert len(losses) == epochs
    assert len(set(losses)) == 1
    assert ("early stop" in done.out) is bool(patience)
    prune(tmp_path / "save/checkpoint_best.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5


def test_several_validation_sets_are_validated_whole_and_with_the_deployed_heads(data: Path, tmp_path: Path):
    """A fixed validation seed changes nothing of it, nor of the training in between."""
    shutil.copytree(data, tmp_path / "bin")
    for path in data.glob("test.*"):
        shutil.copy(path, tmp_path / "bin" / path.name.replace("test", "valid1", 1))
    options = [*budget(5, cooldown=1000), "--initial-temperature", 1, "--valid-subset", "valid,valid1"]
    options += ["--ignore-unused-valid-subsets"]  # fairseq looks for the files' names in the list of subsets
    options += ["--max-epoch", 2, "--no-epoch-checkpoints", "--batch-size-valid", 16]
    done = train(tmp_path / "bin", tmp_path / "save", *options)
    seeded = train(tmp_path / "bin", tmp_path / "seeded", *options, "--fixed-validation-seed", 11)
    assert done.logged("loss", "valid") == seeded.logged("loss", "valid")
    losses, sizes, changes = (figures(done, name) for name in ("loss", "bsz", "heads_changed"))
    for first, second in zip(losses["valid"], losses["valid1"], strict=True):
        assert first != second
    assert len(losses["valid"]) == 2
    assert sizes["valid"] == sizes["valid1"] == [pytest.approx(37 / 3, abs=0.1)] * 2  # no sentence is lost
    assert changes["valid"] == changes["valid1"]
    ends = [state_of(tmp_path / f"{name}/checkpoint_last.pt") for name in ("save", "seeded")]
    assert different(*ends) == []
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    arguments = [data, *PLUGIN, "--path", tmp_path / "pruned.pt", "--valid-subset", "valid,test", "--batch-size", 16]
    arguments += ["--task", "translation"]
    arguments += ["--required-batch-size-multiple", 1, "--cpu", "--num-workers", 0]
    small = run(VALIDATE, *arguments, folder=tmp_path)
    assert small.code == 0, small.err
    assert figures(small, "loss", ("valid", "test")) == {
        "valid": pytest.approx(losses["valid"][-1:], abs=2e-3),
        "test": pytest.approx(losses["valid1"][-1:], abs=2e-3),
    }


def test_shards_are_read_in_turn_and_resumed_in_the_middle_of_one(corpus: Path, data: Path, tmp_path: Path):
    for side in ("aa", "bb"):
        lines = (corpus / f"train.{side}").read_text().splitlines(keepends=True)
        (tmp_path / f"half.{side}").write_text("".join(lines[:100]))
    words = ["-s", "aa", "-t", "bb", "--destdir", tmp_path / "bin", "--trainpref", tmp_path / "half", "--workers", 1]
    words += ["--srcdict", data / "dict.aa.txt", "--tgtdict", data / "dict.bb.txt"]
    assert run(PREPROCESS, *words, folder=tmp_path).code == 0
    shards = Path(f"{data}:{tmp_path / 'bin'}")
    schedule = [*QUIET, *budget(5, cooldown=10), "--max-epoch", 3]
    done = train(shards, tmp_path / "whole", *schedule)
    assert done.logged("num_updates", "train") == [8, 12, 20]  # 200, 100 and 200 sentences
    train(shards, tmp_path / "parts", *schedule, "--max-update", 10)
    train(shards, tmp_path / "parts", *schedule)
    ends = [state_of(tmp_path / f"{name}/checkpoint_last.pt") for name in ("whole", "parts")]
    assert different(*ends) == []


ADAPTIVE = ["--adaptive-softmax-cutoff", "6,10", "--adaptive-softmax-dropout", 0.1]
ONE = ["--ddp-backend", "legacy_ddp"]  # the adaptive loss asks for it, also in one process


def test_an_adaptive_softmax_is_refused_where_the_criterion_cannot_train_it(data: Path, tmp_path: Path):
    done = train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=3), *ADAPTIVE, "--max-update", 6, ok=False)
    assert_refused(done, "`--adaptive-softmax-cutoff`", "`--criterion label_smoothed_cross_entropy_dsp`")
    assert not list(tmp_path.rglob("*.pt"))
    stock = train(data, tmp_path / "save", *QUIET, *ADAPTIVE, "--max-update", 6, ok=False, stock=True)
    assert stock.code == 1  # fairseq's criterion neither, and it says so by a traceback
    assert "modified by an inplace operation" in stock.err


@pytest.mark.parametrize("heads", ["learned", "given"])
def test_the_adaptive_loss_trains_given_heads_and_is_refused_where_they_are_learned(
    heads: str, pruned: Path, data: Path, tmp_path: Path
):
    options = budget(5) if heads == "learned" else ["--head-layout", pruned]
    parts = {"criterion": "adaptive_loss"} | ({} if heads == "learned" else {"task": "translation"})
    words = training(data, tmp_path / "save", *QUIET, *options, *ADAPTIVE, "--max-update", 6, *ONE, **parts)
    smoothing = words.index("--label-smoothing")  # an option of the other criterion
    done = run(TRAIN, *words[:smoothing], *words[smoothing + 2 :], folder=tmp_path)
    if heads == "learned":
        assert_refused(done, "`--criterion` must be label_smoothed_cross_entropy_dsp", "adaptive_loss")
        assert not list(tmp_path.rglob("*.pt"))
    else:
        assert done.code == 0, done.err[-2000:]
        assert heads_in(tmp_path / "save/checkpoint_last.pt") == 5
        losses = done.logged("loss")
        assert losses[-1] < losses[0]


def test_layers_are_not_dropped_from_a_rewritten_model(pruned: Path, data: Path, tmp_path: Path):
    overrides = ["--model-overrides", "{'encoder_layers_to_keep': '0'}"]
    assert_refused(generate(data, pruned, *overrides, folder=tmp_path, ok=False), "`--encoder-layers-to-keep`")


def test_fp16_trains_on_a_cpu_too(data: Path, tmp_path: Path):
    """Where stock fairseq, built without CUDA, cannot: our parameters are not flattened into one."""
    done = train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=6), "--fp16", "--max-update", 14)
    model = load(tmp_path / "save/checkpoint_last.pt")["model"]
    assert model["encoder.layers.0.fc1.weight"].half().float().equal(model["encoder.layers.0.fc1.weight"])
    assert done.logged("loss")[-1] < done.logged("loss")[0]
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5


@pytest.mark.parametrize(
    ("cooldown", "extra"), [(0, []), (0, ["--ema-fp32"]), (3, ["--checkpoint-activations"])], ids=str
)
def test_an_average_of_the_weights_is_kept_while_heads_are_fixed(
    cooldown: int, extra: list, data: Path, tmp_path: Path
):
    """fairseq copies the model for it after the first pass: with heads fixed from the start, or later, it has exactly K."""
    options = [*QUIET, *budget(5, cooldown), "--store-ema", "--ema-decay", 0.5, "--max-update", 6, *extra]
    train(data, tmp_path / "save", *options)
    state = load(tmp_path / "save/checkpoint_last.pt")
    average = state["extra_state"]["ema"]
    assert average["head_gates.fixed_mask"].sum() == 5 or cooldown
    assert different(average, state["model"])  # it lags behind
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5
