"""How this package says no, and how its commands end: one sentence a reason, all reasons at once, the right exit code.

Library code raises `Refusal`; whatever fairseq calls directly (task, model, criterion, optimizer) wraps its work in
`exit_on_refusal`, and every command of ours in `as_command`, so that a user reads a sentence instead of a traceback.

Needs nothing but Python: scripts that do without fairseq use this file too.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_PATIENCE = 2.0  # seconds in which the second signal to stop does not disturb the tidying after the first


class Refusal(ValueError):
    """A request that this package refuses, with every reason that was found.

    Args:
        reasons: sentences, each naming the option, the rule and the value.

    Attributes:
        code: the exit code of a command that ends with it.
    """

    code = 2

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


def summed_up(what: str, sentences: Sequence[str]) -> list[str]:
    """One sentence for many that say the same of other lines or runs: the first, and how many more there are."""
    more = len(sentences) - 1
    return [f"{sentences[0].removesuffix('.')}; likewise of {more} more {what}."] if more > 0 else list(sentences)


@contextlib.contextmanager
def exit_on_refusal(name: str = "fairseq_dsp") -> Iterator[None]:
    """Turns a `Refusal` into one line a reason on stderr and exit code 2.

    SystemExit rather than an exception: fairseq's trainer wraps every `Exception` that loading a checkpoint raises into
    one of its own, which would hide the reason behind a traceback.

    Args:
        name: who refuses.
    """
    try:
        yield
    except Refusal as refusal:
        for reason in refusal.reasons:
            _say(name, reason)
        raise SystemExit(refusal.code) from None


@contextlib.contextmanager
def refused_disk(where: Any) -> Iterator[None]:
    """Turns what the disk refuses into a `Refusal`, for scripts that work in a folder.

    Args:
        where: the folder, named where the error names no file.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise Refusal(f"{error.filename or where} cannot be read or written: {reason}.") from error


@contextlib.contextmanager
def as_command(name: str = "fairseq_dsp", exact: bool = False) -> Iterator[None]:
    """Everything that a command does. However it ends, files that it had begun are gone and the user reads a sentence.

    Exit codes: 2 for a refusal and for a stdout that takes no more (a full disk), 1 where the reader of stdout has left, 130, 143
    and 129 for SIGINT, SIGTERM and SIGHUP. After SIGINT the process dies of it, as a shell must see to end a loop.

    Args:
        name: who speaks.
        exact: stdout is the result itself, so a character that its encoding lacks is an error; without, it is printed as `\\u2026`.
    """
    for number in range(3):  # or the next file that is opened is stdout
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    with _streams(name, exact), exit_on_refusal(name), _stopped_by_signals(name):
        yield


@contextlib.contextmanager
def _stopped_by_signals(name: str) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the block like an exception; those that the caller ignores, as `nohup` does, stay ignored."""
    received: list[tuple[int, float]] = []
    process = os.getpid()

    def stop(number: int, _: Any) -> None:
        if os.getpid() != process:  # a child, forked in the middle of the block
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not received or time.monotonic() - received[0][1] > _PATIENCE:
            received.append((number, time.monotonic()))
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, stop)
    try:
        yield
    except BaseException:  # torch makes other exceptions of one that comes while it writes
        if not received:
            raise
        number = signal.Signals(received[0][0])
        _say(name, f"stopped by {number.name}.")
        if number == signal.SIGINT:
            sys.excepthook = lambda *_: None  # Python then dies of the signal, without a traceback
            raise KeyboardInterrupt from None
        raise SystemExit(128 + number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _StdoutLost(BaseException):
    """Nothing can be printed any more. No `OSError`, which would be taken for one of the files that are read and written."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


class _Stream(io.TextIOWrapper):
    """A standard stream that fails once at most and is silent then; one that is not `loud` never fails."""

    loud, lost = False, False

    def write(self, text: str) -> int:
        self._guard(super().write, text)
        return len(text)

    def flush(self) -> None:
        self._guard(super().flush)

    def _guard(self, act: Callable[..., Any], *given: str) -> None:
        try:
            if not self.lost:
                act(*given)
        except OSError as error:
            self.lost = True
            if self.loud:
                raise _StdoutLost(error) from error


@contextlib.contextmanager
def _streams(name: str, exact: bool) -> Iterator[None]:
    """Streams that print every character, and whose failure is told apart from that of a file."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _rewrapped(sys.stdout, True, exact), _rewrapped(sys.stderr, False, False)
    try:
        try:
            yield
        except BaseException as error:
            if not isinstance(error, SystemExit) or error.code:
                with contextlib.suppress(_StdoutLost):
                    sys.stdout.flush()
                raise
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except _StdoutLost as lost:
        closed = isinstance(lost.reason, BrokenPipeError)  # as `| head` does
        _say(name, f"stdout must take what is printed, but does not: {lost.reason.strerror}.")
        raise SystemExit(1 if closed else 2) from None
    finally:
        sys.stdout, sys.stderr = before


def _rewrapped(stream: Any, loud: bool, exact: bool) -> Any:
    if stream is None:  # it was closed when Python started
        return open(os.devnull, "w", encoding="utf-8")
    try:
        number = stream.fileno()
    except (AttributeError, OSError):  # a test's, in memory
        return stream
    stream.flush()
    os.set_blocking(number, True)  # a full pipe is waited for
    errors = "backslashreplace" if stream.errors in ("strict", "surrogateescape") and not exact else stream.errors
    lines = stream.line_buffering or stream.write_through
    raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
    found = _Stream(raw, encoding=stream.encoding, errors=errors, line_buffering=lines)
    found.loud = loud
    return found


def _say(name: str, sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(f"{name}: error: {sentence}", file=sys.stderr)
