"""What campaigns work on: a data folder, a dense checkpoint and one that was trained with a budget. Made in seconds."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_up
from commands import PREPROCESS, QUIET, budget, prune, run, train

LAYOUT = "enc:10.01/dec:11.00/cross:01.00"
NEURONS = (
    "ffn-enc:11110000.00000000/ffn-dec:01111111.11111101"  # in groups of two: some, none and nearly all of a layer
)


@dataclass(frozen=True)
class Material:
    """Files that nobody changes.

    Attributes:
        data: as fairseq-preprocess makes it.
        dense: a checkpoint of stock fairseq, 12 heads.
        trained: trained with a budget of 5 heads, which are fixed; not rewritten.
        pruned: `trained`, rewritten.
        narrow: `trained`, rewritten without some of its neurons (format 2).
        results: results of runs that never were.
    """

    data: Path
    dense: Path
    trained: Path
    pruned: Path
    narrow: Path
    results: Path


def make(folder: Path) -> Material:
    """Makes everything with the real commands."""
    draw = random.Random(0)
    for subset, count in (("train", 60), ("valid", 9), ("test", 9)):
        lines = [[draw.randrange(12) for _ in range(draw.randint(2, 8))] for _ in range(count)]
        for side in "ab":
            text = "".join(" ".join(f"{side}{word}" for word in line) + "\n" for line in lines)
            (folder / f"{subset}.{side * 2}").write_text(text)
    arguments: list[Any] = ["-s", "aa", "-t", "bb", "--destdir", folder / "bin", "--workers", 1]
    for subset in ("train", "valid", "test"):
        arguments += [f"--{subset}pref", folder / subset]
    done = run(PREPROCESS, *arguments, folder=folder)
    assert done.code == 0, done.err
    train(folder / "bin", folder / "dense", *QUIET, "--max-update", 3, stock=True)
    train(folder / "bin", folder / "trained", *QUIET, *budget(5, cooldown=2), "--max-update", 4)
    dense, trained = (folder / name / "checkpoint_last.pt" for name in ("dense", "trained"))
    prune(trained, folder / "pruned.pt")
    prune(trained, folder / "narrow.pt", "--layout", f"{LAYOUT}/{NEURONS}")
    few = [made_up.run("dense", 36), *(made_up.run(kept=kept) for kept in (12, 6))]
    results = made_up.write(folder / "results.jsonl", few)
    return Material(folder / "bin", dense, trained, folder / "pruned.pt", folder / "narrow.pt", results)


def parser(description: str, **counts: tuple[int, str]) -> argparse.ArgumentParser:
    """Options of a campaign: its numbers, each with a default and what it counts, and the seed."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, what) in counts.items():
        found.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    found.add_argument("--seed", type=int, default=1, metavar="N", help="of everything drawn (default: 1)")
    return found


class Tally:
    """Counts what happened, keeps one line of progress, and ends with a line of JSON.

    Args:
        total: cases planned.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.figures: dict[str, Any] = {}
        self.failures: list[str] = []
        self.begun = time.monotonic()

    def count(self, *names: str) -> None:
        """One more of each."""
        for name in names:
            self.figures[name] = self.figures.get(name, 0) + 1

    def step(self, failures: Sequence[str]) -> None:
        """A case is over; says so where somebody looks."""
        self.done += 1
        for failure in failures:
            self.fail(failure)
        if sys.stderr.isatty() or self.done % 100 == 0:
            text = f"{self.done} of {self.total}, {len(self.failures)} failures, {time.monotonic() - self.begun:.0f} s"
            print(text, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    def fail(self, failure: str) -> None:
        """Something is not as it should be."""
        self.failures.append(failure)
        print(f"FAILED: {failure}", file=sys.stderr, flush=True)

    def finish(self) -> int:
        """Prints the figures; returns the exit code."""
        seconds = round(time.monotonic() - self.begun)
        figures = {"cases": self.done, **self.figures, "failures": len(self.failures), "seconds": seconds}
        print(json.dumps(figures))
        return 1 if self.failures else 0
