"""Kills commands with SIGKILL at random moments, and looks at what is left.

    python -m tests.campaigns.kills --count 200 --reproduce 40 --seed 1

Half of the attempts come at any moment of a command, half while it writes. Writing takes so little that the latter often come
after the end and do not count: of the kills that do, about 70 % come at any moment and 30 % while writing. After each: under the
output's name lies the old output whole, the new one whole, or, where there was none, nothing (an old folder may wait in the partial
output for the next run, if the kill came between the two renames of a replacement); at most one partial output of a killed writer is
beside it; and the same command, started again, ends well with the output of an undisturbed run and nothing beside it.

Commands run in children forked from a process that has everything imported, so a kill costs a second and not ten.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import AVERAGE, PRUNE, Running

from tests.campaigns import reproducing
from tests.campaigns.material import Material, Tally, make, parser

SCORE, EXPORT, REPORT = "fairseq_dsp.cli.score", "fairseq_dsp.cli.export", "fairseq_dsp.cli.report"
for _name in (SCORE, EXPORT, REPORT, "fairseq_dsp.analysis.plots", "jinja2"):
    importlib.import_module(_name)  # before any fork


@dataclass(frozen=True)
class Target:
    """A command that writes.

    Args:
        name: of the command.
        module: its module.
        arguments: of its output's path; `--force` is added.
        older: likewise, of a run whose output is another.
        folder: whether it writes a folder.
    """

    name: str
    module: str
    arguments: Callable[[Path], list[Any]]
    older: Callable[[Path], list[Any]]
    folder: bool = False


def targets(made: Material) -> list[Target]:
    """All commands of ours that write, CTranslate2's export where it is installed."""
    gradient = [made.data, "--path", made.dense, "--cpu", "--subset", "valid", "--max-tokens", 30]
    found = [
        Target("prune", PRUNE, lambda out: [made.trained, out], lambda out: [made.trained, out, "--unpruned-heads", 3]),
        Target(
            "average", AVERAGE, lambda out: [out, made.trained, made.trained, made.trained], lambda out: [out, made.dense]
        ),
        Target(
            "score", SCORE, lambda out: [*gradient, "--scorer", "gradient", "--output", out],
            lambda out: ["--path", made.dense, "--cpu", "--scorer", "random", "--output", out],
        ),
        Target(
            "export dense", EXPORT, lambda out: [made.pruned, out, "--format", "dense"],
            lambda out: [made.dense, out, "--format", "dense"],
        ),
        Target(
            "report", REPORT, lambda out: [made.results, "--output", out],
            lambda out: [_first_lines(made.results, 1), "--output", out], folder=True,
        ),
    ]  # fmt: skip
    if importlib.util.find_spec("ctranslate2") is not None:
        import ctranslate2

        assert ctranslate2.__version__
        served = ["--format", "ctranslate2", "--data", made.data]
        found.append(
            Target(
                "export ctranslate2",
                EXPORT,
                lambda out: [made.pruned, out, *served, "--quantization", "int8"],
                lambda out: [made.dense, out, *served],
                folder=True,
            )  # fmt: skip
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; 1 where something was not as it should be."""
    numbers = {"count": (200, "kills of single commands"), "reproduce": (40, "kills of reproduce.py and what it runs")}
    args = parser(str(__doc__), **numbers).parse_args(arguments)
    draw = random.Random(args.seed)
    tally = Tally(args.count + args.reproduce)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make(folder)
        kill_commands(made, folder, args.count, draw, tally)
        reproducing.kill_reproductions(made, folder, args.reproduce, draw, tally)
    return tally.finish()


def kill_commands(made: Material, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """So many kills, spread over all commands."""
    prepared: list[Prepared] = []
    for number, target in enumerate(targets(made)):
        (folder / f"target{number}").mkdir()
        if number < count:
            prepared.append(Prepared(target, folder / f"target{number}", folder))
    done = 0
    while done < count:
        killed = prepared[done % len(prepared)]
        writing, with_old = draw.random() < 0.5, draw.random() < 0.7
        failures = killed.kill(draw.random(), writing, with_old)
        if failures is None:
            tally.count("ended before its kill")
            continue
        done += 1
        tally.count(f"{killed.target.name}: {'writing' if writing else 'any moment'}", f"found {killed.found}")
        tally.step(failures)


class Prepared:
    """A command whose undisturbed run is known.

    Args:
        place: a folder of its own, for outputs.
        folder: for what the commands print.

    Attributes:
        found: what lay under the output's name after the last kill: the old one, the new one, or nothing; an old folder may have
            been moved aside, from where the next run gets it back.
    """

    def __init__(self, target: Target, place: Path, folder: Path) -> None:
        self.target, self.place, self.folder = target, place, folder
        self.out, self.old = place / "out", folder / f"{place.name}-old"
        self.found = "nothing"
        self._run(target.older(self.old))
        self._run(target.arguments(self.out))
        self.marks = {fingerprint(self.old): "the old one", fingerprint(self.out): "the new one"}
        assert len(self.marks) == 2
        with self._started() as (_, running):  # again, with a clock
            begun = time.monotonic()
            select.select([self.pipe], [], [])
            self.starts_writing = time.monotonic() - begun
            assert running.wait().code == 0
            self.seconds = time.monotonic() - begun

    def kill(self, moment: float, writing: bool, with_old: bool) -> list[str] | None:
        """Runs the command, kills it, and says what is wrong then; None where it ended first.

        Args:
            moment: when, from 0 to 1 of the time that it needs, or that it needs for writing.
            writing: only while it writes.
            with_old: over an older output.
        """
        _remove(self.out)
        if with_old:
            (shutil.copytree if self.target.folder else shutil.copy)(self.old, self.out)
        with self._started() as (begun, running):
            wait = moment * self.seconds
            if writing:
                select.select([self.pipe], [], [], 60)
                begun, wait = time.monotonic(), moment * (self.seconds - self.starts_writing)
            time.sleep(max(begun + wait - time.monotonic(), 0))
            os.kill(running.pid, signal.SIGKILL)
            if running.wait().code != -signal.SIGKILL:
                return None
        failures = []
        self.found = self.marks.get(fingerprint(self.out), "something else") if self.out.exists() else "nothing"
        aside = next(self.place.glob(".out.*.partial/old"), None)
        if self.found == "nothing" and self.target.folder and aside is not None:  # killed between two renames
            self.found = f"{self.marks.get(fingerprint(aside), 'something else')}, moved aside"
        if self.found not in (
            "the new one",
            *(("the old one", "the old one, moved aside") if with_old else ("nothing",)),
        ):
            failures.append(f"{self.target.name}, killed: under the output's name is {self.found}")
        beside = [name for name in os.listdir(self.place) if name != "out"]
        if len(beside) > 1:
            failures.append(f"{self.target.name}, killed: left {beside}")
        failures += self._run(self.target.arguments(self.out))
        if not failures and self.marks.get(fingerprint(self.out)) != "the new one":
            failures.append(f"{self.target.name}, started again: wrote something else")
        if not failures and os.listdir(self.place) != ["out"]:
            failures.append(f"{self.target.name}, started again: left {os.listdir(self.place)}")
        return failures

    def _run(self, arguments: list[Any]) -> list[str]:
        done = Running(self.target.module, [*arguments, "--force"], self.folder).wait()
        if done.code == 0:
            return []
        return [f"{self.target.name}, started again: ended with code {done.code}: {done.err[-300:]}"]

    @contextlib.contextmanager
    def _started(self) -> Iterator[tuple[float, Running]]:
        """The command, started; `self.pipe` can be read once it begins to write."""
        self.pipe, told = os.pipe()

        def run() -> None:
            sys.addaudithook(lambda event, about: _tell(told, event, about))
            importlib.import_module(self.target.module).cli_main()

        try:
            running = Running(run, [*self.target.arguments(self.out), "--force"], self.folder)
            os.close(told)
            yield time.monotonic(), running
        finally:
            os.close(self.pipe)


def fingerprint(path: Path) -> str:
    """A digest of a file, or of all files of a folder; of PDFs, which carry their date, only whether they are whole."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        digest.update(str(file.relative_to(path)).encode())
        if file.is_file():
            content = file.read_bytes()
            digest.update(str(content.endswith(b"%%EOF\n")).encode() if file.suffix == ".pdf" else content)
    return digest.hexdigest()


def _tell(pipe: int, event: str, about: tuple[Any, ...]) -> None:
    if event == "os.mkdir" and str(about[0]).endswith(".partial"):
        os.write(pipe, b".")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _first_lines(path: Path, count: int) -> Path:
    target = path.with_suffix(".first")
    target.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))
    return target


if __name__ == "__main__":
    sys.exit(main())
