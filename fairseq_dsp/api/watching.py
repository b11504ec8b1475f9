"""How the functions of the API tell how far long work is: a `Watch` shows it, `unwatched` does not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

# Given what is done and the number of its steps; what it yields is called after every step.
Watch = Callable[[str, int], AbstractContextManager[Callable[[], Any]]]


@contextlib.contextmanager
def unwatched(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A `Watch` that shows nothing."""
    yield lambda: None


def watched(watch: Watch, what: str, things: Iterable[Any], total: int) -> Iterator[Any]:
    """Gives the things, one after the other, under a watch."""
    with watch(what, total) as step:
        for thing in things:
            yield thing
            step()
