"""Targets of a table, and what was measured of each. Used by `unit_speed`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from fairseq_dsp.benchmark.candidates import Candidate, facts_of
from fairseq_dsp.benchmark.comparison import Row, Timing, compare, signature
from fairseq_dsp.benchmark.measuring import Estimate
from fairseq_dsp.benchmark.promises import Promise
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.tables import show
from fairseq_dsp.units.cost_file import CostFile


@dataclass(frozen=True)
class Target:
    """A row of the table.

    Attributes:
        what: is measured.
        wanted: as a text.
        found: in the same unit.
        reached: whether `found` is at least, or at most, what is wanted.
    """

    what: str
    wanted: str
    found: Estimate
    reached: bool


class Bench:
    """Measures and prints cases, and keeps their rows and what they come to."""

    def __init__(self, settings: Settings, timing: Timing, console: Console, keep: Callable[[Any], None]) -> None:
        self.settings, self.timing, self.console, self.keep = settings, timing, console, keep
        self.targets: list[Target] = []

    def compare(
        self, models: Sequence[tuple[str, Candidate]], case: Case, costs: CostFile | None = None
    ) -> dict[tuple[str, str], Row]:
        """Rows by name and phase."""
        ready = [(name, each, facts_of(each.build(self.settings.words))) for name, each in models]
        promise = [] if costs is None else [Promise(costs, self.settings).seconds]
        rows = compare(ready, self.settings, self.timing, case, lambda what, things: things, *promise)
        show(self.console, case, rows)
        for row in rows:
            self.keep(row.record(case, signature(self.settings, self.timing)))
        return {(row.model, row.phase): row for row in rows}

    def at_least(self, what: str, wanted: float, found: Estimate) -> None:
        self._note(Target(what, f"{wanted:g}x", found, found.median >= wanted))

    def at_most(self, what: str, wanted: float, unit: str, found: Estimate) -> None:
        self._note(Target(what, f"at most {wanted:g} {unit}", found, found.median <= wanted))

    def near(self, what: str, promised: float, found: Estimate) -> None:
        """Measured over promised."""
        self._note(
            Target(what, f"{promised:.2f}x promised, within 5 %", found, abs(found.median / promised - 1) <= 0.05)
        )

    def _note(self, target: Target) -> None:
        self.targets.append(target)
        low, high = target.found.low, target.found.high
        found = {"median": target.found.median, "low": low, "high": high}
        self.keep({"target": target.what, "wanted": target.wanted, "found": found, "reached": target.reached})

    def table(self) -> Table:
        """All targets, and what was found."""
        table = Table(title="targets", title_justify="left")
        for column in ("what", "wanted", "measured", "95 %", "reached"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for each in self.targets:
            low, high = each.found.low, each.found.high
            interval = "" if low is None or high is None else f"{low:.3g} to {high:.3g}"
            wide = " ?" if each.found.too_wide else ""
            table.add_row(each.what, each.wanted, f"{each.found.median:.3g}", interval + wide, "yes" if each.reached else "no")  # fmt: skip
        return table
