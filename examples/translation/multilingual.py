"""Do rankings of heads transfer between language pairs? One command, which goes on where it was ended.

    python examples/translation/multilingual.py --preset smoke --output smoke
    python examples/translation/multilingual.py --preset small --text tatoeba --low en-sv --output study

Trains one-to-many and many-to-one models (fairseq's translation_multi_simple_epoch), ranks their heads for every pair, on all data and on
halves of it, cuts by each ranking, fine-tunes and translates; controls are random heads, the pair's own ranking and its lowest heads. DSP
over all pairs stands beside a bilingual model a pair of the same size. `OUTPUT/results.jsonl` has a line a run and pair,
`OUTPUT/report/report.md` tables and heat maps; both are written anew after every run. `--text` is a folder of train, valid and test of each
pair (`train.en-de.en`, plain or .xz), which share one language; without it the sample corpus of three languages is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from multilingual_study import report
from multilingual_study.measuring import lowest_layout, measure, rankings
from multilingual_study.plan import DIRECTIONS, Planner, Study
from multilingual_study.presets import PRESETS
from multilingual_study.running import run_all
from multilingual_study.text import pairs_of, prepare
from reproduction.measure import hardware, versions
from reproduction.running import Place
from reproduction.steps import Run

from fairseq_dsp.errors import Refusal, as_command, refused_disk
from fairseq_dsp.files.output import checked_file, refuse_no_name
from fairseq_dsp.scoring import SCORERS

RESULTS, SETTING = "results.jsonl", "study.json"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, choices=tuple(PRESETS))
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or one of this study")
    parser.add_argument("--text", metavar="DIR", help="texts of the language pairs")
    parser.add_argument("--low", metavar="PAIR", help="the low-resource pair of the texts, cut to fewer sentences")
    parser.add_argument("--scorer", default="gradient", choices=[name for name in SCORERS if SCORERS[name].reads_data])
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="two at least (default: the preset's)")
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS), help="(default: both)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--hours", type=float, default=1e6, help="after which no run is begun")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study; the exit code.

    Raises:
        Refusal: it cannot be.
    """
    args = get_parser().parse_args(arguments)
    refuse_no_name(args.output)
    preset = PRESETS[args.preset]
    reasons = [f"`--jobs` must be at least 1, but is {args.jobs}."] if args.jobs < 1 else []
    seeds = tuple(args.seeds or preset.seeds)
    if len(set(seeds)) < 2:
        reasons.append(
            "`--seeds` must be two at least, for rankings of one pair are compared between them, but is one."
        )
    if args.text is not None and args.low is None:
        reasons.append("`--low` must be given with `--text`: the pair that is taken for one of few sentences.")
    pairs = None
    if args.text is not None and not reasons:
        pairs = pairs_of(Path(args.text))
        if args.low not in pairs:
            reasons.append(f"`--low` must be one of the pairs of `--text` ({', '.join(pairs)}), but is {args.low}.")
    if reasons:
        raise Refusal(*reasons)
    gpu = torch.cuda.is_available() and not args.cpu
    out = Path(args.output).resolve()
    with refused_disk(out):
        _claim(
            out,
            {
                "preset": args.preset,
                "text": args.text and os.path.basename(os.path.abspath(args.text)),
                "low": args.low,
                "scorer": args.scorer,
            },
        )
        place = Place(out, out / "data", 1, lambda line: print(line, flush=True))
        with place.locked():
            text = None if args.text is None else Path(args.text)
            stored = prepare(text, out, preset, args.low)
            hub = set.intersection(*({*pair.split("-")} for pair in stored)).pop()
            study = Study(replace(preset, seeds=seeds), tuple(stored), hub, args.low or stored[-1], args.scorer, gpu)
            return _run(study, args, place)


def _run(study: Study, args: argparse.Namespace, place: Place) -> int:
    deadline = time.monotonic() + 3600 * args.hours
    lines: dict[str, list[dict[str, Any]]] = {}
    names = {pair: own for way in DIRECTIONS for pair, own in zip(study.directed(way), study.pairs, strict=True)}
    facts = {
        "text": os.path.basename(os.path.abspath(args.text)) if args.text else "the sample corpus, artificial",
        "model": f"{study.preset.layers} + {study.preset.layers} layers, {study.preset.heads} heads a sublayer, width {study.preset.width}",
        "budget": f"{study.preset.kept} of {study.preset.total} heads",
        "training sentences": f"{study.preset.most} a pair at most, {study.preset.fewest} of {study.low}",
        "trainings": f"{study.preset.epochs} epochs from the start, {study.preset.tuning} after a cut, sampling temperature 2",
        "scores": f"{study.scorer}, {study.preset.batches} batches of {study.preset.max_tokens} tokens of a pair's training set",
        "seeds": ", ".join(map(str, study.preset.seeds)),
        "hardware": "; ".join(f"{name} {value}" for name, value in hardware([], args.jobs).items()),
        "versions": "; ".join(f"{name} {value}" for name, value in versions().items()),
    }

    def ended(run: Run) -> None:
        if run.budget is not None:
            lines[run.name] = list(measure(run, place.out, names))
        every = [line for each in lines.values() for line in each]
        text = "".join(json.dumps(line) + "\n" for line in every)
        checked_file(place.out / RESULTS, force=True).write(lambda file: file.write(text.encode()), "the results")
        report.write(study, study.preset.seeds, every, place.out, facts)
        place.say(f"finished: {run.name}")

    planners = [Planner(study, direction, seed) for direction in args.directions for seed in study.preset.seeds]
    finished: set[str] = set()
    first = [run for each in planners for run in each.first()]
    failed = run_all(first, place, args.jobs, deadline, ended, finished)
    arms, last = [], []
    for each in planners:
        found = rankings(place.out, each.direction, each.seed, each.pairs)
        if len(found) == len(each.pairs):
            arms += each.arms(lambda pair, k, found=found: lowest_layout(found[pair], k))
            last += each.specialists()
    failed += run_all(arms + last, place, args.jobs, deadline, ended, finished)
    place.say(f"{len(lines)} models measured: {place.out / 'report/report.md'}")
    return 1 if failed else 0


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """Makes the folder, or checks that it is this study's.

    Raises:
        Refusal: it is not.
    """
    path = out / SETTING
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if reasons := [
            f"`--{name}` must be {found.get(name)} in {out}, whose results are of that, but is {value}."
            for name, value in wanted.items()
            if found.get(name) != value
        ]:
            raise Refusal(*reasons)
        return
    if out.exists() and any(out.iterdir()):
        raise Refusal(f"`--output` must be a new folder or one of this study, but {out} is neither.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(wanted | {"sizes": asdict(PRESETS[wanted["preset"]])}, indent=1) + "\n", encoding="utf-8"
    )


def cli_main() -> None:
    with as_command():
        sys.exit(main())


if __name__ == "__main__":
    cli_main()
