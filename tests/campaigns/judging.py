"""Runs a case and says what is wrong with how it ended and with what it wrote."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands import Running

from fairseq_dsp.errors import Refusal
from tests.campaigns import outputs
from tests.campaigns.cases import Case, Source
from tests.campaigns.mutations import SECRET

SECONDS = 60  # for one case in this process, on a busy machine; a command gets five times as long
_SECRET = "what nobody but the user of this machine may read"
# How torch, numpy and Python say that there is no more memory. A refusal for that reason has tried to take it.
_NO_MEMORY = re.compile(r"MemoryError|allocate memory|not enough memory|bad_alloc")


class Hang(BaseException):
    """A case takes too long. No `Exception`, which what is tested could catch."""


class Judge:
    """Runs cases and says what is wrong.

    Args:
        folder: for outputs; empty.
        marker: a folder that is made where code in an input runs.
    """

    def __init__(self, folder: Path, marker: Path) -> None:
        self.folder, self.marker = folder, marker
        self.expected: dict[tuple[str, ...], outputs.Output] = {}
        self.refused = False
        os.environ[SECRET] = _SECRET

    def run(self, case: Case) -> list[str]:
        """A case in this process, or in a child forked from it."""
        said = io.StringIO()
        signal.signal(signal.SIGALRM, _hang)
        code = 0
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                code = self._in_child(case, said) if case.apart else self._call(case)
        except Refusal as refusal:
            code = 2
            print(*(f"fairseq_dsp: error: {reason}" for reason in refusal.reasons), file=said)
            if lacking := _no_memory(refusal):
                return self._end(case, [f"refused for want of memory: {lacking}"])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except Hang:
            return self._end(case, [f"no end after {SECONDS} s"])
        except BaseException as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:200]} ({Path(frame.filename).name}:{frame.lineno})"
            return self._end(case, [what])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return self._judge(case, code, said.getvalue())

    def run_command(self, case: Case) -> list[str]:
        """A case through the real command."""
        script = Path(sys.executable).with_name(f"fairseq-dsp-{case.name}")
        # no process can be given these characters
        words = [word.replace("\0", "").encode("utf-8", "replace").decode() for word in self._arguments(case)]
        try:
            done = subprocess.run([script, *words], capture_output=True, timeout=5 * SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return self._end(case, [f"no end after {5 * SECONDS} s"])
        return self._judge(case, done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"))

    def undamaged(self, source: Source) -> None:
        """Learns what undamaged checkpoints give. What is refused of them must be refused of damaged ones too."""
        for case in source.undamaged():
            with contextlib.suppress(Refusal), contextlib.redirect_stdout(io.StringIO()):
                self._call(case)
                self.expected[case.same] = outputs.read(self._out, case.name)
            self._end(case, [])

    @property
    def _out(self) -> Path:
        return self.folder / "out"

    def _arguments(self, case: Case) -> Iterator[str]:
        return (str(self._out) if word == "OUT" else word for word in case.arguments)

    def _call(self, case: Case) -> int:
        importlib.import_module(f"fairseq_dsp.cli.{case.name}").main(list(self._arguments(case)))
        return 0

    def _in_child(self, case: Case, said: io.StringIO) -> int:
        """The command's exit code. The alarm ends it in the middle of a computation in C, which nothing else can."""
        done = Running(f"fairseq_dsp.cli.{case.name}", list(self._arguments(case)), self.folder.parent).wait()
        said.write(done.out + done.err)
        return done.code

    def _judge(self, case: Case, code: int, said: str) -> list[str]:
        self.refused = code == 2
        if code not in (0, 2) or "Traceback" in said:
            return self._end(case, [f"ended with code {code}: {said[-600:]}"])
        failures = []
        if code == 2:
            if "error: " not in said:
                failures.append(f"says nothing: {said[-200:]}")
            if os.listdir(self.folder):
                failures.append(f"refused, but left {os.listdir(self.folder)}")
            if case.must_say not in said:
                failures.append(f"does not name {case.must_say}: {said[-300:]}")
            if case.check is not None and not case.must_say:
                failures.append(f"refused without need: {said[-300:]}")
            if len(said) > 20_000:
                failures.append(f"says {len(said)} characters")
            if _NO_MEMORY.search(said):
                failures.append(f"refused for want of memory: {said[-300:]}")
        elif case.must_say:
            failures.append(f"took what is not fit: {case.must_say}")
        else:
            failures += outputs.wrong(self._out, case, self.expected)
        if _SECRET in said or any(_SECRET.encode() in path.read_bytes() for path in _files(self.folder)):
            failures.append("said or wrote what stands in the environment")
        return self._end(case, failures)

    def _end(self, case: Case, failures: list[str]) -> list[str]:
        """Clears away what a case has left, and says all that is wrong with it."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.marker.exists():
            self.marker.rmdir()
            failures = [*failures, "ran the code of an option"]
        return [f"{case.kind}, {case.name}: {failure}: {case.about[:600]}" for failure in failures]


def _hang(*_: Any) -> None:
    raise Hang


def _no_memory(error: BaseException | None) -> str:
    """What says, in an error or in what it came of, that memory was lacking; empty for nothing."""
    while error is not None:
        text = f"{type(error).__name__}: {str(error)[:200]}"
        if _NO_MEMORY.search(text):
            return text
        error = error.__cause__ or error.__context__
    return ""


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
