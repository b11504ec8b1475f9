"""Finished arms of `choice`, a JSON line each, and the tables that compare them.

{"method": "dsp:relaxation=projection", "kept": 4, "seed": 1, "accuracy": 0.98, "loss": 0.12, "lookups": [1.0, 0.98, 1.0],
 "counts": {"enc 0": 0, …}, "layout": "enc:…/dec:…/cross:…", "seconds": 5.1, "setting": {…}, "versions": {…}}
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from fairseq_dsp.benchmark.arms import Arm
from fairseq_dsp.benchmark.choosing import Outcome, Setting
from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.version import __version__

_BEGIN = b'{"method"'
_LINE = {"method", "kept", "seed", "accuracy", "loss", "lookups", "counts", "layout", "setting"}


def line_of(setting: Setting, arm: Arm, k: int, seed: int, outcome: Outcome) -> dict[str, Any]:
    """What is kept of a finished arm; `lookups` are shares of right digits, `counts` the heads deployed at every site."""
    layout = outcome.layout
    return {
        "method": arm.spec,
        "kept": k,
        "seed": seed,
        "accuracy": outcome.accuracy,
        "loss": outcome.loss,
        "lookups": outcome.lookups,
        "counts": {f"{site.stack} {site.layer}": len(layout.units(site)) for site in layout.grid.sites},
        "layout": str(layout),
        "seconds": round(outcome.seconds, 2),
        "setting": asdict(setting),
        "versions": {"fairseq_dsp": __version__, "torch": str(torch.__version__)},
    }


def read_lines(path: str, cut: bool = False) -> list[dict[str, Any]]:
    """The finished arms of a file; none where there is no file. A last line that its writer did not finish is left out.

    Args:
        cut: removes such a line from the file too, so that the next begins a line.

    Raises:
        Refusal: another line is no arm, or the file cannot be read.
    """
    if not os.path.exists(path):
        return []
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise Refusal(f"`--json` must be a file, but {path} cannot be read: {error.strerror}.") from error
    whole = content.rfind(b"\n") + 1
    found = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            found.append(json.loads(line))
            if not _LINE <= found[-1].keys():
                raise ValueError
        except (ValueError, AttributeError):
            raise Refusal(
                f"`--json` must be a file of this command, but {path}, line {number} is none of its."
            ) from None
    if whole < len(content):
        if not found and not content.startswith(_BEGIN):
            raise Refusal(f"`--json` must be a file of this command, but {path}, line 1 is none of its.")
        if cut:
            os.truncate(path, whole)
    return found


def tables(
    lines: Sequence[dict[str, Any]], setting: Setting, arms: Sequence[Arm], budgets: Sequence[int], seeds: Sequence[int]
) -> list[Table]:
    """A table a budget: means over the seeds with standard errors, and differences to the first arm, paired by seed."""
    found = []
    for k in budgets:
        table = Table(title=f"{k} of {setting.grid.total} heads, {setting.variant}, from {setting.start}")
        columns = (
            "arm",
            "seeds",
            "accuracy",
            "loss",
            f"loss less {arms[0].label}'s",
            "better",
            "t, p(t), t-3",
            "enc/dec/cross",
        )
        for column in columns:
            table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=column != "arm")
        first = by_seed(lines, setting, arms[0], k, seeds)
        for arm in arms:
            runs = by_seed(lines, setting, arm, k, seeds)
            if not runs:
                continue
            differences = [run["loss"] - first[seed]["loss"] for seed, run in runs.items() if seed in first]
            table.add_row(
                arm.label,
                str(len(runs)),
                mean_and_error([run["accuracy"] for run in runs.values()]),
                mean_and_error([run["loss"] for run in runs.values()]),
                mean_and_error(differences, sign=True) if arm is not arms[0] and differences else "",
                f"{sum(d < 0 for d in differences)}/{len(differences)}" if arm is not arms[0] else "",
                " ".join(
                    f"{statistics.mean(each):.2f}" for each in zip(*(r["lookups"] for r in runs.values()), strict=True)
                ),
                "/".join(f"{statistics.mean(each):.1f}" for each in zip(*map(_by_type, runs.values()), strict=True)),
            )
        found.append(table)
    return found


def mean_and_error(values: Sequence[float], sign: bool = False) -> str:
    """The mean and its standard error, s / sqrt(n); of one value the value."""
    text = f"{statistics.mean(values):{'+' if sign else ''}.3f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def _by_type(run: dict[str, Any]) -> list[int]:
    return [count for count, _ in Layout.parse(run["layout"]).by_type().values()]


def is_line_of(line: dict[str, Any], setting: Setting, arm: Arm, k: int, seed: int) -> bool:
    """Whether the line is that arm's, at that budget, of that seed, in that setting."""
    return (line["method"], line["kept"], line["seed"], line["setting"]) == (arm.spec, k, seed, asdict(setting))


def by_seed(
    lines: Sequence[dict[str, Any]], setting: Setting, arm: Arm, k: int, seeds: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """The finished runs of an arm at a budget, by seed, in the order of the seeds; of a seed the last."""
    runs = {seed: [line for line in lines if is_line_of(line, setting, arm, k, seed)] for seed in seeds}
    return {seed: same[-1] for seed, same in runs.items() if same}
