"""All runs of a call: starts what can start, shows what runs and what remains, writes down what is finished."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fairseq_dsp.errors import Refusal

from .checkpoints import updates_of
from .data import Data
from .measure import measure
from .results import KEYS, append_result, read_results, write_marker
from .running import Job, Place, tidy
from .steps import Run, files_from, recipe_of

RESULT = "result.json"


class Experiment:
    """The runs of one call.

    Args:
        runs: those that others need come first.
        gpus: devices to spread the runs over; empty for a CPU.
        jobs: runs at once.
        hardware: what the results say of it.
        keep: leave all checkpoints.
    """

    def __init__(
        self, runs: Sequence[Run], data: Data, gpus: list[str], jobs: int, hardware: dict[str, Any], keep: bool
    ) -> None:
        self.runs, self.data, self.gpus, self.jobs, self.hardware, self.keep = runs, data, gpus, jobs, hardware, keep
        self.console = Console()
        self.finished: set[str] = set()
        self.failed: dict[str, str] = {}
        self.active: list[Job] = []

    def say(self, line: str) -> None:
        """Prints a line, above the table where there is one."""
        self.console.print(Text(line), soft_wrap=True)

    def run(self, place: Place) -> int:
        """Does all that is not finished yet; 1 where something failed."""
        self._take_up(place.out)
        waiting = [run for run in self.runs if run.name not in self.finished]
        if self.finished:
            self.say(f"finished before: {len(self.finished)} of {len(self.runs)}")
        live = Live(get_renderable=lambda: self._table(waiting), console=self.console, refresh_per_second=1)
        try:
            if self.console.is_terminal:
                live.start()
            while waiting or self.active:
                self._start(waiting, place)
                for job in list(self.active):
                    if job.advance():
                        self.active.remove(job)
                        self._end(job, place)
                time.sleep(0.2)
        finally:
            for job in self.active:
                job.stop()
            if self.console.is_terminal:
                live.stop()
        for reason in self.failed.values():
            self.say(f"failed: {reason}")
        if self.failed:
            self.say("The same command tries again what failed, and nothing that is finished.")
        self.say(self._summary(place.out / "results.jsonl"))
        return 1 if self.failed else 0

    def _summary(self, results: Path) -> str:
        """How many runs are finished, and how many of them a report will find."""
        summary = f"{len(self.finished)} of {len(self.runs)} runs are finished"
        if all(run.budget is not None for run in self.runs):
            return f"{summary}: {results}"
        lines = sum(run.budget is not None for run in self.runs if run.name in self.finished)
        return (
            f"{summary}, {lines} of them with a line in {results}; the rest are scorings and trainings that others need"
        )

    def _start(self, waiting: list[Run], place: Place) -> None:
        for run in list(waiting):
            blocked = [name for name in run.needs if name in self.failed]
            if blocked:
                self.failed[run.name] = f"{run.name} needs {blocked[0]}, which failed"
                waiting.remove(run)
            elif len(self.active) < self.jobs and self.finished.issuperset(run.needs):
                waiting.remove(run)
                used = [job.gpu for job in self.active]
                gpu = min(self.gpus, key=used.count) if self.gpus else None
                self.active.append(Job(run, place, gpu))

    def _end(self, job: Job, place: Place) -> None:
        """A run's commands have ended: its marker, then its line, which the next call adds where a kill came between."""
        run = job.run
        if job.failed is None and run.budget is not None:
            try:
                record = measure(run, recipe_of(run, self.runs), place.out, self.data, self.hardware)
                write_marker(job.folder / RESULT, record)
                append_result(place.out / "results.jsonl", record)
            except (Refusal, OSError, UnicodeDecodeError) as error:
                # translated from another file than meant: the next call does it again
                (job.folder / "generate.done").unlink(missing_ok=True)
                job.failed = f"{run.name}: {error}"
        if job.failed is not None:
            self.failed[run.name] = job.failed
            self.say(f"failed: {job.failed}")
            return
        if run.budget is None:
            write_marker(job.folder / RESULT, None)
        elif not self.keep:
            tidy(run, place.out)
        self.finished.add(run.name)
        score = f", BLEU {record['bleu_tok']:.1f}" if run.budget is not None else ""
        self.say(f"finished: {run.name}{score}, {len(self.runs) - len(self.finished)} remain")

    def _take_up(self, out: Path) -> None:
        """Finds what earlier calls finished. A result whose line is missing (killed in between) gets it now."""
        path = out / "results.jsonl"
        lines = {_line(record) for record in read_results(path)}
        for run in self.runs:
            try:
                record = json.loads((out / "runs" / run.name / RESULT).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if record is not None and _line(record) not in lines:
                append_result(path, {key: record.get(key) for key in KEYS})
            if record is not None and not self.keep:
                tidy(run, out)
            self.finished.add(run.name)
        self._take_back(out)

    def _take_back(self, out: Path) -> None:
        """Runs count as finished only while what others still read of them is there and whole."""
        waiting = [run for run in self.runs if run.name not in self.finished]
        read = {
            (name, path) for run in waiting for name in self.finished & {*run.needs} for path in files_from(run, name)
        }
        for name in sorted({name for name, path in read if not _is_whole(out / path)}):
            self.say(f"{name} is done again: what others need of it is gone or damaged")
            for marker in (*(out / "runs" / name).glob("*.done"), out / "runs" / name / RESULT):
                marker.unlink(missing_ok=True)
            self.finished.remove(name)

    def _table(self, waiting: list[Run]) -> Table:
        table = Table(title=f"{len(self.finished)} of {len(self.runs)} runs finished, {len(waiting)} wait")
        for column in ("run", "command", "minutes", "says"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for job in self.active:
            step = job.step.words[0] if job.step else "measuring"
            says = job.last_line().rpartition(" | ")[2][:120]
            table.add_row(job.run.name, step, f"{(time.monotonic() - job.begun) / 60:.1f}", Text(says))
        return table


def _line(record: dict[str, Any]) -> str:
    """A record as it is compared with others: an earlier version had fewer keys."""
    return json.dumps({key: record.get(key) for key in KEYS}, sort_keys=True)


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint, or a file of scores, is there and not damaged."""
    if path.suffix == ".pt":
        return updates_of(path) is not None
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True
