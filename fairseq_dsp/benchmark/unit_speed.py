"""Every row of the table of targets for units and budgets, measured in one run: ratios of models that take turns.

    python -m fairseq_dsp.benchmark.unit_speed --json units.jsonl

Weights are random, which changes no speed as long as all models put out equally many words; so are scores, see `unit_choice`. Nothing but
this should run on the machine. At the default sizes one core takes the better part of an hour.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

from fairseq_dsp.benchmark.candidates import Candidate, facts_of
from fairseq_dsp.benchmark.comparison import Row, Timing, signature
from fairseq_dsp.benchmark.costs import drawn, measure_costs
from fairseq_dsp.benchmark.measuring import CLOCKS, Estimate, estimate, paired_ratio, timed
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.targets import Bench
from fairseq_dsp.benchmark.unit_choice import BEAM, Chooser
from fairseq_dsp.errors import Refusal, as_command, noted
from fairseq_dsp.files.checkpoint import family_of
from fairseq_dsp.files.output import checked_file
from fairseq_dsp.options.costing import measured_costs
from fairseq_dsp.units.cost_file import CostFile
from fairseq_dsp.units.layout import Layout

_LENGTH, _MACS_HALF, _LATENCY_HALF = 20, "macs=0.5", "latency=0.5"
_QUANTIZATION = "int8"
_WIDTH = 150
PARTS = ("choosing", "gates", "training", "operations", "fairseq", "ctranslate2")


def of_operations(bench: Bench, chooser: Chooser, stock: Candidate, batch: int) -> None:
    """Generation in fairseq with half the operations."""
    half = chooser.within(_MACS_HALF, chooser.operations(bench.settings.length))
    rows = bench.compare([("dense", stock), (_MACS_HALF, chooser.candidate(half))], Case("generate", batch, BEAM))
    bench.at_least(f"{_MACS_HALF}, generation in fairseq, batch {batch}, beam {BEAM}", 1.9, _ratio(rows, _MACS_HALF))


def in_fairseq(bench: Bench, chooser: Chooser, stock: Candidate, batch: int) -> None:
    """Half the time, and as many parameters as that keeps."""
    case = Case("generate", batch, BEAM)
    costs = _measured(bench, stock, case)
    by_time = chooser.within(_LATENCY_HALF, measured_costs(chooser.model, costs, chooser.full))
    rows = bench.compare([("dense", stock), *_by_time(chooser, by_time)], case, costs)
    _note_time(bench, rows, f"generation in fairseq, batch {batch}, beam {BEAM}")


def in_ctranslate2(bench: Bench, chooser: Chooser, stock: Candidate, batches: Sequence[int]) -> None:
    """The same in CTranslate2, beside fairseq's dense model."""
    costs = None
    half = chooser.within(_MACS_HALF, chooser.operations(bench.settings.length))
    for batch in batches:
        case, where = Case("generate", batch, BEAM), f"CTranslate2 {_QUANTIZATION}, batch {batch}, beam {BEAM}"
        models = [("dense", stock), (f"dense, {_QUANTIZATION}", replace(stock, ctranslate2=_QUANTIZATION))]
        models.append((_MACS_HALF, replace(chooser.candidate(half), ctranslate2=_QUANTIZATION)))
        if costs is None:
            costs = _measured(bench, replace(stock, ctranslate2=_QUANTIZATION), case)
            by_time = chooser.within(_LATENCY_HALF, measured_costs(chooser.model, costs, chooser.full))
            models += [(name, replace(each, ctranslate2=_QUANTIZATION)) for name, each in _by_time(chooser, by_time)]
        rows = bench.compare(models, case, costs)
        own = rows[_MACS_HALF, ""].engine_ratio
        assert own is not None
        bench.at_least(f"{_MACS_HALF}, {where}, by its own dense", 1.8, own)
        bench.at_least(f"{_MACS_HALF}, {where}, by fairseq's dense", 6.0, _ratio(rows, _MACS_HALF))
        if (_LATENCY_HALF, "") in rows:
            _note_time(bench, rows, where)


def in_training(bench: Bench, chooser: Chooser, stock: Candidate, group: int) -> None:
    """Updates once units are fixed, and what gates on FFNs add while they are chosen."""
    both = chooser.named(f"ffn={group},budget={_MACS_HALF},gated")
    models = [("dense", stock), ("heads", Candidate(chooser.named("budget=0.5,gated"), True)), ("heads and FFNs", Candidate(both, True))]  # fmt: skip
    rows = bench.compare(models, Case("update"))
    bench.at_least(f"{_MACS_HALF}, an update once units are fixed", 1.6, _ratio(rows, "heads and FFNs", "heads fixed"))
    choosing = [rows[name, "choosing heads"].seconds for name in ("heads", "heads and FFNs")]
    share = estimate([100 * (with_both / alone - 1) for alone, with_both in zip(*choosing, strict=True)])
    bench.at_most("gates on FFNs while units are chosen", 3, "% of an update", share)


def of_gates(bench: Bench, chooser: Chooser) -> None:
    """A draw of a gate for every neuron, forward and backward."""
    model = Candidate(chooser.named("ffn=1,budget=parameters=0.5,gated"), True)
    neurons = sum(map(sum, chooser.model.neurons.values()))
    (row,) = bench.compare([(f"{neurons:,} neurons", model)], Case("mask")).values()
    bench.at_most(f"drawing {neurons:,} gates of neurons, forward and backward", 10, "ms", _times(row.seconds, 1e3))


def of_choosing(bench: Bench, chooser: Chooser, group: int) -> None:
    """One knapsack."""
    costs, seconds = chooser.operations(bench.settings.length), []
    for _ in range(bench.timing.pairs):
        seconds.append(timed(lambda: chooser.within(_MACS_HALF, costs), bench.timing.clock, "cpu"))
    bench.at_most(f"one knapsack, {_MACS_HALF}, neurons in groups of {group}", 1, "s", _times(seconds, 1.0))


