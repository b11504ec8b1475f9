"""Says on stderr how far long work is: a bar on a terminal, elsewhere a line now and then. Of short work no lines are made."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from fairseq_dsp.api.watching import watched as under

_EVERY = 15.0  # seconds between two lines; less is not worth one


@contextlib.contextmanager
def steps(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows the progress of what is done in the block.

    Args:
        what: what is done.
        total: number of its steps.

    Yields:
        what to call after every step.
    """
    console = Console(stderr=True)
    if not console.is_terminal or not total:
        yield _Lines(what, total).step
        return
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    # without a thread that draws: it would take its share of what is measured
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        bar = progress.add_task(what, total=total)
        progress.refresh()
        yield lambda: progress.update(bar, advance=1, refresh=True)


def watched(what: str, things: Iterable[Any], total: int) -> Iterator[Any]:
    """Gives the things, one after the other, under `steps`."""
    return under(steps, what, things, total)


def watch_within(title: str) -> Callable[[str, Sequence[Any]], Iterator[Any]]:
    """A `benchmark.measuring.Watch` whose lines begin with a title."""
    return lambda what, things: watched(f"{title}: {what}", things, len(things))


class _Lines:
    """Lines on stderr, the first as soon as the time that is left can be told."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.begun = monotonic()
        self.said: float | None = None

    def step(self) -> None:
        self.done += 1
        now = monotonic()
        left = (now - self.begun) / self.done * (self.total - self.done)
        if left >= _EVERY and (self.said is None or now - self.said >= _EVERY):
            duration = f"{left:.0f} seconds" if left < 100 else f"{left / 60:.0f} minutes"
            print(f"{self.what}: {self.done} of {self.total}, about {duration} left", file=sys.stderr, flush=True)
            self.said = now
