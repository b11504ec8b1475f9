"""`fairseq-dsp-bench --path A.pt [B.pt …]`: measures models side by side."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

from fairseq_dsp.benchmark.candidates import RANDOM_SYNTAX, Candidate, Facts, facts_of, labels, several_languages
from fairseq_dsp.benchmark.comparison import Timing, compare, signature
from fairseq_dsp.benchmark.costs import drawn, measure_costs, target_words
from fairseq_dsp.benchmark.measuring import CLOCKS, Watch
from fairseq_dsp.benchmark.promises import Promise
from fairseq_dsp.benchmark.sentences import dictionary_sizes
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.tables import show, show_profile, title_of
from fairseq_dsp.benchmark.workloads import WORKLOADS
from fairseq_dsp.cli.arguments import add_languages, whole_numbers
from fairseq_dsp.cli.waiting import watch_within, watched
from fairseq_dsp.config import whole_number
from fairseq_dsp.errors import Refusal, as_command, noted
from fairseq_dsp.export.ctranslate2 import QUANTIZATIONS
from fairseq_dsp.files.output import OutputFile, checked_file
from fairseq_dsp.units.cost_file import read_costs

_NUMBERS = (("length", 1), ("output_length", 1), ("max_tokens", 1), ("pairs", 1), ("warmup", 0), ("threads", 1))

_WORK = "encoder,decoder-step,generate,update"

_UNFOLDED = 100_000  # columns of a file, which need not fold its tables


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-bench",
        description="Measures models side by side. The first is the baseline: a ratio of 2 is half its time.",
    )
    models = parser.add_argument_group("models, in the order given")
    models.add_argument(
        "--path", dest="models", nargs="+", type=Candidate, action="extend", metavar="CHECKPOINT", help="dense or ours"
    )
    models.add_argument(
        "--random", dest="models", nargs="+", type=lambda text: Candidate(text, True), action="extend", metavar="MODEL",
        help="random weights: " + RANDOM_SYNTAX,
    )  # fmt: skip
    models.add_argument(
        "--ctranslate2", metavar="TYPE",
        help=f"with generate, every model in CTranslate2 too, with weights of this type: {', '.join(QUANTIZATIONS)}",
    )  # fmt: skip
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workloads",
        metavar="LIST",
        help=f"of {', '.join(WORKLOADS)} (default: {_WORK}; with --costs or --promised generate)",
    )
    work.add_argument(
        "--costs", metavar="FILE",
        help="measure what the units of one dense model take in generation, in CTranslate2 where --ctranslate2 is given, and write it for "
        "fairseq-dsp-prune --budget latency=",
    )  # fmt: skip
    work.add_argument(
        "--promised",
        metavar="FILE",
        help="set beside what is measured what such a file promises, on the machine it is of",
    )
    work.add_argument("--batch-size", default="32", metavar="LIST", help="sentences at a time (default: 32)")
    work.add_argument("--beam", default="5", metavar="LIST", help="hypotheses a sentence (default: 5)")
    work.add_argument("--length", metavar="N", help="words of the synthetic sentences (default: 20)")
    work.add_argument("--data", metavar="DATA-BIN", help="real sentences, of --subset")
    work.add_argument("--subset", default="test", help="of DATA-BIN (default: test)")
    add_languages(work)
    work.add_argument(
        "--output-length", metavar="N",
        help="words to generate (default: --length; with --data, until the model ends, at most 200, with --costs the mean words of the "
        "translations, and with --promised those of FILE)",
    )  # fmt: skip
    work.add_argument(
        "--max-tokens", default="4096", metavar="N", help="tokens of an update or a validation (default: 4096)"
    )
    how = parser.add_argument_group("measuring")
    how.add_argument(
        "--pairs",
        default="7",
        metavar="N",
        help="times that every model is measured, of which an interval needs 6 (default: 7)",
    )
    how.add_argument("--warmup", default="2", metavar="N", help="and before that, unmeasured (default: 2)")
    how.add_argument("--threads", default="1", metavar="N", help="of torch (default: 1)")
    how.add_argument(
        "--clock", default="wall", help="wall, or cpu: processor time, steadier on a busy machine (default: wall)"
    )
    device = how.add_mutually_exclusive_group()
    device.add_argument("--cpu", action="store_true", help="do not use a GPU")
    device.add_argument("--cuda", action="store_true", help="use a GPU (default: where there is one)")
    how.add_argument("--dtype", default="float32", help="float32, float16 or bfloat16 (default: float32)")
    how.add_argument("--fp16", dest="dtype", action="store_const", const="float16", help="--dtype float16")
    how.add_argument("--no-memory", action="store_true", help="spare the processes that measure peak memory")
    how.add_argument("--profile", action="store_true", help="also show where the time of a call goes, by operator")
    parser.add_argument("--json", metavar="FILE", help="write a line for every row, with all times, after every case")
    parser.add_argument("--force", action="store_true", help="overwrite what is written")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured. FILE holds what was measured before.
    """
    args = get_parser().parse_args(arguments)
    settings, timing, cases = _read(args)
    torch.set_num_threads(settings.threads)
    given = args.models
    if settings.data:
        settings = replace(settings, task_of=several_languages(given))
    words = dictionary_sizes(settings) if settings.data else None
    if args.ctranslate2:
        served = [replace(candidate, ctranslate2=args.ctranslate2) for candidate in given]
        given = served if args.costs is not None else given + served
    facts = [facts_of(candidate.build(words)) for candidate in watched("reading the models", given, len(given))]
    settings = replace(settings, words=_common_words(list(zip(given, facts, strict=True)), words))
    if args.costs is not None:
        return _measure_costs(args, given[0], settings, timing, cases[0])
    candidates = list(zip(labels(given), given, facts, strict=True))
    promise = None
    if args.promised is not None:
        promise = Promise(args.promised, settings)
        promise.refuse_other(list(zip(given, facts, strict=True)), cases)
    sign = signature(settings, timing)
    plain = {"markup": False, "emoji": False}  # a path may hold what looks like either
    console = Console(**plain) if Console().is_terminal else Console(width=_UNFOLDED, **plain)
    records: list[dict[str, Any]] = []
    for number, case in enumerate(cases, 1):
        watch = watch_within(f"{title_of(case)} (case {number} of {len(cases)})")
        rows = compare(candidates, settings, timing, case, watch, *([promise.seconds] if promise else []))
        records += [row.record(case, sign) for row in rows]
        if rows:
            show(console, case, rows)
            if timing.profile:
                show_profile(console, rows)
        if args.json:  # after every case: whatever ends the measuring, what was measured is kept
            _write(args.json, records)
            args.json = replace(args.json, force=True)  # what is there now is ours
    print(" | ".join(f"{name} {value}" for name, value in sign.items()))


