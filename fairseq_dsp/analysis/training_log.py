"""Reads what fairseq logged while training: temperature, importance and its gradient, heads kept by type, heads changed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field

from fairseq_dsp.units.layout import STACKS

FIGURES = (
    "temperature", "importance_gnorm", "heads_changed",
    *(f"{name}_{stack}" for name in ("importance", "heads") for stack in STACKS),
)  # fmt: skip

# 2026-01-31 12:00:00 | INFO | train_inner | epoch 001:     10 / 40 loss=3.2, temperature=0.1, num_updates=10
# 2026-01-31 12:00:00 | INFO | train_inner | {"epoch": 1, "loss": "3.2", "temperature": "0.1", "num_updates": "10"}
_LINE = re.compile(r"\| (train_inner|train) \| (.*)$", re.MULTILINE)
# of the options, with which fairseq begins its log
_COOLDOWN = re.compile(r"\bcooldown_updates['\"]?[=:] ?(\d+)")
_SAMPLING = re.compile(r"\bkeep_sampling['\"]?[=:] ?True")
_FIGURE = re.compile(r"(?:^|[ |])([a-z_-]+)[= ]([-+.\deE]+|nan|inf)(?=$|[, |])")


@dataclass(frozen=True)
class TrainingLog:
    """Figures over training.

    Attributes:
        figures: name of a figure -> [(number of updates done, value)], in the order of updates; only figures that the log has.
        fixed_at: the update at which the heads were fixed; None where they never were.
    """

    figures: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    fixed_at: int | None = None


def read_log(text: str) -> TrainingLog:
    """Reads a training log of fairseq's formats `simple` and `json`; of others (`tqdm`) the line an epoch.

    A training that was resumed logs some updates twice: the last word counts. What is not finite, such as the gradient norm
    of an update that fp16 skipped, is left out.
    """
    lines = _LINE.findall(text)
    tag = "train_inner" if any(kind == "train_inner" for kind, _ in lines) else "train"
    series: dict[str, dict[int, float]] = {name: {} for name in FIGURES}
    for values in (_values(content) for kind, content in lines if kind == tag):
        update = values.get("num_updates", math.nan)
        for name in FIGURES:
            if math.isfinite(update) and math.isfinite(values.get(name, math.nan)):
                series[name][int(update)] = values[name]
    figures = {name: sorted(points.items()) for name, points in series.items() if points}
    return TrainingLog(figures, _fixed_at(text, figures))


def _fixed_at(text: str, figures: dict[str, list[tuple[int, float]]]) -> int | None:
    """By the options, and where they leave the cooldown to its default by the temperature, which is 0 from then on."""
    last = max((points[-1][0] for points in figures.values()), default=0)
    if (given := _COOLDOWN.findall(text)) and not _SAMPLING.search(text):
        return int(given[-1]) if int(given[-1]) <= last else None  # a resumed run's last word counts
    return next((update for update, value in figures.get("temperature", []) if value == 0), None)


def _values(content: str) -> dict[str, float]:
    """All numbers of a line by name; a line that was cut has fewer."""
    pairs = _FIGURE.findall(content)
    if content.startswith("{"):
        try:
            pairs = list(json.loads(content).items())
        except ValueError:
            return {}
    values = {}
    for name, value in pairs:
        try:
            values[name.removeprefix("train_")] = float(value)
        except (TypeError, ValueError):
            continue
    return values
