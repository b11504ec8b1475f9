"""Checkpoints as every fairseq has saved them: the same weights and heads come of each, or a sentence names what is in the way."""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import AVERAGE, PRUNE, Result, assert_refused, different, generate, load, prune, run
from fairseq.dataclass import configs
from fairseq.logging import meters
from fairseq.registry import REGISTRIES
from models import not_on_0_12_2
from omegaconf import DictConfig, OmegaConf
from omegaconf.nodes import BooleanNode, FloatNode, IntegerNode, StringNode

from fairseq_dsp.guards.versions import config_of_checkpoint

EXPORT, SCORE, BENCH = (f"fairseq_dsp.cli.{name}" for name in ("export", "score", "bench"))
for _name in (EXPORT, SCORE, BENCH):
    importlib.import_module(_name)  # before any fork

_NODES = {bool: BooleanNode, int: IntegerNode, float: FloatNode, str: StringNode}


def typed(options: Any) -> DictConfig:
    """A group of options whose values know their types."""
    items = options.items() if isinstance(options, dict) else vars(options).items()
    return DictConfig({name: _NODES.get(type(value), lambda same: same)(value) for name, value in items})


def as_omegaconf(state: dict[str, Any]) -> None:
    state["cfg"] = config_of_checkpoint(state["cfg"])


def as_typed_omegaconf(state: dict[str, Any]) -> None:
    as_omegaconf(state)
    for group in ("task", "model"):
        state["cfg"][group] = typed(load_group(state, group))
    criterion = REGISTRIES["criterion"]["dataclass_registry"]["label_smoothed_cross_entropy"]
    state["cfg"]["criterion"] = OmegaConf.structured(criterion(sentence_avg=False))
    state["cfg"]["ema"] = OmegaConf.structured(configs.EMAConfig)


def load_group(state: dict[str, Any], name: str) -> Any:
    group = state["cfg"][name]
    return OmegaConf.to_container(group) if OmegaConf.is_config(group) else group


def with_typed_groups_in_a_dict(state: dict[str, Any]) -> None:
    state["cfg"]["model"] = typed(state["cfg"]["model"])


def with_a_task_without_dataclass(state: dict[str, Any]) -> None:
    state["cfg"]["task"] = argparse.Namespace(**state["cfg"]["task"])


def with_a_criterion_without_dataclass(state: dict[str, Any]) -> None:
    state["cfg"]["criterion"] = argparse.Namespace(**state["cfg"]["criterion"])


def with_both_in_omegaconf(state: dict[str, Any]) -> None:
    with_a_task_without_dataclass(state)
    as_omegaconf(state)


def with_a_backend_of_another_time(state: dict[str, Any]) -> None:
    state["cfg"]["distributed_training"]["ddp_backend"] = "simple"


def as_namespace(state: dict[str, Any], **more: Any) -> None:
    """As fairseq before 1.0 saved them."""
    options = {**vars(state["cfg"]["model"]), "source_lang": "aa", "target_lang": "bb", **more}
    options.pop("_name", None)
    state["args"], state["cfg"] = argparse.Namespace(**options), None


def as_namespace_with_values_of_another_time(state: dict[str, Any]) -> None:
    odd = {"ddp_backend": "simple", "log_format": "tensorboard", "fp16_init_scale": "much", "bpe": "my-bpe"}
    as_namespace(state, **odd, lr_scheduler="of-a-plug-in", lr="[0.1]")


def with_meters(state: dict[str, Any]) -> None:
    loss = meters.AverageMeter()
    loss.update(3.0)
    state["extra_state"]["train_meters"] = collections.OrderedDict(loss=loss, wps=meters.TimeMeter())


FORMS = [
    as_omegaconf, as_typed_omegaconf, with_typed_groups_in_a_dict, with_a_task_without_dataclass,
    with_a_criterion_without_dataclass, with_both_in_omegaconf, with_a_backend_of_another_time, as_namespace,
    as_namespace_with_values_of_another_time, with_meters,
]  # fmt: skip


def written(source: Path, change: Any, target: Path) -> Path:
    state = load(source)
    change(state)
    torch.save(state, target)
    return target


def commands(path: Path, data: Path, folder: Path) -> dict[str, Result]:
    """What every command of ours that reads a checkpoint makes of it."""
    score = [
        data,
        "--path",
        path,
        "--scorer",
        "gradient",
        "--output",
        folder / "scores.json",
        "--cpu",
        "--subset",
        "valid",
    ]
    bench = ["--path", path, *"--workloads encoder --batch-size 4 --pairs 1 --warmup 0 --cpu --no-memory".split()]
    arguments = {
        PRUNE: [path, folder / "pruned.pt"],
        AVERAGE: [folder / "mean.pt", path, path],
        EXPORT: [path, folder / "native.pt", "--format", "dense"],
        SCORE: score,
        BENCH: [*bench, "--data", data],
    }
    return {command: run(command, *rest, folder=folder) for command, rest in arguments.items()}


