"""What runs are made of: commands, and the files of other runs that they read. Planned by `plan`, run by `running`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Placeholders in commands: what they stand for is known to the machine that runs them, and does not belong into results.
DATA, PLUGIN = "DATA-BIN", "fairseq_dsp"


@dataclass(frozen=True)
class Step:
    """One command of a run. Paths are seen from the output folder.

    Attributes:
        name: of its log and marker.
        words: the command, `DATA` and `PLUGIN` for the folders.
        output: the file that it makes anew, removed before it runs again; None for training, which goes on.
    """

    name: str
    words: tuple[str, ...]
    output: str | None = None

    @property
    def trains(self) -> bool:
        return self.words[0] == "fairseq-train"


@dataclass(frozen=True)
class Run:
    """One line of the results, or, where `budget` is None, scores or a training that other runs need.

    Attributes:
        budget: K; the word auto for hard-concrete's own number.
        needs: names of runs that come first.
        deployed: the checkpoint that translates the test set.
        training: the run that trained it; empty for this one.
    """

    name: str
    method: str
    budget: int | str | None
    seed: int
    steps: tuple[Step, ...]
    needs: tuple[str, ...] = ()
    deployed: str = ""
    training: str = ""


def recipe_of(run: Run, runs: Sequence[Run]) -> list[Step]:
    """All commands that a run's figures rest on, in order: its own, and before them what made the files that they read.

    Args:
        runs: the whole plan.
    """
    by_name = {each.name: each for each in runs}
    steps: list[Step] = []
    for name in run.needs:
        # what a needed run translates is its own affair
        steps += [step for step in recipe_of(by_name[name], runs) if step.name != "generate"]
    return list(dict.fromkeys([*steps, *run.steps]))


def files_from(run: Run, needed: str) -> list[str]:
    """Paths of the files that a run's commands read of a needed run, as seen from the output folder."""
    words = [word for step in run.steps for word in step.words]
    return list(dict.fromkeys(word for word in words if word.startswith(f"runs/{needed}/")))
