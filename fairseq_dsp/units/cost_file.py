"""`costs.json`: what `fairseq-dsp-bench --costs` measures and `fairseq-dsp-prune --budget latency= --costs` reads, strictly.

    {"format": 1, "version": "0.2.0", "runtime": "fairseq", "dtype": "float32", "machine": "AMD EPYC", "device": "cpu", "threads": 1,
     "batch": 32, "beam": 5, "source": 21, "target": 21, "clock": "wall", "pairs": 7, "date": "2026-11-26",
     "sizes": {"enc": [4, 4], …, "ffn-dec": [1024, 1024], "words": [8848, 6632], "parameters": [36000000]},
     "dense": 0.096, "rest": 0.031,
     "tables": {"enc": {"kept": [0, 1, 2, 4], "seconds": [0.0, 0.0009, 0.0011, 0.0016]}, …, "ffn-dec": {"kept": [0, 16, 256, …], …}}}

All times are seconds a sentence: those of a batch by its sentences. A table is what one sublayer of a stack takes with so many of its
heads or neurons beyond what it takes with none. Weights are not named, for speed does not depend on them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.json_values import Rules, broken, excerpt, is_finite, is_whole, read_json
from fairseq_dsp.units.costs import LATENCY, TIME_PARTS, Costs
from fairseq_dsp.units.kinds import KIND_OF
from fairseq_dsp.units.layout import Grid, Site
from fairseq_dsp.units.neurons import NEURONS

OPTION = "--costs"
FORMAT = 1

_ALMOST = 1e-6  # of a part: what floating point adds to a time that is a whole number of them

# Heads by layer of a stack, neurons by layer, words of source and target, parameters; all of the model before anything was pruned.
Sizes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Conditions:
    """Where and on what times were taken; those of two of them compare if these are equal.

    Attributes:
        machine: the processor's name, or the GPU's.
        device: `cpu` or `cuda`.
        threads: of the runtime.
        runtime: `fairseq`, or CTranslate2 and the type of its weights.
        dtype: in which fairseq computes.
        batch: sentences at a time.
        beam: hypotheses a sentence.
        source: mean source tokens of a sentence, its end included, rounded.
        target: tokens that are generated of each, its end included.
    """

    machine: str
    device: str
    threads: int
    runtime: str
    dtype: str
    batch: int
    beam: int
    source: int
    target: int

    def __str__(self) -> str:
        """For people: `in fairseq float32 on AMD EPYC (cpu, 1 thread), …`."""
        runtime = f"{self.runtime} {self.dtype}" if self.runtime == "fairseq" else self.runtime
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        return (
            f"in {runtime} on {self.machine} ({self.device}, {threads}), batch {self.batch}, beam {self.beam}, {self.source} source and "
            f"{self.target} target tokens"
        )


@dataclass(frozen=True)
class Table:
    """What a sublayer takes with some numbers of its heads or neurons.

    Attributes:
        kept: these numbers, rising: 0 first, all of them last.
        seconds: a sentence, of each: 0 first, not falling.
    """

    kept: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, kept: int) -> float:
        """Seconds with so many: between two measured numbers on the line between their times, and below the first one what it takes.

        The step from none to one is thus nowhere underestimated.
        """
        return float(np.interp(max(kept, self.kept[1]), self.kept, self.seconds)) if kept else 0.0


@dataclass(frozen=True)
class CostFile:
    """Measured costs of a model's units and where they are from.

    Attributes:
        version: of this package.
        conditions: where and on what they were measured; the file has them side by side with the others.
        clock: `wall` or `cpu`.
        pairs: times that each model was measured.
        date: of the measuring.
        sizes: of the model.
        dense: seconds a sentence of the model as it was given.
        rest: of one without any units.
        tables: of a sublayer of every stack, by the stack's name.
    """

    version: str
    conditions: Conditions
    clock: str
    pairs: int
    date: str
    sizes: Sizes
    dense: float
    rest: float
    tables: Mapping[str, Table]

    def costs(self, grid: Grid, group: int = 1) -> Costs:
        """Costs of the units of a grid. Each is rounded up to a 65,536th of what the dense model takes.

        Args:
            grid: of a model of these sizes, of heads alone or with neurons.
            group: neurons of a unit.
        """
        scale = self.dense / TIME_PARTS
        tables = []
        for site, count in grid.counts:
            width = group if KIND_OF[site.stack] is NEURONS else 1
            tables.append(tuple(_whole(self.tables[site.stack].at(kept * width) / scale) for kept in range(count + 1)))
        others = [
            self.tables[stack.name].at(size)
            for stack in NEURONS.stacks
            for layer, size in enumerate(self.sizes[stack.name])
            if Site(stack.name, layer) not in grid.sites
        ]
        costs = Costs(LATENCY, grid, tuple(tables), _whole((self.rest + sum(others)) / scale), scale)
        is_sum = (
            abs(costs.dense - TIME_PARTS) <= len(tables) + 1
        )  # but for the rounding: all of the time buys all units
        return costs if is_sum else replace(costs, whole=TIME_PARTS)

    def objections_to_sizes(self, found: Sizes, option: str = OPTION) -> list[str]:
        """Sentences on a model of other sizes, one for each that differs.

        Args:
            found: sizes of the model that the costs should be of.
            option: that which named the file.
        """
        return [
            f"`{option}` must be of a model of the same sizes, but its `{name}` is {_short(self.sizes[name])} and the checkpoint's is "
            f"{_short(found[name])}."
            for name in self.sizes
            if self.sizes[name] != found[name]
        ]

    def objections_to_conditions(self, found: Conditions, option: str) -> list[str]:
        """Sentences on times that were taken otherwise, one for each difference.

        Args:
            found: how they were taken.
            option: that which named the file.
        """
        return [
            f"`{option}` must be measured under the same conditions, but its `{field.name}` is {getattr(self.conditions, field.name)} and "
            f"here it is {getattr(found, field.name)}."
            for field in fields(Conditions)
            if getattr(self.conditions, field.name) != getattr(found, field.name)
        ]

    def text(self) -> str:
        """The file's content."""
        content = {"format": FORMAT, **asdict(self)}
        conditions = content.pop("conditions")
        return json.dumps({**content, **conditions}, indent=1) + "\n"