@not_on_0_12_2  # whose OmegaConf knows no flag for objects
@pytest.mark.parametrize("change", FORMS)
def test_options_in_a_form_of_another_time_are_those_of_today(change: Any, trained, pruned, tmp_path):
    path = written(trained, change, tmp_path / "in.pt")
    prune(path, tmp_path / "out.pt")
    assert different(load(tmp_path / "out.pt")["model"], load(pruned)["model"]) == []
    assert "train_meters" not in load(tmp_path / "out.pt")["extra_state"]
    assert run(EXPORT, path, tmp_path / "native.pt", "--format", "dense", folder=tmp_path).code == 0
    assert "Namespace" not in str(load(tmp_path / "native.pt")["cfg"])  # which stock fairseq could not read


@not_on_0_12_2
def test_and_every_command_reads_them(trained, data, tmp_path):
    path = written(trained, with_both_in_omegaconf, tmp_path / "in.pt")
    for done in commands(path, data, tmp_path).values():
        assert done.code == 0, done.err[-2000:]
    texts = [generate(data, tmp_path / f"{name}.pt", folder=tmp_path).hypotheses() for name in ("pruned", "native")]
    assert texts[0] == texts[1]


def test_values_that_this_fairseq_does_not_know_are_left_out_by_name(trained, tmp_path):
    path = written(trained, as_namespace_with_values_of_another_time, tmp_path / "in.pt")
    done = prune(path, tmp_path / "out.pt")
    (line,) = (line for line in done.out.splitlines() + done.err.splitlines() if "left out" in line)
    for word in ("`--ddp-backend` simple", "`--log-format`", "`--fp16-init-scale` much", "`--bpe`", "`--lr-scheduler`"):
        assert word in line
    assert "`--lr` " not in line
    assert "Overrides" not in done.out + done.err  # fairseq's list of all options
    assert load(tmp_path / "out.pt")["cfg"]["distributed_training"]["ddp_backend"] == "pytorch_ddp"


def test_but_not_a_value_that_the_sentences_depend_on(trained, tmp_path):
    path = written(trained, lambda state: as_namespace(state, left_pad_source="perhaps"), tmp_path / "in.pt")
    assert_refused(prune(path, tmp_path / "out.pt", ok=False), "options and history must be as fairseq writes them")


def test_meters_are_read_by_the_name_that_fairseq_0_6_to_0_8_gave_them(trained, data, tmp_path, monkeypatch):
    for kind in (meters.AverageMeter, meters.TimeMeter, meters.StopwatchMeter):
        monkeypatch.setattr(kind, "__module__", "fairseq.meters")
    path = written(trained, with_meters, tmp_path / "in.pt")
    monkeypatch.undo()
    assert b"fairseq.meters" in path.read_bytes()
    found = load(path)["extra_state"]["train_meters"]["loss"]
    assert type(found) is meters.AverageMeter
    assert found.avg == 3
    prune(path, tmp_path / "out.pt")
    assert len(generate(data, path, folder=tmp_path).hypotheses()) == 37  # fairseq's own command


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (meters.SumMeter(), "fairseq.logging.meters.SumMeter"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        (print, "print"),
        (os.mkdir, "posix.mkdir"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_any_other_type_is_named_and_nobody_is_told_to_load_it_without_care(value, name, zipped, trained, tmp_path):
    state = load(trained)
    state["extra_state"]["more"] = value
    torch.save(state, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    done = prune(tmp_path / "in.pt", tmp_path / "out.pt", ok=False)
    assert_refused(done, "must be whole and hold no code", f"an object of the type {name}, which is not on the list")
    assert "weights_only" not in done.err
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("value", [configs.EMAConfig(), meters.AverageMeter()])
def test_an_object_for_a_value_is_refused_by_the_option(value, trained, tmp_path):
    def change(state: dict[str, Any]) -> None:
        state["cfg"]["model"].dropout = value

    done = prune(written(trained, change, tmp_path / "in.pt"), tmp_path / "out.pt", ok=False)
    assert_refused(done, "model.dropout", "numbers, text that refers to nothing")


def test_a_folder_and_what_is_no_file_are_refused_as_what_they_are(trained, data, tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "save.pt").mkdir()
    for name, words in (("save.pt", "is a folder"), ("pipe.pt", "is none"), ("nowhere.pt", "does not exist")):
        for done in commands(tmp_path / name, data, tmp_path).values():
            assert_refused(done, f"must be a file, but {tmp_path / name} {words}.")
