"""Judges ways of choosing heads on a task of which it is known what heads it needs (`lookup`), in minutes.

    python -m fairseq_dsp.benchmark.choice --json choice.jsonl --start dense --seeds 1-10 \\
        --methods recipe=dsp:recipe=auto paper=dsp ste fixed cross-first gradient

An arm reads [LABEL=]NAME[:option=value,…]: a method of --head-selection with its options; a scorer, which cuts the dense model
(--start dense), cut:NAME where a method has its name; or a control: dense, sufficient (heads that suffice by construction), cross-first (a cross-attention head in
every decoder layer first, drawn at random), shuffled:ARM (the counts by site of another arm of the list, heads drawn anew).
Every finished arm is a line of the file. Lines that are there are not done again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import logging
import multiprocessing
import os
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from fairseq_dsp.benchmark.arms import DENSE, SUFFICIENT, Arm, parse_arm
from fairseq_dsp.benchmark.choice_lines import by_seed, is_line_of, line_of, read_lines, tables
from fairseq_dsp.benchmark.choosing import Bench, Setting
from fairseq_dsp.errors import Refusal, exit_on_refusal, noted
from fairseq_dsp.units.layout import Layout

_TABLE_WIDTH = 150
_SHORT = 300  # updates of arms that begin with heads that know their places
_FROM_DENSE = {"updates": _SHORT, "lr": 2e-3, "dense_updates": 900}
METHODS = (
    "paper=dsp",
    "gentle=dsp:initial_temperature=0.5,final_temperature=0.01,importance_lr=0.05",
    "recipe=dsp:recipe=auto",
    "ste",
    "fixed",
    "cross-first",
    SUFFICIENT,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured.
    """
    args = _parser().parse_args(arguments)
    setting, arms, budgets, seeds = _read(args)
    with tempfile.TemporaryDirectory() as folder:
        path = args.json or os.path.join(folder, "choice.jsonl")
        lines = read_lines(path, cut=True)
        _check(setting, arms, budgets)
        todo = {seed: _missing(lines, setting, arms, budgets, seed) for seed in seeds}
        work = [(setting, seed, missing, path) for seed, missing in todo.items() if missing]
        if args.jobs == 1:
            for each in work:
                run_seed(*each)
        elif work:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
                for future in [pool.submit(run_seed, *each) for each in work]:
                    future.result()
        for table in tables(read_lines(path), setting, arms, budgets, seeds):
            Console(width=_TABLE_WIDTH).print(table)


def run_seed(setting: Setting, seed: int, wanted: Sequence[tuple[int, Arm]], path: str) -> None:
    """Trains arms of one seed, each with its budget, in the given order, and appends a line for each as it is finished."""
    for talker in ("fairseq", "hydra"):
        logging.getLogger(talker).setLevel(logging.WARNING)
    torch.set_num_threads(1)
    bench = Bench(setting, seed)
    for k, arm in wanted:
        source = None
        if arm.source is not None:
            line = next(line for line in read_lines(path) if is_line_of(line, setting, arm.source, k, seed))
            source = Layout.parse(line["layout"])
        outcome = bench.run(arm, k, source)
        with open(path, "a", encoding="utf-8") as file:  # one write of one line: processes do not mix theirs
            file.write(json.dumps(line_of(setting, arm, k, seed, outcome)) + "\n")


def _missing(
    lines: Sequence[dict[str, Any]], setting: Setting, arms: Sequence[Arm], budgets: Sequence[int], seed: int
) -> list[tuple[int, Arm]]:
    return [(k, arm) for k in budgets for arm in arms if not by_seed(lines, setting, arm, k, (seed,))]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_dsp.benchmark.choice",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    default = Setting()
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="ARM", help="default: %(default)s")
    parser.add_argument("--kept", default="4", help="budgets, K, with commas between (default: %(default)s)")
    parser.add_argument(
        "--seeds", default="1-10", help="numbers and ranges, with commas between (default: %(default)s)"
    )
    parser.add_argument("--start", choices=("scratch", DENSE), default="scratch", help="default: %(default)s")
    parser.add_argument("--variant", choices=("plain", "roles"), default="plain",
                        help="roles: frozen queries and keys, so that heads differ (default: %(default)s)")  # fmt: skip
    parser.add_argument("--heads", type=int, default=default.heads, help="of a sublayer (default: %(default)s)")
    parser.add_argument(
        "--updates", type=int, help=f"of an arm (default: {default.updates}; from dense, and with roles, {_SHORT})"
    )
    parser.add_argument(
        "--dense-updates", type=int, help=f"of the model that arms start from (default: {_FROM_DENSE['dense_updates']})"
    )
    parser.add_argument("--lr", type=float, help=f"of an arm (default: {default.lr}, from dense {_FROM_DENSE['lr']})")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where finished arms are kept, and found")
    return parser


def _read(args: argparse.Namespace) -> tuple[Setting, list[Arm], list[int], list[int]]:
    """The request.

    Raises:
        Refusal: values that are not fit, all at once.
    """
    reasons: list[str] = []
    arms: list[Arm] = []
    budgets: list[int] = []
    seeds: list[int] = []
    for text in args.methods:
        with noted(reasons):
            arms.append(parse_arm(text))
    with noted(reasons):
        budgets = _numbers(args.kept, "kept")
    with noted(reasons):
        seeds = _numbers(args.seeds, "seeds")
    values: dict[str, Any] = {"variant": args.variant, "start": args.start, "heads": args.heads}
    values |= {"updates": _SHORT} if args.variant == "roles" else {}
    values |= _FROM_DENSE if args.start == DENSE else {}
    values |= {
        name: getattr(args, name) for name in ("updates", "lr", "dense_updates") if getattr(args, name) is not None
    }
    for name, number in [*values.items(), ("jobs", args.jobs)]:
        if not isinstance(number, str) and number <= 0:
            reasons.append(f"`--{name.replace('_', '-')}` must be above 0, but is {number}.")
    if args.dense_updates is not None and args.start != DENSE:
        reasons.append(f"`--dense-updates` must be given with `--start {DENSE}` alone, but the start is {args.start}.")
    labels = [arm.label for arm in arms]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        reasons.append(f"`--methods` must name every arm once, but names {', '.join(twice)} twice.")
    specs = [arm.spec for arm in arms]
    for position, arm in enumerate(arms):
        if arm.source is not None and arm.source.spec not in specs[:position]:
            reasons.append(f"`--methods` must have {arm.source.spec} before {arm.spec}, which takes its counts.")
    if reasons:
        raise Refusal(*reasons)
    return Setting(**values), arms, budgets, seeds


def _check(setting: Setting, arms: Sequence[Arm], budgets: Sequence[int]) -> None:
    """Refuses what no arm could be trained with before anything is trained.

    Raises:
        Refusal: options or budgets that do not fit; every reason.
    """
    reasons: list[str] = []
    for arm in arms:
        for k in budgets:
            reasons += Bench(setting, 1).objections(arm, k)
    if reasons:
        raise Refusal(*dict.fromkeys(reasons))


def _numbers(text: str, option: str) -> list[int]:
    """`1-3,7` as 1, 2, 3, 7."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if match is None:
            raise Refusal(f"`--{option}` must be whole numbers and ranges such as 1-3,7, but is {text!r}.")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not found:
        raise Refusal(f"`--{option}` must have a number at least, but is {text!r}.")
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    with exit_on_refusal():
        main()
