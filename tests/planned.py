"""Plans of reproduce.py for tests, and what is asked of their commands."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/translation"))

from reproduction import plan, presets
from reproduction.commands import Setup
from reproduction.steps import Run, Step

SEEDS = pytest.mark.parametrize("seed", [1, 2])
TEMPERATURES = ("--initial-temperature", "--final-temperature")
BEST, LAST = "checkpoint_best.pt", "checkpoint_last.pt"


def runs(*methods: str, budgets: tuple[Any, ...] = (4, 2), **settings: Any) -> dict[str, Run]:
    """The plan of two seeds by the runs' names; `settings` also takes fields of the preset."""
    fields = {field.name for field in dataclasses.fields(presets.Preset)}
    preset = dataclasses.replace(
        presets.PRESETS["smoke"], **{name: value for name, value in settings.items() if name in fields}
    )
    shared: dict[str, Any] = {"gpu": False, "precision": "fp32"}
    shared |= {name: value for name, value in settings.items() if name not in fields}
    shared.setdefault("words", (50, 60))
    whole = Setup(preset, presets.schedule(preset, 100), "aa", "bb", "subword_nmt", **shared)
    made = plan.plan(whole, methods, budgets, (1, 2))
    assert len({run.name for run in made}) == len(made)
    for number, run in enumerate(made):
        assert set(run.needs) <= {before.name for before in made[:number]}
    return {run.name: run for run in made}


def value(step: Step, option: str) -> str:
    """What stands behind an option, which is given once."""
    assert step.words.count(option) == 1, (option, step.words)
    return step.words[step.words.index(option) + 1]


def checkpoint(name: str, file: str) -> str:
    return f"runs/{name}/checkpoints/{file}"


def assert_translated(run: Run, checkpoint: str) -> None:
    """The last command translates what the run deploys."""
    step = run.steps[-1]
    assert step.words[0] == "fairseq-generate"
    assert value(step, "--path") == run.deployed == checkpoint


def assert_cut(step: Step, source: str, target: str, *options: str) -> None:
    assert step.words == ("fairseq-dsp-prune", source, target, *options)
    assert step.output == target
