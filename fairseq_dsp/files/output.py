"""Outputs: checked before any work, then whole or not there at all. Called by whatever writes what a user asked for.

`checked_file` and `checked_folder` resolve a path once. What they return is what is written; nobody reads the path again.

An output is made in a hidden folder beside it (`hidden_folder`), and gets its name when it is whole. Whether the name is free is decided
by the system call that gives it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.hidden_folder import OLD, clear_leftovers, hand_down, room_beside

_NEW = "new"
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # what renaming a folder to a name that is taken says
_KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))


@dataclass(frozen=True)
class OutputFile:
    """A file to write, checked by `checked_file`.

    Attributes:
        path: as the user wrote it.
        target: the absolute path that is written; links are followed.
        force: whether a file that is there is replaced.
    """

    path: str
    target: str
    force: bool

    def write(self, write: Callable[[Any], Any], what: str) -> None:
        """Writes the file beside its place, then gives it its name. A file that it replaces hands down mode and owner.

        Args:
            write: writes the content into the binary file that it is given.
            what: what is written, for the refusal: "the checkpoint".

        Raises:
            Refusal: the folder cannot be written to, the disk is full, or, without `force`, somebody was faster.
        """
        problems: list[OSError] = []
        try:
            with room_beside(self.target) as room:
                new = os.path.join(room, _NEW)
                with _Noting(io.FileIO(new, "w")) as file:
                    file.problems = problems
                    hand_down(self.target, new)
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                self._name(new)
        except (OSError, RuntimeError) as error:
            raise Refusal(
                f"{what} could not be written to {self.path}: {problems[0] if problems else error}"
            ) from error

    def _name(self, new: str) -> None:
        if self.force:
            _refuse_other_than_file(self.path, self.target)
            os.replace(new, self.target)
            return
        try:
            try:
                os.link(new, self.target)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links: an empty file claims the name
                os.close(os.open(self.target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                try:
                    os.replace(new, self.target)
                except BaseException:
                    os.unlink(self.target)
                    raise
        except FileExistsError:
            raise _exists(self.path) from None


@dataclass(frozen=True)
class OutputFolder:
    """A folder to write, checked by `checked_folder`.

    Attributes:
        path: as the user wrote it.
        target: the absolute path that is written; links are followed.
        force: whether a folder of the same kind that is there is replaced.
        kind: what `force` may replace, in the plural: "reports".
        is_one: whether a folder is one of that kind.
        was_there: whether there was a folder when it was checked; without `force` an empty one.
    """

    path: str
    target: str
    force: bool
    kind: str
    is_one: Callable[[str], bool]
    was_there: bool

    @contextlib.contextmanager
    def written(self, what: str) -> Iterator[str]:
        """An empty folder that gets the output's name if the block ends well, and goes if not.

        Args:
            what: what is written, for the refusal: "the report".

        Raises:
            Refusal: the folder beside it cannot be written to, the disk is full, or what has the name by now is not to be
                replaced.
        """
        try:
            with room_beside(self.target) as room:
                new = os.path.join(room, _NEW)
                os.mkdir(new)
                yield new
                mode = hand_down(self.target, new, stat.S_IRWXU)  # who may not write to a folder may not move it
                self._name(new, os.path.join(room, OLD))
                if mode is not None and mode & stat.S_IRWXU != stat.S_IRWXU:
                    os.chmod(self.target, mode)
        except OSError as error:
            raise Refusal(f"{what} could not be written to {self.path}: {error}") from error

    def _name(self, new: str, old: str) -> None:
        while True:
            try:
                if not self.force and not self.was_there:
                    os.mkdir(self.target)  # an empty folder that somebody makes meanwhile is left alone too
                    self._rename_over_claim(new)
                else:
                    os.rename(new, self.target)
                return
            except OSError as error:
                if error.errno not in _OCCUPIED:
                    raise
            if not self.force:
                raise _exists(self.path)
            try:
                self.refuse_other_kind()
                shutil.rmtree(old, ignore_errors=True)  # of an earlier round, in which another writer was faster
                os.rename(self.target, old)  # who is killed after this leaves the old one to `_clear`
            except FileNotFoundError:
                continue

    def _rename_over_claim(self, new: str) -> None:
        try:
            os.rename(new, self.target)
        except BaseException:
            with contextlib.suppress(OSError):  # somebody has put something into it
                os.rmdir(self.target)
            raise

    def refuse_other_kind(self) -> None:
        """Raises:
        Refusal: what has the name is neither empty nor of the kind that may be replaced.
        """
        plain = os.path.isdir(self.target) and not os.path.islink(self.target)
        if plain and (not os.listdir(self.target) or self.is_one(self.target)):
            return
        if os.path.lexists(self.target):
            raise Refusal(f"`--force` replaces {self.kind} and empty folders only, but {self.path} is neither.")


def checked_file(path: str | os.PathLike[str], force: bool) -> OutputFile:
    """Checks an output file before any work is done.

    Raises:
        Refusal: it exists and `--force` was not given, is no regular file or a link to nothing, or its own folder is not there
            or cannot be written to.
    """
    path, target = _resolved(path)
    if path.endswith(os.sep) and not os.path.isdir(target):
        raise Refusal(f"the output must be a file, but {path} names a folder.")
    _refuse_other_than_file(path, target)
    if os.path.lexists(target) and not force:
        raise _exists(path)
    return OutputFile(path, target, force)


def checked_folder(path: str | os.PathLike[str], force: bool, kind: str, is_one: Callable[[str], bool]) -> OutputFolder:
    """Checks an output folder before any work is done.

    Args:
        kind: what `--force` may replace, in the plural: "reports".
        is_one: whether a folder is one of that kind.

    Raises:
        Refusal: it exists and is not empty without `--force`, is of another kind, is the working folder or one above it, or its
            own folder is not there or cannot be written to.
    """
    path, target = _resolved(path)
    refuse_working_folder(target)
    clear_leftovers(target)
    output = OutputFolder(path, target, force, kind, is_one, os.path.isdir(target))
    try:
        empty = output.was_there and not os.listdir(target)
        if os.path.lexists(target) and not empty and not force:
            raise _exists(path)
        output.refuse_other_kind()
    except FileNotFoundError:  # another writer is just replacing it
        pass
    except OSError as error:
        raise Refusal(f"the output must be a folder that you may read, but {path} is not: {error.strerror}.") from error
    return output


def refuse_no_name(path: str | os.PathLike[str]) -> None:
    """Raises:
    Refusal: the path is empty, as an unset variable of a shell is. Most functions take that for the working folder.
    """
    if not os.fspath(path):
        raise Refusal("the output must have a name, but it is empty.")


def refuse_working_folder(path: str | os.PathLike[str]) -> None:
    """Raises:
    Refusal: the path is the working folder or one above it, such as the root: no folder to be replaced.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:  # somebody has removed it
        return
    if os.path.exists(path) and any(os.path.samefile(folder, path) for folder in (here, *here.parents)):
        raise Refusal(f"the output must not be the working folder or one above it, but {path} is.")