def read_costs(path: str, option: str = OPTION) -> CostFile:
    """Reads a costs file.

    Args:
        option: that which named it.

    Raises:
        Refusal: it cannot be read, or is not exactly what `text` writes; every reason at once.
    """
    content = read_json(path, f"`{option}`")
    if not isinstance(content, dict) or content.get("format") != FORMAT or content["format"] is True:
        kind = excerpt(content.get("format")) if isinstance(content, dict) else type(content).__name__
        raise Refusal(f"`{option}` must be a costs file of format {FORMAT}, but {path} is of {kind}.")
    wrong = [f"`{name}` is missing" for name in _RULES if name not in content]
    wrong += [f"`{name}` is not known" for name in content if name not in {*_RULES, "format"}]
    wrong += broken(content, _RULES)
    for part, what in (("sizes", _wrong_sizes), ("tables", _wrong_tables)):
        if isinstance(content.get(part), dict):
            wrong += what(content[part])
    if not wrong:
        tables, sizes = content["tables"], content["sizes"]
        wrong = [
            f"`{stack}` has {table['kept'][-1]} units at most for the {max(sizes[stack])} of `sizes`"
            for stack, table in tables.items()
            if max(sizes[stack], default=table["kept"][-1]) != table["kept"][-1]
        ]
    if wrong:
        raise Refusal(*(f"`{option}` must be as fairseq-dsp-bench writes it: in {path} {each}." for each in wrong))
    return CostFile(
        conditions=Conditions(**{field.name: content[field.name] for field in fields(Conditions)}),
        sizes={name: tuple(numbers) for name, numbers in content["sizes"].items()},
        tables={
            name: Table(tuple(table["kept"]), tuple(map(float, table["seconds"])))
            for name, table in content["tables"].items()
        },
        **{name: content[name] for name in ("version", "clock", "pairs", "date", "dense", "rest")},
    )


def _whole(parts: float) -> int:
    return math.ceil(parts - _ALMOST)


def _short(numbers: tuple[int, ...]) -> str:
    if len(numbers) > 1 and len(set(numbers)) == 1:
        return f"{len(numbers)} times {numbers[0]:,}"
    return ", ".join(f"{number:,}" for number in numbers) or "none"


def _wrong_sizes(sizes: dict[str, Any]) -> list[str]:
    names = [*KIND_OF, "words", "parameters"]
    wrong = [f"`sizes` must have {', '.join(names)} and nothing else"] if set(sizes) != set(names) else []
    return wrong + [
        f"`sizes` of `{name}` must be a list of whole numbers of at least 0, but is {excerpt(numbers)}"
        for name, numbers in sizes.items()
        if not isinstance(numbers, list) or not all(is_whole(number, 0) for number in numbers)
    ]


def _wrong_tables(tables: dict[str, Any]) -> list[str]:
    wrong = [f"`tables` must have {', '.join(KIND_OF)} and nothing else"] if set(tables) != set(KIND_OF) else []
    for name, table in tables.items():
        if not isinstance(table, dict) or set(table) != {"kept", "seconds"}:
            wrong.append(f"`{name}` must have `kept` and `seconds`, but is {excerpt(table)}")
        elif not _rises(table["kept"], is_whole, strictly=True) or len(table["kept"]) < 2:
            wrong.append(f"`kept` of `{name}` must be whole numbers that rise from 0, but is {excerpt(table['kept'])}")
        elif not _rises(table["seconds"], is_finite) or len(table["seconds"]) != len(table["kept"]):
            wrong.append(
                f"`seconds` of `{name}` must be {len(table['kept'])} numbers from 0 on, none below the one before, but is "
                f"{excerpt(table['seconds'])}"
            )
    return wrong


def _rises(values: Any, fits: Any, strictly: bool = False) -> bool:
    if not isinstance(values, list) or not values or not all(fits(value) for value in values) or values[0] != 0:
        return False
    pairs = zip(values, values[1:], strict=False)
    return all(first < second if strictly else first <= second for first, second in pairs)


_TEXT = ("a text", lambda value: isinstance(value, str) and value != "")
_COUNT = ("a whole number above 0", lambda value: is_whole(value, 1))
_SECONDS = ("seconds above 0", lambda value: is_finite(value) and value > 0)
_OBJECT = ("an object", lambda value: isinstance(value, dict))
_RULES: Rules = {
    "version": _TEXT,
    "runtime": _TEXT,
    "dtype": _TEXT,
    "machine": _TEXT,
    "device": _TEXT,
    "threads": _COUNT,
    "batch": _COUNT,
    "beam": _COUNT,
    "source": _COUNT,
    "target": _COUNT,
    "clock": _TEXT,
    "pairs": _COUNT,
    "date": _TEXT,
    "sizes": _OBJECT,
    "dense": _SECONDS,
    "rest": _SECONDS,
    "tables": _OBJECT,
}
