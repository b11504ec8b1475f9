"""Runs the commands of reproduce.py in forks of the test: a process of its own takes five seconds to import fairseq, for each command."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import ROOT, Running

sys.path.insert(0, str(ROOT / "examples/translation"))

from reproduction import running


class Fork:
    """A command under way: what reproduce.py asks of a process."""

    def __init__(self, started: Running) -> None:
        self.started, self.pid = started, started.pid

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, timeout: float) -> int:
        return self.started.wait().code


def run_in_forks(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on no command of reproduce.py is a program of its own; `folder` takes what none prints."""

    def fork(words: list[str], *, cwd: Path, stdout: object, **_: object) -> Fork:
        name, *arguments = words
        module = importlib.import_module(running._MODULES[Path(name).name])

        def act() -> None:
            os.chdir(cwd)
            for number in (1, 2):
                os.dup2(stdout.fileno(), number)  # type: ignore[attr-defined]
            module.cli_main()

        return Fork(Running(act, arguments, folder))

    monkeypatch.setattr(running.Place, "command", running.Place.words)
    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "STDOUT", "TimeoutExpired")}
    monkeypatch.setattr(running, "subprocess", SimpleNamespace(Popen=fork, **names))
