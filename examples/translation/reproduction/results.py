"""`results.jsonl`: one line a finished run, appended so that a kill leaves at most a broken last line, which is cut."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from fairseq_dsp.analysis.records import Record
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.output import checked_file

KEYS = tuple(field.name for field in fields(Record) if field.name != "line")


def write_marker(path: Path, content: Any) -> None:
    """A small JSON file that is there whole or not at all, also after a power cut.

    Raises:
        Refusal: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    checked_file(path, force=True).write(lambda file: file.write(json.dumps(content, indent=1).encode()), "the marker")


def read_results(path: Path) -> list[dict[str, Any]]:
    """All lines but empty ones; a broken last one is cut from the file first, and one without its newline gets it.

    Raises:
        Refusal: a line before the last is broken: nothing of ours does that.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    written = content.rstrip()
    last = written[written.rfind(b"\n") + 1 :]
    if last and _record(last) is None:
        print(f"{path.name}: the last line is broken (a run was killed while writing it) and was cut: {last[:60]!r}…")
        content = content[: len(written) - len(last)]
        with open(path, "r+b") as file:
            file.truncate(len(content))
            os.fsync(file.fileno())
    elif last and not content.endswith(b"\n"):
        _append(path, b"\n")
    numbered = [(number, _record(line)) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    broken = [str(number) for number, record in numbered if record is None]
    if broken:
        raise Refusal(
            f"every line of {path} must be JSON with a run's result, but line {', '.join(broken)} is not: remove it, and "
            "the same command writes it again."
        )
    return [record for _, record in numbered if record is not None]


def append_result(path: Path, record: dict[str, Any]) -> None:
    """Adds a line and waits until the disk has it."""
    assert tuple(record) == KEYS
    _append(path, json.dumps(record, ensure_ascii=False).encode() + b"\n")


def _append(path: Path, content: bytes) -> None:
    """Appends all of it or, on a full disk, nothing: whatever comes next must not join half a line."""
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            written = file.write(content)
            if written != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # includes broken UTF-8
        return None
    return record if isinstance(record, dict) else None
