"""Hidden folders in which outputs are made, beside them: `.NAME.xxxxxxxx.partial`. Called by `output`.

The writer of an output holds a lock on its folder. A writer that was killed holds none any more, and the next writer of the same
output removes what is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator

_SUFFIX = ".partial"
OLD = "old"
_LONGEST = 200  # bytes of a name that the hidden folder's name repeats; most file systems allow 255


@contextlib.contextmanager
def room_beside(target: str) -> Iterator[str]:
    """A locked folder beside the target; it goes at the end, with what is in it.

    What has the target's name may be moved to `old` in it: that gets its name back where nothing else has got it.
    """
    clear_leftovers(target)
    lock = None
    while lock is None:  # who looks for leftovers may have locked the folder first, and removes it
        room = tempfile.mkdtemp(dir=os.path.dirname(target), prefix=_prefix(target), suffix=_SUFFIX)
        with contextlib.suppress(FileNotFoundError):
            lock, _ = _locked(room)
    try:
        yield room
    finally:
        _clear(room, target)
        os.close(lock)


def hand_down(old: str, new: str, extra: int = 0) -> int | None:
    """Gives the new file or folder the mode of the old one, and its owner where that is allowed.

    Args:
        extra: bits that the new one gets for the time being.

    Returns:
        the mode, None where there is no old one.
    """
    try:
        found = os.stat(old)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        os.chown(new, found.st_uid, found.st_gid)
    mode = stat.S_IMODE(found.st_mode)
    os.chmod(new, mode | extra)
    return mode


def clear_leftovers(target: str) -> None:
    """Removes what killed writers of the target left."""
    beside = os.path.join(glob.escape(os.path.dirname(target)), f"{glob.escape(_prefix(target))}????????{_SUFFIX}")
    for room in glob.glob(beside):
        with contextlib.suppress(OSError):
            lock, held = _locked(room)
            if held:
                _clear(room, target)
            if lock is not None:
                os.close(lock)


def _clear(room: str, target: str) -> None:
    """Removes a hidden folder. An old output that its writer had just moved into it gets its name back."""
    if not os.path.lexists(target):
        with contextlib.suppress(OSError):
            os.rename(os.path.join(room, OLD), target)
    shutil.rmtree(room, ignore_errors=True)


def _locked(room: str) -> tuple[int | None, bool]:
    """Opens a folder and locks it.

    Returns:
        its descriptor, None where somebody else holds the lock or has removed the folder; and whether the lock is held, which it
        never is on a file system without locks.
    """
    lock = os.open(room, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(room)):
            return lock, True
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        return lock, False
    os.close(lock)
    return None, False


def _prefix(target: str) -> str:
    name = os.path.basename(target)
    long = len(os.fsencode(name)) > _LONGEST
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32] if long else name}."
