"""Two processes equal one with the same total batch, under fairseq's and under PyTorch's data parallelism."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from commands import (
    QUIET,
    TRAIN,
    Running,
    budget,
    different,
    free_port,
    heads_in,
    load,
    prune,
    train,
    training,
    weights,
)

WHOLE, HALVES = ["--batch-size", 200, "--dropout", 0], ["--batch-size", 100, "--dropout", 0]  # one update an epoch
EMPTY = "enc:00.11/dec:11.00/cross:00.01"
NO_NEURONS = f"{EMPTY}/ffn-enc:0000.1010/ffn-dec:1111.0000"


def pytorch_ddp_on_a_cpu() -> None:
    """fairseq-train, whose DistributedDataParallel is not given a GPU's number."""
    import fairseq_cli.train
    from fairseq.models import distributed_fairseq_model

    def wrap(module: Any, device_ids: Any = None, output_device: Any = None, **options: Any) -> Any:
        return torch.nn.parallel.DistributedDataParallel(module, **options)

    with mock.patch.object(distributed_fairseq_model, "DistributedDataParallel", wrap):
        fairseq_cli.train.cli_main()


def train_in_two(data: Path, save: Path, *extra: Any, backend: str = "legacy_ddp", **parts: Any) -> str:
    """Trains in two processes; returns the first one's log."""
    save.parent.mkdir(parents=True, exist_ok=True)
    processes = ["--distributed-backend", "gloo", "--distributed-init-method", f"tcp://127.0.0.1:{free_port()}"]
    processes += ["--distributed-world-size", 2, "--distributed-no-spawn", "--ddp-backend", backend]
    main = pytorch_ddp_on_a_cpu if backend in ("pytorch_ddp", "c10d") else TRAIN
    arguments = training(data, save, *extra, *processes, **parts)
    running = [Running(main, [*arguments, "--distributed-rank", rank], save.parent) for rank in (0, 1)]
    done = [each.wait() for each in running]
    assert [each.code for each in done] == [0, 0], "\n".join(each.err[-1500:] for each in done)
    return done[0].out


def distance(one: Path, other: Path) -> float:
    """Largest difference of any weight but the keys' biases, whose gradient is rounding alone."""
    ours, theirs = load(one)["model"], load(other)["model"]
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if not name.endswith("k_proj.bias") and ours[name].numel()]
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in names)


