"""Runs a case and says what is wrong with how it ended and with what it wrote."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fairseq_dsp.checkpoint import load_model, read_checkpoint
from fairseq_dsp.errors import Refusal
from tests.campaigns import mutations
from tests.campaigns.cases import Case, Source

SECONDS = 60  # for one case in this process, on a busy machine; a command gets five times as long


class Hang(BaseException):
    """A case takes too long. No `Exception`, which what is tested could catch."""


class Judge:
    """Runs cases and says what is wrong.

    Args:
        folder: for outputs; empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.expected = folder, {}  # type: Path, dict[tuple[str, ...], Any]
        self.refused = False

    def run(self, case: Case) -> list[str]:
        """A case in this process."""
        said = io.StringIO()
        signal.signal(signal.SIGALRM, _hang)
        code = 0
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                importlib.import_module(f"fairseq_dsp.cli.{case.name}").main(list(self._arguments(case)))
        except Refusal as refusal:
            code = 2
            print(*(f"fairseq_dsp: error: {reason}" for reason in refusal.reasons), file=said)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except Hang:
            return self._end([f"{case.kind}, {case.name}: no end after {SECONDS} s: {case.about}"])
        except BaseException as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:200]} ({Path(frame.filename).name}:{frame.lineno})"
            return self._end([f"{case.kind}, {case.name}: {what}: {case.about[:600]}"])
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
            return self._end([f"{case.kind}, {case.name}: no end after {5 * SECONDS} s: {case.about}"])
        return self._judge(case, done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"))

    def undamaged(self, source: Source) -> None:
        """Learns what undamaged checkpoints give."""
        for path in source.bytes:
            for command in (
                ("prune", "IN", "OUT"), ("prune", "IN", "OUT", "--layout", mutations.LAYOUT), ("average", "OUT", "IN", "IN"),
                ("export", "IN", "OUT", "--format", "dense"),
            ):  # fmt: skip
                with contextlib.suppress(Refusal), contextlib.redirect_stdout(io.StringIO()):
                    words = [str(path) if word == "IN" else word for word in command[1:]]
                    importlib.import_module(f"fairseq_dsp.cli.{command[0]}").main(
                        list(self._arguments(Case("", command[0], tuple(words))))
                    )
                    self.expected.setdefault(command[0], []).append(_tensors(self._out))
                self._end([])

    @property
    def _out(self) -> Path:
        return self.folder / "out"

    def _arguments(self, case: Case) -> Iterator[str]:
        return (str(self._out) if word == "OUT" else word for word in case.arguments)

    def _judge(self, case: Case, code: int, said: str) -> list[str]:
        self.refused = code == 2
        if code not in (0, 2) or "Traceback" in said:
            return self._end([f"{case.kind}, {case.name}: ended with code {code}: {said[-600:]}: {case.about[:600]}"])
        failures = []
        if code == 2:
            if "error: " not in said:
                failures.append(f"says nothing: {said[-200:]}")
            if os.listdir(self.folder):
                failures.append(f"refused, but left {os.listdir(self.folder)}")
            if case.must_say not in said:
                failures.append(f"does not name {case.must_say}: {said[-300:]}")
            if len(said) > 20_000:
                failures.append(f"says {len(said)} characters")
        elif case.must_say:
            failures.append(f"took what is not fit: {case.must_say}")
        elif case.name in ("prune", "average", "export"):
            failures += self._wrong(case)
        return self._end([f"{case.kind}, {case.name}: {failure}: {case.about[:600]}" for failure in failures])

    def _wrong(self, case: Case) -> list[str]:
        """What is wrong with the checkpoint that was written."""
        try:
            tensors = _tensors(self._out)
            layout = load_model(read_checkpoint(str(self._out))).deployed_layout()
        except (Exception, SystemExit) as error:
            return [f"wrote what cannot be read: {error}"]
        failures = [f"wrote {name}, not finite" for name, value in tensors.items() if not bool(value.isfinite().all())]
        if case.heads is not None and layout.count != case.heads:
            failures.append(f"wrote {layout.count} heads instead of {case.heads}")
        if case.same and not any(_equal(tensors, one) for one in self.expected[case.name]):
            failures.append("wrote something else than of the undamaged file")
        return failures

    def _end(self, failures: list[str]) -> list[str]:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return failures


def _hang(*_: Any) -> None:
    raise Hang


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
