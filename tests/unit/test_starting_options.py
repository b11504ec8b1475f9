"""Which file fairseq will load, and what of a method is compared with what a checkpoint was trained for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fairseq_dsp import methods
from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods import METHODS, DifferentiableSubset
from fairseq_dsp.options.records import TrainingOptions
from fairseq_dsp.options.starting import find_start, objections_to_start

# A value that no option has by itself, by the type of the option.
OTHER: dict[str, Any] = {"bool": True, "float": 0.7, "int": 77, "str": "other"}


@pytest.fixture
def used(tmp_path: Path):
    """Objections to going on in a folder, from the options before and now."""

    def objections(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        state = {
            "cfg": {"model": argparse.Namespace(arch="dsp_transformer_tiny", unpruned_heads=3, **before)},
            "model": {"head_gates.importance": torch.zeros(4), "head_gates.fixed_mask": -torch.ones(4)},
            "optimizer_history": [{"num_updates": 9}],
            "last_optimizer_state": {},
            "extra_state": {"train_iterator": {"epoch": 2}},
        }
        torch.save(state, tmp_path / "checkpoint_last.pt")
        cfg = argparse.Namespace(arch="dsp_transformer_tiny", **{"unpruned_heads": 3, **now})
        return objections_to_start(TrainingOptions(save_dir=str(tmp_path)), cfg)

    return objections


@pytest.mark.parametrize(
    ("method", "option"), [(name, option) for name, method in METHODS.items() for option in method.options]
)
def test_every_option_that_a_method_declares_is_compared(method: str, option: str, used):
    assert used({"head_selection": method}, {"head_selection": method}) == []
    other = OTHER[next(field.type for field in fields(PruningConfig) if field.name == option).split(" ")[0]]
    (reason,) = used({"head_selection": method}, {"head_selection": method, option: other})
    assert f"`--{option.replace('_', '-')}` must not be given" in reason
    (reason,) = used({"head_selection": method, option: other}, {"head_selection": method})
    assert f"must stay {other}" in reason


def test_so_is_one_of_a_method_that_did_not_exist_when_this_was_written(used, monkeypatch):
    @dataclass(frozen=True)
    class Newcomer(DifferentiableSubset):
        name: ClassVar[str] = "newcomer"
        options: ClassVar[tuple[str, ...]] = (*DifferentiableSubset.options, "l0_penalty")

    monkeypatch.setitem(methods.METHODS, "newcomer", Newcomer)
    (reason,) = used({"head_selection": "newcomer"}, {"head_selection": "newcomer", "l0_penalty": 0.5})
    assert "`--l0-penalty` must not be given" in reason


def test_what_a_method_takes_by_itself_may_be_given_by_name(used):
    config = DifferentiableSubset.from_config(PruningConfig())
    named = {field.name: getattr(config, field.name) for field in fields(config) if field.name in config.options}
    assert set(named) == {
        "initial_temperature", "final_temperature", "cooldown_updates", "relaxation", "budget_schedule", "budget_start_updates",
    }  # fmt: skip
    assert used({}, {"head_selection": "dsp", **named}) == used({"head_selection": "dsp", **named}, {}) == []
    assert replace(PruningConfig(), **named) != PruningConfig()


def test_the_file_is_the_one_that_fairseq_loads(tmp_path: Path):
    last, named, dense = (tmp_path / name for name in ("save/checkpoint_last.pt", "named.pt", "dense.pt"))
    options: dict[str, Any] = {"save_dir": str(last.parent), "finetune_from_model": str(dense)}

    def found(**more: Any) -> Any:
        return find_start(TrainingOptions.of(argparse.Namespace(**{**options, **more})))

    assert found() is None
    dense.touch()
    assert found() == (str(dense), "finetune_from_model")
    named.touch()
    assert found(continue_once=str(named)) == (str(named), "continue_once")
    assert found(restore_file=str(named)) == (str(named), "restore_file")
    last.parent.mkdir()
    last.touch()
    assert found(continue_once=str(named)) == (str(last), "save_dir")
    assert found(restore_file=str(tmp_path / "save/../save/checkpoint_last.pt"))[1] == "save_dir"
    assert found(restore_file=str(tmp_path / "none.pt")) is None
    (tmp_path / "save/checkpoint_last-part.pt").touch()
    assert found(checkpoint_suffix="-part")[0].endswith("checkpoint_last-part.pt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", {"weights": 1}, {"model": [], "cfg": {}}])
def test_a_file_that_is_no_checkpoint_is_one_sentence(content: Any, tmp_path: Path):
    path = tmp_path / "checkpoint_last.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    reasons = objections_to_start(TrainingOptions(save_dir=str(tmp_path)), argparse.Namespace(unpruned_heads=3))
    assert len(reasons) == 1
    assert str(path) in reasons[0]


def test_options_that_point_elsewhere_are_not_followed(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    model = {"arch": "dsp_transformer_tiny", "unpruned_heads": "${oc.env:SECRET_TOKEN}"}
    torch.save({"model": {}, "cfg": {"model": model}}, tmp_path / "checkpoint_last.pt")
    (reason,) = objections_to_start(TrainingOptions(save_dir=str(tmp_path)), argparse.Namespace(unpruned_heads=3))
    assert "model.unpruned_heads" in reason
    assert "hunter2" not in reason