METHODS = {
    "lagrangian": ["--head-selection", "lagrangian", *budget(5, cooldown=4)],
    "gates": budget(5, cooldown=3),
    "thresholds": ["--head-selection", "site-threshold", *budget(5, cooldown=3)],
    "norms": ["--head-selection", "function-norm", "--norm-penalty", 0.1, *budget(5, cooldown=3)],
    "a range": [*budget("3..12", cooldown=3), "--sandwich", "--self-distillation", 0.5],
    "gates on what a layout leaves": [*budget(2, cooldown=3), "--head-layout", EMPTY],
    "empty sublayers": ["--head-layout", EMPTY],
    "no neuron in some layers": ["--head-layout", NO_NEURONS],
    "gates on neurons too": ["--budget", 6, *budget(6, cooldown=3)[2:], "--head-layout", NO_NEURONS],
    "sublayers": ["--prune", "sublayers", "--budget", 4, *budget(4, cooldown=3)[2:]],
    "no head at all": ["--head-selection", "fixed", "--unpruned-heads", 0],
}


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What one process trains by a method, however often it is asked for."""

    @functools.cache
    def trained(method: str) -> Path:
        save = tmp_path_factory.mktemp("alone") / "save"
        train(data, save, *QUIET, *METHODS[method], "--max-update", 5, *WHOLE)
        return save / "checkpoint_last.pt"

    return trained


@pytest.mark.parametrize(
    ("backend", "method"),
    [
        ("pytorch_ddp", "gates"),  # the stricter of the two
        ("pytorch_ddp", "gates on what a layout leaves"),
        ("pytorch_ddp", "a range"),  # several passes of an update, each with other heads
        ("legacy_ddp", "a range"),
        ("pytorch_ddp", "lagrangian"),  # variables beside the importance
        ("pytorch_ddp", "norms"),  # measured in each
        ("pytorch_ddp", "thresholds"),
        ("c10d", "empty sublayers"),  # another name of it
        ("pytorch_ddp", "no head at all"),
        ("pytorch_ddp", "no neuron in some layers"),
        ("pytorch_ddp", "gates on neurons too"),
        ("pytorch_ddp", "sublayers"),
        ("legacy_ddp", "gates"),
        pytest.param("legacy_ddp", "gates on what a layout leaves", marks=pytest.mark.slow),
        pytest.param("legacy_ddp", "empty sublayers", marks=pytest.mark.slow),
        ("no_c10d", "no head at all"),  # another name of that
    ],
)
def test_two_processes_train_what_one_trains_with_the_same_total_batch(
    backend: str, method: str, alone: Callable[[str], Path], data: Path, tmp_path: Path
):
    train_in_two(data, tmp_path / "two", *QUIET, *METHODS[method], "--max-update", 5, *HALVES, backend=backend)
    assert distance(alone(method), tmp_path / "two/checkpoint_last.pt") < 1e-3


@pytest.mark.slow
def test_they_differ_no_more_than_in_stock_fairseq(data: Path, tmp_path: Path):
    """The yardstick of the tolerance above."""
    extra = [*QUIET, "--max-update", 5]
    train(data, tmp_path / "one", *extra, *WHOLE, stock=True)
    train_in_two(data, tmp_path / "two", *extra, *HALVES, stock=True)
    assert distance(*(tmp_path / f"{name}/checkpoint_last.pt" for name in ("one", "two"))) < 1e-3


@pytest.mark.parametrize("update", [pytest.param(3, marks=pytest.mark.slow), 7])
def test_two_processes_resume_to_the_same_end_bit_for_bit(update: int, data: Path, tmp_path: Path):
    extra = [*QUIET, *budget(5, cooldown=6), "--max-update"]  # 4 updates an epoch
    train_in_two(data, tmp_path / "whole", *extra, 9)
    train_in_two(data, tmp_path / "parts", *extra, update)
    log = train_in_two(data, tmp_path / "parts", *extra, 9)
    assert f"@ {update} updates)" in log
    states = [load(tmp_path / f"{name}/checkpoint_last.pt") for name in ("whole", "parts")]
    for part in ("model", "last_optimizer_state"):
        assert different(*(state[part] for state in states)) == []
    prune(tmp_path / "parts/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5


def test_two_processes_validate_every_sentence_and_keep_bleu_numbers(data: Path, tmp_path: Path):
    extra = [
        "--no-epoch-checkpoints",
        *budget(5, cooldown=3),
        "--max-update",
        4,
        "--batch-size-valid",
        10,
        "--eval-bleu",
    ]
    extra += ["--eval-bleu-args", '{"beam": 1, "max_len_b": 12}', "--best-checkpoint-metric", "bleu"]
    log = train_in_two(data, tmp_path / "save", *extra, "--maximize-best-checkpoint-metric")
    assert "| valid |" in log
    log = train_in_two(data, tmp_path / "save", *extra, "--maximize-best-checkpoint-metric", "--max-update", 6)
    assert "@ 4 updates)" in log


def test_two_processes_start_from_a_dense_checkpoint(dense: Path, data: Path, tmp_path: Path):
    extra = [*QUIET, *budget(5, cooldown=2), "--pipelined", "--finetune-from-model", dense, "--max-update", 3]
    train_in_two(data, tmp_path / "save", *extra, backend="pytorch_ddp")
    before, after = weights(dense), weights(tmp_path / "save/checkpoint_last.pt")
    assert all(after[name].equal(value) for name, value in before.items())
