"""Runs commands, several at once, and remembers what is finished: one small marker a step, written when it has ended."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import fairseq_dsp
from fairseq_dsp.errors import Refusal

from .checkpoints import recover
from .results import write_marker
from .steps import DATA, PLUGIN, Run, Step

_MODULES = {
    "fairseq-train": "fairseq_cli.train",
    "fairseq-generate": "fairseq_cli.generate",
    "fairseq-dsp-prune": "fairseq_dsp.cli.prune",
    "fairseq-dsp-score": "fairseq_dsp.cli.score",
    "fairseq-dsp-merge": "fairseq_dsp.cli.merge",
}
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_SCARCE = 50_000_000  # bytes of room on the disk that are worth a word where a command fails
_PATIENCE = 5.0  # seconds
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Place:
    """The output folder and what commands are run with.

    Args:
        data: the data folder, absolute.
        threads: of each command.
        say: prints a line for the user.
    """

    def __init__(self, out: Path, data: Path, threads: int, say: Callable[[str], None]) -> None:
        self.out, self.data, self.threads, self.say = out, data, threads, say
        self.lock: IO[str] | None = None

    @contextlib.contextmanager
    def locked(self, patience: float = 30.0) -> Iterator[None]:
        """Nobody else works here meanwhile. Commands hold the lock too: one that outlives its parent is waited for.

        Raises:
            Refusal: somebody does.
        """
        with open(self.out / ".lock", "w") as lock:
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > until:
                        raise Refusal(
                            f"`--output` must be nobody else's, but a run is under way in {self.out}."
                        ) from None
                    time.sleep(0.5)
            self.lock = lock
            yield

    def words(self, step: Step) -> list[str]:
        """The words of a step with this machine's folders."""
        here = {DATA: str(self.data), PLUGIN: fairseq_dsp.__path__[0]}
        return [here.get(word, word) for word in step.words]

    def command(self, step: Step) -> list[str]:
        """What is run for a step."""
        name, *words = self.words(step)
        return [*_program(name), *words]

    def start(self, step: Step, log: Path, gpu: str | None) -> subprocess.Popen[bytes]:
        """Starts a command in the output folder, its output going to `log`."""
        line = f"$ {shlex.join(self.words(step))}"
        self.say(line)
        with open(self.out / "commands.log", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        # translations go through stdout, and are UTF-8 whatever the user's terminal is
        variables = {"OMP_NUM_THREADS": str(self.threads)} | dict(os.environ) | {"PYTHONIOENCODING": "utf-8"}
        if gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = gpu
        assert self.lock is not None
        with open(log, "ab" if step.trains else "wb") as output:
            return subprocess.Popen(
                self.command(step), cwd=self.out, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=variables,
                start_new_session=True, pass_fds=(self.lock.fileno(),), preexec_fn=_die_with_parent if _LIBC else None,
            )  # fmt: skip


class Job:
    """One run under way.

    Attributes:
        failed: why it cannot go on; None while it can.
        gpu: the device that it was given.
    """

    def __init__(self, run: Run, place: Place, gpu: str | None) -> None:
        self.run, self.place, self.gpu = run, place, gpu
        self.folder = place.out / "runs" / run.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.failed: str | None = None
        self.begun = self._step_begun = time.monotonic()
        self._left = [step for step in run.steps if not self._is_done(step)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def step(self) -> Step | None:
        """The command that runs, or comes next; None at the end."""
        return self._left[0] if self._left else None

    def log(self, step: Step) -> Path:
        return self.folder / f"{step.name}.log"

    def advance(self) -> bool:
        """Looks after the run without waiting; True once it has ended or failed."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return False
            self._process, step = None, self._left[0]
            if code != 0:
                tail = _tail(self.log(step)) or "it printed nothing"
                free = shutil.disk_usage(self.place.out).free
                room = f"; the disk of {self.place.out} has {_size(free)} left" if free < _SCARCE else ""
                self.failed = (
                    f"{step.words[0]} of {self.run.name} ended with code {code} ({self.log(step)}): {tail}{room}"
                )
                return True
            seconds = round(time.monotonic() - self._step_begun, 1)
            write_marker(self._marker(step), {"command": list(step.words), "seconds": seconds})
            del self._left[0]
        if not self._left:
            return True
        step, self._step_begun = self._left[0], time.monotonic()
        if step.trains:
            (self.folder / "checkpoints").mkdir(exist_ok=True)
            state = recover(self.folder / "checkpoints")
            if state != "starts":
                self.place.say(f"{self.run.name} {state}")
        elif step.output is not None:
            (self.place.out / step.output).unlink(missing_ok=True)
        self._process = self.place.start(step, self.log(step), self.gpu)
        return False

    def last_line(self) -> str:
        """What the command said last."""
        return _tail(self.log(self._left[0]), 1) if self._left else ""

    def stop(self) -> None:
        """Ends the command and what it has started. A command of ours removes what it has begun, and has a little time for that."""
        if self._process is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_PATIENCE)

    def _marker(self, step: Step) -> Path:
        return self.folder / f"{step.name}.done"

    def _is_done(self, step: Step) -> bool:
        try:
            content: Any = json.loads(self._marker(step).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        output = self.place.out / step.output if step.output else None
        return content.get("command") == list(step.words) and (output is None or output.is_file())


def tidy(run: Run, out: Path) -> None:
    """Removes a finished run's checkpoints but for the one that translated."""
    for path in (out / "runs" / run.name).glob("checkpoints/*"):
        if path != out / run.deployed:
            path.unlink()


def refuse_full_disk(out: Path, needed: int) -> None:
    """Checks that the runs' checkpoints fit.

    Raises:
        Refusal: they do not.
    """
    free = shutil.disk_usage(out).free
    if free < needed:
        raise Refusal(f"`--output` must have about {_size(needed)} free for these runs, but {out} has {_size(free)}.")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _tail(path: Path, lines: int = 3) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - 4000, 0))
            found = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    refusals = [line for line in found if line.startswith("fairseq_dsp: error: ")]
    return " / ".join(line[-400:] for line in (refusals or found)[-lines:])


def _program(name: str) -> list[str]:
    """What runs a console command: its script beside this Python, or its module."""
    script = Path(sys.executable).parent / name
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", f"from {_MODULES[name]} import cli_main; cli_main()"]


def _die_with_parent() -> None:
    assert _LIBC is not None
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
