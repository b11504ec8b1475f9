"""Runs by method and budget, and what their seeds say together. Called by tables, plots and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from fairseq_dsp.analysis.records import DENSE, Record


@dataclass(frozen=True)
class Group:
    """The runs of one method at one budget: one for every seed.

    Attributes:
        method: name of the method.
        kept: K.
        records: in the order of their seeds.
    """

    method: str
    kept: int
    records: tuple[Record, ...]

    def values(self, name: str) -> list[float]:
        """A figure of every run, without those that lack it."""
        return [value for value in (getattr(record, name) for record in self.records) if value is not None]


def grouped(records: Sequence[Record]) -> list[Group]:
    """The runs by method, in the order in which the methods first occur, dense first; the largest budget first."""
    methods = sorted(dict.fromkeys(record.method for record in records), key=lambda method: method != DENSE)
    groups = []
    for method in methods:
        for kept in sorted({record.kept for record in records if record.method == method}, reverse=True):
            same = [record for record in records if (record.method, record.kept) == (method, kept)]
            groups.append(Group(method, kept, tuple(sorted(same, key=lambda record: record.seed))))
    return groups


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation, which a single value has none of."""
    return mean(values), stdev(values) if len(values) > 1 else None