def _resolved(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The path as it was given, and the absolute one without links.

    Raises:
        Refusal: it cannot be one, or has no place.
    """
    path = os.fspath(path)
    refuse_no_name(path)
    try:
        target = os.path.realpath(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(target)
    except (OSError, ValueError) as error:  # too long, no permission, a working folder that is gone, a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise Refusal(f"the output must have a name that is possible here, but {path!r} is not: {reason}.") from error
    if os.path.islink(path.rstrip(os.sep)) and not os.path.exists(path):
        raise Refusal(f"the output must not be a link to nothing, but {path} is one.")
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise Refusal(f"the output's folder must exist, but {folder} does not.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refusal(f"the output's folder must be one that you may write to, but {folder} is not.")
    return path, target


def _refuse_other_than_file(path: str, target: str) -> None:
    """Raises:
    Refusal: something is there that is no regular file; a device, pipe or socket would be gone.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(target).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for is_one, name in _KINDS if is_one(mode)), "device")
            raise Refusal(f"the output must be a file, but {path} is a {kind}.")


def _exists(path: str) -> Refusal:
    return Refusal(f"the output must not exist without `--force`, but {path} does.")


class _Noting(io.BufferedWriter):
    """A file that remembers why it could not be written: torch makes a RuntimeError of it that does not say."""

    problems: list[OSError]

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.problems.append(error)
            raise
