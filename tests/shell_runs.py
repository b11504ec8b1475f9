"""Runs of reproduce.py whose commands are shell one-liners: for tests of what starts them and looks after them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/translation"))

from reproduction.experiment import Experiment
from reproduction.running import Job, Place
from reproduction.steps import Run, Step


class Shell(Place):
    """Runs the second word of a step as a shell command."""

    def command(self, step: Step) -> list[str]:
        return ["sh", "-c", step.words[1]]


def step(command: str = "true", output: str | None = None, name: str = "score") -> Step:
    return Step(name, ("fairseq-dsp-score", command), output)


def run(name: str = "a", *steps: Step, needs: tuple[str, ...] = (), deployed: str = "") -> Run:
    """One without a line in the results: nothing is measured at its end."""
    return Run(name, "gradient", None, 1, steps or (step(),), needs, deployed)


def an_experiment(*runs: Run, gpus: tuple[str, ...] = (), jobs: int = 1) -> Experiment:
    return Experiment(runs, None, list(gpus), jobs, {}, False)


def finish(job: Job) -> None:
    until = time.monotonic() + 30
    while not job.advance():
        assert time.monotonic() < until
        time.sleep(0.01)


def finish_one(job: Job) -> None:
    """Runs the job's next step to its end, and starts the one after it."""
    current = job.step
    while job.step is current:
        job.advance()
        time.sleep(0.005)
    assert job.failed is None
