"""Files and folders that are whole or not there at all. Called by whatever writes something that a user asked for.

Everything is written in a hidden folder beside the output, `.NAME.xxxxxxxx.partial`, and then renamed. Its writer holds a lock
in it. One that was killed holds none any more, and the next writer of the same output removes what it left.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import glob
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from fairseq_dsp.errors import Refusal

_SUFFIX = ".partial"
_NEW, _OLD, _LOCK = "new", "old", "lock"
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_WORKING_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)


def refuse_to_overwrite(path: str, force: bool) -> None:
    """Checks an output file before any work is done.

    Raises:
        Refusal: it exists and `--force` was not given, is a folder, or its own folder is not there or cannot be written to.
    """
    _refuse_place(path)
    if os.path.isdir(path):
        raise Refusal(f"the output must be a file, but {path} is a folder.")
    if os.path.exists(path) and not force:
        raise Refusal(f"the output must not exist without `--force`, but {path} does.")


def refuse_to_overwrite_folder(path: str, force: bool, kind: str, is_one: Callable[[str], bool]) -> None:
    """Checks an output folder before any work is done.

    Args:
        kind: what `--force` may replace, in the plural: "reports".
        is_one: whether a folder is one of that kind.

    Raises:
        Refusal: it exists and is not empty without `--force`, or is of another kind, or its own folder is not there or
            cannot be written to.
    """
    _refuse_place(path)
    if not os.path.lexists(path) or os.path.isdir(path) and not os.listdir(path):
        return
    if not force:
        raise Refusal(f"the output must not exist without `--force`, but {path} does.")
    if not os.path.isdir(path) or os.path.islink(path) or not is_one(path):
        raise Refusal(f"`--force` replaces {kind} and empty folders only, but {path} is neither.")


def write_atomically(path: str, write: Callable[[Any], Any], what: str) -> None:
    """Writes a file beside `path`, then renames it: the old file is whole or the new one is.

    Args:
        write: writes the content into the binary file that it is given.
        what: what is written, for the refusal: "the checkpoint".

    Raises:
        Refusal: the folder cannot be written to, or the disk is full.
    """
    target = os.path.abspath(path)
    problems: list[OSError] = []
    try:
        with _room_beside(target) as room:
            with _Noting(io.FileIO(os.path.join(room, _NEW), "w")) as file:
                file.problems = problems
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(os.path.join(room, _NEW), target)
    except (OSError, RuntimeError) as error:
        raise Refusal(f"{what} could not be written to {path}: {problems[0] if problems else error}") from error


def _refuse_place(path: str) -> None:
    """Checks that an output has a place.

    Raises:
        Refusal: the folder that it shall lie in does not exist, or cannot be written to.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise Refusal(f"the output's folder must exist, but {folder} does not.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refusal(f"the output's folder must be one that you may write to, but {folder} is not.")


class _Noting(io.BufferedWriter):
    """A file that remembers why it could not be written: torch makes a RuntimeError of it that does not say."""

    problems: list[OSError]

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.problems.append(error)
            raise


@contextlib.contextmanager
def written_beside(target: str, what: str) -> Iterator[str]:
    """An empty folder that gets the name `target` if the block ends well, replacing what has it, and goes if not.

    Args:
        target: the output folder.
        what: what is written, for the refusal: "the report".

    Raises:
        Refusal: the folder beside it cannot be written to, or the disk is full.
    """
    target = os.path.abspath(target)
    try:
        with _room_beside(target) as room:
            new, old = os.path.join(room, _NEW), os.path.join(room, _OLD)
            os.mkdir(new)
            yield new
            if not os.path.isdir(target):
                os.rename(new, target)
            elif not _exchange(new, target):
                os.rename(target, old)  # who is killed after this leaves the old one to `_remove_leftovers`
                try:
                    os.rename(new, target)
                except OSError:
                    os.rename(old, target)
                    raise
    except OSError as error:
        raise Refusal(f"{what} could not be written to {target}: {error}") from error


@contextlib.contextmanager
def _room_beside(target: str) -> Iterator[str]:
    """A locked folder beside the target; it goes at the end, with what is in it."""
    parent, name = os.path.split(target)
    _remove_leftovers(target)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}.", suffix=_SUFFIX) as room:
        with open(os.path.join(room, _LOCK), "wb") as lock:
            _try_lock(lock)
            yield room


def _remove_leftovers(target: str) -> None:
    """Removes what killed writers of the target left. An old folder that one had just moved away gets its name back."""
    parent, name = os.path.split(target)
    for room in glob.glob(os.path.join(glob.escape(parent), f".{glob.escape(name)}.????????{_SUFFIX}")):
        with contextlib.suppress(OSError), open(os.path.join(room, _LOCK), "ab") as lock:
            if _try_lock(lock):
                if not os.path.lexists(target) and os.path.isdir(os.path.join(room, _OLD)):
                    os.rename(os.path.join(room, _OLD), target)
                shutil.rmtree(room, ignore_errors=True)


def _try_lock(file: Any) -> bool:
    """Whether the lock could be had; never on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _exchange(one: str, other: str) -> bool:
    """Swaps two names at once; False where the system or the file system cannot."""
    rename = getattr(_LIBC, "renameat2", None)
    names = (_WORKING_FOLDER, os.fsencode(one), _WORKING_FOLDER, os.fsencode(other))
    return rename is not None and rename(*names, _EXCHANGE) == 0
