"""How this package says no: one sentence a reason, all reasons at once, exit code 2 in commands.

Library code raises `Refusal`; whatever fairseq or a console script calls directly (task, model, criterion, optimizer,
commands) wraps its work in `exit_on_refusal`, so that a user reads a sentence instead of a traceback.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class Refusal(ValueError):
    """A request that this package refuses, with every reason that was found.

    Args:
        reasons: sentences, each naming the option, the rule and the value.
    """

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


@contextlib.contextmanager
def noted(reasons: list[str]) -> Iterator[None]:
    """Adds the reasons of a `Refusal` to those found so far, so that a user reads all at once."""
    try:
        yield
    except Refusal as refusal:
        reasons += refusal.reasons


@contextlib.contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Turns a `Refusal` into one line a reason on stderr and exit code 2.

    SystemExit rather than an exception: fairseq's trainer wraps every `Exception` that loading a checkpoint raises into
    one of its own, which would hide the reason behind a traceback.
    """
    try:
        yield
    except Refusal as refusal:
        for reason in refusal.reasons:
            print(f"fairseq_dsp: error: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
