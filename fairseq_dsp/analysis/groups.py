"""Runs by method and budget, and what their seeds say together. Called by tables, plots and the report."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from fairseq_dsp.analysis.records import DENSE, Record


@dataclass(frozen=True)
class Group:
    """The runs of one method at one budget: one for every seed.

    Attributes:
        method: name of the method.
        kept: K; of a budget that counts no units, what the run of the lowest seed keeps.
        records: in the order of their seeds.
    """

    method: str
    kept: int
    records: tuple[Record, ...]

    @property
    def size(self) -> str:
        """What its runs were cut to; see `Record`."""
        return self.records[0].size

    def values(self, name: str) -> list[float]:
        """A figure of every run, without those that lack it."""
        return [value for value in (getattr(record, name) for record in self.records) if value is not None]


def grouped(records: Sequence[Record]) -> list[Group]:
    """The runs by method, in the order in which the methods first occur, dense first; the largest budget first."""
    methods = sorted(dict.fromkeys(record.method for record in records), key=lambda method: method != DENSE)
    groups = []
    for method in methods:
        own: dict[Hashable, list[Record]] = {}
        for record in records:
            if record.method == method:
                kinds = record.layout.grid.named_stacks
                own.setdefault((kinds, record.kept if record.budget is None else record.budget), []).append(record)
        found = [sorted(same, key=lambda record: record.seed) for same in own.values()]
        groups += [Group(method, same[0].kept, tuple(same)) for same in sorted(found, key=lambda same: -same[0].kept)]
    return groups


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation, which a single value has none of."""
    return mean(values), stdev(values) if len(values) > 1 else None
