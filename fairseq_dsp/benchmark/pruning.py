"""Seconds and peak memory of `fairseq-dsp-prune` on checkpoints of a given size, made for it.

    python -m fairseq_dsp.benchmark.pruning --megabytes 1000

One checkpoint is as training leaves it, with Adam's state, the other has weights alone. Both are made by a process of their
own, and the command runs as a user runs it: its seconds include starting Python, its memory is all that is resident.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from rich.console import Console
from rich.table import Table

from fairseq_dsp.benchmark.candidates import Candidate, facts_of, options_of
from fairseq_dsp.benchmark.measuring import median
from fairseq_dsp.benchmark.sentences import batch_of
from fairseq_dsp.benchmark.settings import Settings
from fairseq_dsp.benchmark.training import trainer_of, update
from fairseq_dsp.errors import Refusal, as_command, noted
from fairseq_dsp.files.checkpoint import family_of
from fairseq_dsp.files.output import checked_file

KINDS = ("training", "weights only")
_COMMAND = "from fairseq_dsp.cli.prune import cli_main; cli_main()"


@dataclass(frozen=True)
class Measured:
    """What rewriting one checkpoint took.

    Args:
        kind: of `KINDS`.
        size: bytes of the checkpoint.
        seconds: of every run.
        peak: the largest resident size of any run in bytes.
        rewritten: bytes of the rewritten checkpoint.
    """

    kind: str
    size: int
    seconds: list[float]
    peak: int
    rewritten: int


def make_checkpoint(path: str, kind: str, megabytes: int, architecture: str) -> None:
    """Writes a checkpoint of a model that keeps a quarter of its heads, its dictionaries as large as the size asks for."""
    for talker in ("fairseq", "hydra"):
        logging.getLogger(talker).setLevel(logging.WARNING)
    words = 100
    smallest = Candidate(f"{architecture}:words={words}/{words}", True).build()
    copies = 3 if kind == "training" else 1  # Adam keeps two numbers for each
    facts = facts_of(smallest)
    per_word = smallest.encoder.embed_tokens.embedding_dim + smallest.decoder.embed_tokens.embedding_dim
    words += max(int(megabytes * 1e6 / 4 / copies - facts.parameters) // per_word, 0)
    model = Candidate(f"{architecture}:spread={facts.total // 4},gated,words={words}/{words}", True).build()
    settings = Settings(length=2, words=(words, words))
    trainer = trainer_of(model, settings)
    update(trainer, batch_of(settings, 1), heads_fixed=False)
    trainer.consolidate_optimizer()
    state = trainer.state_dict()
    state["cfg"]["model"] = options_of(model)
    state["extra_state"]["train_iterator"] = {"epoch": 1, "iterations_in_epoch": 1}
    torch.save(state if kind == "training" else {name: state[name] for name in ("args", "cfg", "model")}, path)


def measure(kind: str, megabytes: int, architecture: str, runs: int, folder: str) -> Measured:
    """Makes the checkpoint, rewrites it `runs` times.

    Raises:
        Refusal: the command failed; its last line says why.
    """
    path, rewritten = os.path.join(folder, "checkpoint.pt"), os.path.join(folder, "pruned.pt")
    maker = multiprocessing.get_context("spawn").Process(
        target=make_checkpoint, args=(path, kind, megabytes, architecture)
    )
    maker.start()
    maker.join()
    if maker.exitcode:
        raise Refusal(f"a checkpoint of {megabytes} MB could not be made: exit code {maker.exitcode}.")
    seconds, peaks = [], []
    for _ in range(runs):
        with tempfile.TemporaryFile() as log:
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, path, rewritten, "--force"], stdout=log, stderr=log
            )
            # A child's figure begins at its parent's, which has the same libraries and no model.
            _, status, usage = os.wait4(process.pid, 0)
            seconds.append(time.perf_counter() - start)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                log.seek(0)
                reason = (log.read().decode().strip().splitlines() or [f"exit code {process.returncode}"])[-1]
                raise Refusal(f"the checkpoint could not be rewritten: {reason}")
        peaks.append(usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024)
    return Measured(kind, os.path.getsize(path), seconds, max(peaks), os.path.getsize(rewritten))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured.
    """
    parser = argparse.ArgumentParser(prog="python -m fairseq_dsp.benchmark.pruning", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="of each checkpoint, about (default: 1000)")
    parser.add_argument("--arch", default="dsp_transformer_wmt_en_de", help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="of the command on each checkpoint (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write a line for each checkpoint")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    args = parser.parse_args(arguments)
    _check(args)
    lines = ""
    table = Table()
    for column in ("checkpoint", "MB", "seconds", "peak MB", "peak / file", "rewritten MB"):
        table.add_column(column, justify="left" if column == "checkpoint" else "right")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(kind, args.megabytes, args.arch, args.runs, folder)
        sizes = [f"{size / 1e6:,.0f}" for size in (found.size, found.peak, found.rewritten)]
        table.add_row(
            kind, sizes[0], f"{median(found.seconds):.1f}", sizes[1], f"{found.peak / found.size:.2f}", sizes[2]
        )
        lines += json.dumps(asdict(found)) + "\n"
        if args.json:  # after every kind: what was measured is kept, whatever comes next
            args.json.write(lambda file, lines=lines: file.write(lines.encode()), "the measurements")
            args.json = replace(args.json, force=True)  # what is there now is ours
    Console().print(table)


def _check(args: argparse.Namespace) -> None:
    """Raises:
    Refusal: options that cannot be honoured, all at once.
    """
    reasons = [
        f"`--{option}` must be at least 1, but is {getattr(args, option)}."
        for option in ("megabytes", "runs")
        if getattr(args, option) < 1
    ]
    if family_of(args.arch) != "dsp_transformer":
        reasons.append(f"`--arch` must be a dsp_transformer, but is {args.arch}.")
    if args.json is not None:
        with noted(reasons):
            args.json = checked_file(args.json, args.force)
    if reasons:
        raise Refusal(*reasons)


if __name__ == "__main__":
    with as_command():
        main()
