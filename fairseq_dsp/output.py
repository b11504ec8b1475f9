"""Output folders that are whole or not there at all. Called by exports and reports."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from fairseq_dsp.errors import Refusal


@contextlib.contextmanager
def written_beside(target: str, what: str) -> Iterator[str]:
    """An empty folder that gets the name `target` if the block ends well, replacing what has it, and goes if not.

    Args:
        target: the output folder.
        what: what is written, for the sentence: "the report".

    Raises:
        Refusal: the folder beside it cannot be written to, or the disk is full.
    """
    target = os.path.abspath(target)
    parent, name = os.path.split(target)
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}.") as temporary:
            folder, old = os.path.join(temporary, "new"), os.path.join(temporary, "old")
            os.mkdir(folder)
            yield folder
            if os.path.isdir(target):
                os.rename(target, old)
            try:
                os.rename(folder, target)
            except OSError:
                if os.path.isdir(old):
                    os.rename(old, target)
                raise
    except OSError as error:
        raise Refusal(f"{what} could not be written to {target}: {error}") from error