def _by_time(chooser: Chooser, layout: Layout) -> list[tuple[str, Candidate]]:
    equal = chooser.as_many_parameters(layout)
    return [(_LATENCY_HALF, chooser.candidate(layout)), ("as many parameters", chooser.candidate(equal))]


def _note_time(bench: Bench, rows: dict[tuple[str, str], Row], where: str) -> None:
    by_time, equal = rows[_LATENCY_HALF, ""], rows["as many parameters", ""]
    found, promised = by_time.engine_ratio, by_time.by_costs_ratio
    assert found is not None
    assert promised is not None
    bench.near(f"{_LATENCY_HALF}, {where}, by its own dense", promised, found)
    bench.at_least(
        f"{_LATENCY_HALF} by a layout of as many parameters, {where}", 1.0, paired_ratio(equal.seconds, by_time.seconds)
    )


def _measured(bench: Bench, candidate: Candidate, case: Case) -> CostFile:
    costs, fit, rows = measure_costs(candidate, bench.settings, bench.timing, case)
    for row in rows:
        bench.keep(row.record(case, signature(bench.settings, bench.timing)))
    bench.keep({"costs": json.loads(costs.text())})
    bench.console.print("\n".join(drawn(costs, fit)), highlight=False, markup=False, soft_wrap=True)
    return costs


def _ratio(rows: dict[tuple[str, str], Row], name: str, phase: str = "") -> Estimate:
    ratio = rows[name, phase].ratio
    assert ratio is not None
    return ratio


def _times(values: Sequence[float], factor: float) -> Estimate:
    return estimate([factor * value for value in values])


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_dsp.benchmark.unit_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", default="transformer_iwslt_de_en", help="default: %(default)s")
    parser.add_argument("--words", default="8848/6632", help="of the dictionaries (default: %(default)s)")
    parser.add_argument("--group", type=int, default=16, help="neurons of a unit that a budget chooses (default: 16)")
    parser.add_argument("--gated-group", type=int, default=256, help="of one that a training chooses (default: 256)")
    parser.add_argument("--batch-size", type=int, default=32, help="of fairseq (default: 32)")
    parser.add_argument("--served", type=int, nargs="+", default=[16, 1], help="batches of CTranslate2 (default: 16 1)")
    parser.add_argument("--length", type=int, default=_LENGTH, help="words of a sentence (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of an update (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=7, help="turns that count (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="turns before them (default: %(default)s)")
    parser.add_argument("--clock", default="wall", help="wall, or cpu on a machine that others use (default: wall)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the table (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write a line for every row and target")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured. FILE holds what was measured before.
    """
    args = get_parser().parse_args(arguments)
    _check(args)
    torch.set_num_threads(1)
    records: list[Any] = []

    def keep(record: Any) -> None:
        records.append(record)
        if args.json:  # after every row: whatever ends the measuring, what was measured is kept
            lines = "".join(json.dumps(each) + "\n" for each in records)
            args.json.write(lambda file: file.write(lines.encode()), "the measurements")
            args.json = replace(args.json, force=True)  # what is there now is ours

    chooser = Chooser(f"dsp_{args.arch}", args.words, args.group)
    stock = Candidate(f"{args.arch}:words={args.words}", True)
    settings = Settings(length=args.length, output_length=args.length, max_tokens=args.max_tokens, words=facts_of(chooser.model).words)  # fmt: skip
    console = Console(width=_WIDTH, markup=False, emoji=False)
    bench = Bench(settings, Timing(args.pairs, args.warmup, args.clock, memory=False), console, keep)
    measured: tuple[Callable[[], None], ...] = (
        lambda: of_choosing(bench, chooser, args.group),
        lambda: of_gates(bench, chooser),
        lambda: in_training(bench, chooser, stock, args.gated_group),
        lambda: of_operations(bench, chooser, stock, args.batch_size),
        lambda: in_fairseq(bench, chooser, stock, args.batch_size),
        lambda: in_ctranslate2(bench, chooser, stock, args.served),
    )
    reasons: list[str] = []
    for name, part in zip(PARTS, measured, strict=True):
        if name in args.parts:
            with noted(reasons):
                part()
    console.print(bench.table())
    print(" | ".join(f"{name} {value}" for name, value in signature(settings, bench.timing).items()))
    if reasons:
        raise Refusal(*reasons)


def _check(args: argparse.Namespace) -> None:
    """Raises:
    Refusal: options that cannot be honoured, all at once.
    """
    numbers = ("group", "gated_group", "batch_size", "length", "max_tokens", "pairs")
    reasons = [
        f"`--{name.replace('_', '-')}` must be at least 1, but is {getattr(args, name)}."
        for name in numbers
        if getattr(args, name) < 1
    ]
    if args.clock not in CLOCKS:
        reasons.append(f"`--clock` must be {' or '.join(CLOCKS)}, but is {args.clock}.")
    if family_of(args.arch) != "transformer":
        reasons.append(f"`--arch` must be a transformer of fairseq's own, but is {args.arch}.")
    if importlib.util.find_spec("ctranslate2") is None:
        reasons.append("CTranslate2 must be installed for two of the rows: pip install 'fairseq_dsp[ctranslate2]'.")
    if args.json is not None:
        with noted(reasons):
            args.json = checked_file(args.json, args.force)
    if reasons:
        raise Refusal(*reasons)


if __name__ == "__main__":
    for talker in ("fairseq", "hydra"):
        logging.getLogger(talker).setLevel(logging.WARNING)
    with as_command():
        main()
