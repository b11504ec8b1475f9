"""Kills of `examples/translation/reproduce.py` and of the commands that it runs. Called by `kills`."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from commands import ROOT, Running

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import read_checkpoint
from tests.campaigns.material import Material, Tally

sys.path.append(str(ROOT / "examples/translation"))

import reproduce

OPTIONS = ["--preset", "smoke", "--epochs", 2, "--max-tokens", 200, "--methods", "dense", "dsp", "gradient"]
OPTIONS += ["--budgets", 4, "--seeds", 1, "--jobs", 2]
_COMPARED = ("method", "kept", "seed", "updates", "parameters")
# Stock fairseq, which trains dense, sees other batches in the second epoch when it was resumed; our task sees the same.
_COMPARED_OF_DSP = (*_COMPARED, "layout", "bleu_tok", "sacrebleu", "chrf")
# hidden files that may lie about at one time: the lock, and one half-written file a job and kind
_MOST_HIDDEN = 8


def kill_reproductions(made: Material, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """So many kills, each of the script or of a command that it runs; a reproduction that ends makes room for the next.

    After each kill every result and marker is whole, and so is every checkpoint that a command of ours has written. In the
    end the results equal those of a reproduction that nobody has disturbed: all of them for dsp, and the number of updates and
    heads for what stock fairseq has trained.
    """
    if not count:
        return
    begun = time.monotonic()
    assert start(made, folder / "undisturbed", folder).wait().code == 0
    seconds = time.monotonic() - begun
    expected = comparable(folder / "undisturbed")
    done = number = 0
    while True:
        out = folder / f"reproduction{number}"
        running = start(made, out, folder)
        killed = "nothing"
        if done < count:
            killed = kill(running.pid, out, draw, seconds)
        result = running.wait()
        if killed != "nothing":
            done += 1
            tally.count(f"reproduce.py: {killed}")
            tally.step(broken(out))
            continue
        if result.code != 0 or comparable(out) != expected:
            tally.fail(
                f"reproduce.py ended with code {result.code}, and {comparable(out)} instead of {expected}: {result.out[-900:]} "
                f"{result.err[-300:]}"
            )
            break
        tally.count("reproductions that ended with the same results")
        number += 1
        if done >= count:
            break


def start(made: Material, out: Path, folder: Path) -> Running:
    arguments = [*OPTIONS, "--data", made.data, "--output", out]
    return Running(reproduce.cli_main, arguments, folder)


def kill(pid: int, out: Path, draw: random.Random, seconds: float) -> str:
    """Kills the script, or one of its commands, at a random moment; says which, `nothing` where it ended first."""
    what = draw.choice(("the script", "the script while it or a command writes", "a command"))
    until = time.monotonic() + draw.uniform(0, 0.25 * seconds)
    while time.monotonic() < until and _alive(pid):
        time.sleep(0.01)
    while what.endswith("writes") and _alive(pid) and not _writing(out):
        time.sleep(0.005)
    victim = pid
    while what == "a command" and _alive(pid) and victim == pid:
        victim = draw.choice(_children(pid) or [pid])
        time.sleep(0.01)
    if not _alive(pid):
        return "nothing"
    time.sleep(draw.uniform(0, 0.05))
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:  # the command has just ended; the script goes on
        os.kill(pid, signal.SIGKILL)
        return "the script"
    return what


def broken(out: Path) -> list[str]:
    """What is half-written under its final name, or lies about in numbers."""
    failures = []
    results = out / "results.jsonl"
    lines = results.read_bytes().split(b"\n")[:-1] if results.exists() else []
    for line in lines:
        if not _is_json(line):
            failures.append(f"reproduce.py: a broken line in results.jsonl: {line[:80]!r}")
    for path in (
        *out.rglob("*.done"),
        *out.rglob("result.json"),
        *out.glob("reproduce.json"),
        *out.rglob("scores*.json"),
    ):
        if not path.name.startswith(".") and not _is_json(path.read_bytes()):
            failures.append(f"reproduce.py: {path.name} is half-written")
    for path in out.rglob("*.pt"):
        if path.parent.name != "checkpoints" and not path.name.startswith("."):
            try:
                read_checkpoint(str(path))
            except Refusal as refusal:
                failures.append(f"reproduce.py: {refusal}")
    hidden = [path.name for path in out.rglob(".*")]
    if len(hidden) > _MOST_HIDDEN:
        failures.append(f"reproduce.py: left {hidden}")
    return failures


def comparable(out: Path) -> list[dict[str, Any]]:
    """What of the results must be the same however often a reproduction was killed, by method."""
    path = out / "results.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [
        {name: record[name] for name in (_COMPARED_OF_DSP if record["method"] == "dsp" else _COMPARED)}
        for record in records
    ]
    return sorted(kept, key=lambda record: str(record["method"]))


def _writing(out: Path) -> bool:
    return any(out.glob("runs/*/.*.partial")) or any(out.glob("runs/*/checkpoints/*.tmp"))


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _alive(pid: int) -> bool:
    """Whether a child runs; one that has ended is left for `wait`."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
