"""Gives broken layouts, scores, results, options, weights and files to the commands.

    python -m tests.campaigns.fuzz --count 10000 --commands 50 --seed 1

Each case must end within a time limit in a refusal (a sentence, exit code 2), or well: then what was written loads, has exactly
the heads that it says, and finite weights or scores; and where only bytes of a checkpoint's file had changed, it is what the same
command gives of the undamaged file. No case may need more memory than the machine can spare, run code that stands in a checkpoint's
options, or write what it finds in the environment. `--count` cases call the commands' functions in this process, `--commands`
start the real commands.
"""

from __future__ import annotations

import contextlib
import random
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import torch
from hypothesis import HealthCheck, Phase

from fairseq_dsp.analysis import plots
from tests.campaigns.cases import Case, Source
from tests.campaigns.judging import Judge
from tests.campaigns.material import Material, Tally, make, parser

_BYTES = 8 << 30  # of address space that cases may add
_PIXEL = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; 1 where something was not as it should be."""
    numbers = {"count": (10_000, "cases in this process"), "commands": (50, "cases through the real commands")}
    args = parser(str(__doc__), **numbers).parse_args(arguments)
    torch.set_num_threads(
        1
    )  # some cases run in forked children, which would wait for threads that a fork does not have
    tally = Tally(args.count + args.commands)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(make(folder), folder, args.count, args.commands, args.seed, tally)
    return tally.finish()


def run(made: Material, folder: Path, count: int, commands: int, seed: int, tally: Tally) -> None:
    """So many cases of each way."""
    for name in ("broken", "outputs"):
        (folder / name).mkdir()
    source, judge = Source(made, folder / "broken", folder / "executed"), Judge(folder / "outputs", folder / "executed")
    judge.undamaged(source)

    def through(way: Callable[[Case], list[str]], prefix: str, cases: int) -> None:
        done, seeds = 0, random.Random(f"{seed} {prefix}")
        while done < cases:

            @hypothesis.seed(seeds.randrange(2**32))
            @hypothesis.settings(
                max_examples=min(cases - done, 500), deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @hypothesis.given(source.cases())
            def each(case: Case) -> None:
                nonlocal done
                if done == cases:
                    return
                done += 1
                failures = way(case)
                tally.count(f"{prefix}{case.kind}", f"{prefix}refused" if judge.refused else f"{prefix}done")
                tally.step(failures)

            each()

    with limited_memory():
        with drawing_nothing():
            through(judge.run, "", count)
        through(judge.run_command, "commands: ", commands)


@contextlib.contextmanager
def drawing_nothing() -> Iterator[None]:
    """Figures take seconds; in this process they are single pixels."""

    def draw(*given: Any, **options: Any) -> None:
        for path in given[-2:]:
            Path(path).write_bytes(_PIXEL)

    names = ("score_against_heads", "attention_type_shares", "kept_heads_by_budget", "training_courses")
    with mock.patch.multiple(plots, **dict.fromkeys(names, draw)):
        yield


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Lets cases fail that want the machine's memory, and commands that they start."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


if __name__ == "__main__":
    sys.exit(main())