def _measure_costs(
    args: argparse.Namespace, candidate: Candidate, settings: Settings, timing: Timing, case: Case
) -> None:
    """`--costs`: a costs file, and what it says."""
    if settings.output_length is None:
        settings = replace(settings, output_length=target_words(settings, case))

    def watch(number: int, runs: int) -> Watch:
        return watch_within(f"{title_of(case)} (run {number} of {runs})")

    costs, fit, rows = measure_costs(candidate, settings, timing, case, watch)
    args.costs.write(lambda file: file.write(costs.text().encode()), "the costs")
    if args.json:
        sign = signature(settings, timing)
        _write(args.json, [row.record(case, sign) for row in rows])
    print("\n".join(drawn(costs, fit)))


def _write(target: OutputFile, records: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    target.write(lambda file: file.write(lines.encode()), "the measurements")


def cli_main() -> None:
    for talker in ("fairseq", "hydra"):
        logging.getLogger(talker).setLevel(logging.WARNING)
    with as_command():
        main()


def _common_words(measured: list[tuple[Candidate, Facts]], words: tuple[int, int] | None) -> tuple[int, int]:
    """The dictionary sizes that all models share; of synthetic sentences, words that all of them know.

    Raises:
        Refusal: a model has other dictionaries than the data.
    """
    wrong = [
        f"`--data` must have the model's dictionaries, but has {words[0]} and {words[1]} entries for {facts.words[0]} and "
        f"{facts.words[1]} embeddings of {candidate.text}."
        for candidate, facts in measured
        if words is not None and facts.words != words
    ]
    if wrong:
        raise Refusal(*wrong)
    sources, targets = zip(*(facts.words for _, facts in measured), strict=True)
    return min(sources), min(targets)


def _objections_to_costs(args: argparse.Namespace, names: list[str]) -> list[str]:
    """Sentences on what `--costs` and `--promised` cannot be measured with."""
    found = []
    if args.costs is not None and args.promised is not None:
        found.append(
            f"`--costs` and `--promised` must not be given together, but are {args.costs} and {args.promised}."
        )
    if args.costs is not None:
        if len(args.models or ()) > 1:
            found.append(f"`--costs` must be measured of one model, but {len(args.models)} are given.")
        if names != ["generate"]:
            found.append(f"`--costs` must be measured in generation, but `--workloads` is {args.workloads}.")
        for option, value in (("--batch-size", args.batch_size), ("--beam", args.beam)):
            if "," in value:
                found.append(f"`{option}` must be one number with `--costs`, but is {value}.")
        if args.profile:
            found.append("`--profile` must not come with `--costs`, which compares no two models.")
    return found


def _read(args: argparse.Namespace) -> tuple[Settings, Timing, list[Case]]:
    """The request as plain data.

    Raises:
        Refusal: options that cannot be honoured, all at once.
    """
    reasons: list[str] = []
    if not args.models:
        reasons.append("`--path` or `--random` must name a model, but neither is given.")
    args.workloads = args.workloads or ("generate" if args.costs or args.promised else _WORK)
    names = args.workloads.split(",")
    reasons += _objections_to_costs(args, names)
    for name in names:
        if name not in WORKLOADS:
            reasons.append(f"`--workloads` must be of {', '.join(WORKLOADS)}, but has {name!r}.")
    for option, allowed in (("clock", tuple(CLOCKS)), ("dtype", ("float32", "float16", "bfloat16"))):
        if getattr(args, option) not in allowed:
            reasons.append(f"`--{option}` must be {' or '.join(allowed)}, but is {getattr(args, option)}.")
    if args.cuda and not torch.cuda.is_available():
        reasons.append("`--cuda` needs a GPU that torch can use, but there is none.")
    if args.ctranslate2 and args.ctranslate2 not in QUANTIZATIONS:
        reasons.append(f"`--ctranslate2` must be of {', '.join(QUANTIZATIONS)}, but is {args.ctranslate2}.")
    if args.ctranslate2 and "generate" not in names:
        reasons.append(f"`--ctranslate2` generates alone, but `--workloads` has {args.workloads}.")
    if args.ctranslate2 and importlib.util.find_spec("ctranslate2") is None:
        reasons.append(
            "`--ctranslate2` needs CTranslate2, which is not installed: pip install 'fairseq_dsp[ctranslate2]'."
        )
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    if device == "cpu" and args.dtype == "float16":
        reasons.append("`--dtype float16` needs a GPU, but the device is the CPU: use bfloat16 or float32.")
    if args.data and args.length:
        reasons.append(f"`--length` is of synthetic sentences and must not come with `--data`, but is {args.length}.")
    untrained = [candidate.text for candidate in args.models or () if candidate.random]
    if args.data and untrained and not args.output_length and "generate" in names and not (args.costs or args.promised):
        reasons.append(
            f"`--output-length` must be given with `--data` for {untrained[0]}: random weights end a sentence anywhere."
        )
    args.length = args.length or "20"
    args.output_length = args.output_length or (None if args.data else args.length)
    numbers: dict[str, Any] = {}
    for option, least in _NUMBERS:
        with noted(reasons):
            numbers[option] = whole_number(getattr(args, option), option, least)
    with noted(reasons):
        batches = whole_numbers(args.batch_size, "batch_size", 1)
    with noted(reasons):
        beams = whole_numbers(args.beam, "beam", 1)
    if args.clock == "cpu" and (device == "cuda" or numbers.get("threads", 1) > 1):
        where = "a GPU" if device == "cuda" else f"{numbers['threads']} threads"
        reasons.append(f"`--clock cpu` adds up one thread's processor time, but there is {where}: use wall.")
    for option in ("json", "costs"):
        if getattr(args, option) is not None:
            with noted(reasons):
                setattr(args, option, checked_file(getattr(args, option), args.force))
    if args.promised is not None:
        with noted(reasons):
            args.promised = read_costs(args.promised, "--promised")
            numbers["output_length"] = numbers.get("output_length") or args.promised.conditions.target - 1
    if reasons:
        raise Refusal(*reasons)
    pairs, warmup = numbers.pop("pairs"), numbers.pop("warmup")
    names_of_data = {name: getattr(args, name) for name in ("data", "subset", "source_lang", "target_lang")}
    settings = Settings(device=device, dtype=args.dtype, **names_of_data, **numbers)
    cases = [
        Case(name, batch, beam)
        for name in names
        for batch in (batches if WORKLOADS[name].takes_batch else [None])
        for beam in (beams if WORKLOADS[name].takes_beam else [None])
    ]
    return settings, Timing(pairs, warmup, args.clock, not args.no_memory, args.profile), cases
