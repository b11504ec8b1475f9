"""What fairseq's log says of the heads while training: kept by type, changed since the last validation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import HEADS, Result, budget, heads_in, prune, train
from fairseq.logging import progress_bar

BY_TYPE = ["heads_enc", "heads_dec", "heads_cross"]


def figures(text: str, prefix: str) -> list[dict[str, Any]]:
    """Every line of fairseq's JSON log with the prefix (`train_inner`, `valid`, `train`)."""
    lines = re.findall(rf"\| {prefix} \| (\{{.*\}})$", text, re.MULTILINE)
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("method", ["dsp", "hard-concrete"])
def test_heads_by_type_and_changes_are_in_every_line(method: str, data: Path, tmp_path: Path):
    options: list[Any] = budget(5, cooldown=12) if method == "dsp" else ["--unpruned-heads", 5, "--importance-lr", 0.2]
    done = train(
        data, tmp_path / "save", "--head-selection", method, *options, "--max-epoch", 3, "--log-format", "json"
    )
    inner = figures(done.out, "train_inner")
    assert len(inner) == 24
    for prefix, lines in (("", inner), ("valid_", figures(done.out, "valid")), ("train_", figures(done.out, "train"))):
        for line in lines:
            assert sum(float(line[f"{prefix}{name}"]) for name in BY_TYPE) == 5
            changed = float(line[f"{prefix}heads_changed"])
            assert changed % 2 == 0
            assert changed <= 10
    # as many as changed by the last update of an epoch have changed when it is validated; a new count begins then
    last = [float(line["heads_changed"]) for line in inner[7::8]]
    assert [float(line["valid_heads_changed"]) for line in figures(done.out, "valid")] == last
    assert any(last)
    choosing = [line for line in inner if method != "dsp" or int(line["num_updates"]) < 12]
    for line in choosing:
        assert 0 < float(line["importance_live"]) <= 1
        assert 0 <= float(line["importance_snr"]) <= 1
        assert 0 <= float(line["heads_swapped"]) <= 5
    fixed = [line for line in inner if method == "dsp" and int(line["num_updates"]) > 12]
    assert all(line.get("importance_live") is None for line in fixed)
    if method == "dsp":  # fixed at update 12, in the second epoch
        assert {float(line["heads_changed"]) for line in inner[16:]} == {0}


PROGRESS = [*BY_TYPE, "heads_changed", *(name.replace("heads", "importance") for name in BY_TYPE)]


def tracked_training(data: Path, save: Path, *options: Any) -> tuple[Result, dict[str, dict[int, dict[str, float]]]]:
    """A short training, and what its log says of the heads: tag, then update, then figure."""
    # fixed at the seventh update, in the first epoch: the temperature falls to 0, heads change no more
    done = train(data, save, *budget(5, cooldown=7), "--max-epoch", 2, "--log-format", "json", *options)
    said: dict[str, dict[int, dict[str, float]]] = {}
    for tag, prefix, names in (
        ("train_inner", "", [*PROGRESS, "temperature"]),
        ("train", "train_", [*PROGRESS, "temperature"]),
        ("valid", "valid_", PROGRESS),
    ):
        for line in figures(done.out, tag):
            values = {name: float(line[f"{prefix}{name}"]) for name in names}
            said.setdefault(tag, {})[int(line[f"{prefix}num_updates"])] = values
    assert [len(said[tag]) for tag in ("train_inner", "train", "valid")] == [16, 2, 2]
    assert said["train_inner"][1]["temperature"] > said["train_inner"][16]["temperature"] == 0
    assert any(line["heads_changed"] for line in said["train_inner"].values())
    return done, said


def test_they_reach_tensorboard(data: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, said = tracked_training(data, tmp_path / "save", "--tensorboard-logdir", tmp_path / "events")
    for tag, lines in said.items():
        events = EventAccumulator(str(tmp_path / "events" / tag)).Reload()
        for name in lines[16]:
            found = {event.step: event.value for event in events.Scalars(name)}
            assert found == pytest.approx({update: line[name] for update, line in lines.items()}, rel=1e-3, abs=1e-6)


def test_they_reach_weights_and_biases(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def log(values: dict[str, Any], step: int) -> None:
        print("| wandb |", json.dumps([step, values]))

    # what fairseq calls of the package
    account = SimpleNamespace(init=lambda **options: print("| wandb project |", options["project"]), log=log)
    account.config = SimpleNamespace(update=lambda *_, **__: None)
    monkeypatch.setattr(progress_bar, "wandb", account)
    done, said = tracked_training(data, tmp_path / "save", "--wandb-project", "heads")
    assert "| wandb project | heads" in done.out
    given: dict[str, dict[int, float]] = {}
    for line in re.findall(r"^\| wandb \| (.*)$", done.out, re.MULTILINE):
        step, values = json.loads(line)
        for name, value in values.items():
            given.setdefault(name, {})[step] = value
    for tag, lines in said.items():
        for name in lines[16]:
            expected = {update: line[name] for update, line in lines.items()}
            assert given[f"{tag}/{name}"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_they_are_taken_only_when_they_are_printed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fairseq_dsp.modules.gates import HeadGates

    whole = HeadGates.layout
    monkeypatch.setattr(HeadGates, "layout", lambda gates: print("| looked") or whole(gates))
    options = [*budget(5), "--max-epoch", 2, "--log-interval", 4]
    done = train(data, tmp_path / "save", *options)
    # at the start, at updates 4, 8, 12 and 16, at two validations
    assert done.out.count("| looked") == 7


@pytest.mark.parametrize(
    "options",
    [
        ["--head-selection", "hard-concrete", "--unpruned-heads", "auto", "--l0-penalty", "2"],
        ["--head-selection", "site-threshold", "--budget", "auto", "--threshold-target", "0.3"],
    ],
    ids=lambda options: options[1],
)
def test_a_method_with_a_number_of_its_own_trains_and_rewrites(options: list[str], data: Path, tmp_path: Path):
    options = [*options, "--importance-lr", "0.5", "--max-epoch", "3", "--log-format", "json"]
    done = train(data, tmp_path / "save", *options)
    kept = sum(int(float(figures(done.out, "valid")[-1][f"valid_{name}"])) for name in BY_TYPE)
    assert kept < HEADS  # at this price
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "own.pt")
    assert heads_in(tmp_path / "own.pt") == kept
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "seven.pt", "--unpruned-heads", 7)
    assert heads_in(tmp_path / "seven.pt") == 7
