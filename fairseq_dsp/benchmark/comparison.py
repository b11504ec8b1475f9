"""Compares models on a case: a row for each, and the signature of where and how it was measured."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fairseq
import torch

import fairseq_dsp
from fairseq_dsp.benchmark.flops import count
from fairseq_dsp.benchmark.measuring import Estimate, achieved_share, median, paired_ratio, take_turns, timed
from fairseq_dsp.benchmark.memory import peak
from fairseq_dsp.benchmark.profiling import seconds_by_operator
from fairseq_dsp.benchmark.serving import translate
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.subjects import Facts, Subject
from fairseq_dsp.benchmark.workloads import WORKLOADS


@dataclass(frozen=True)
class Plan:
    """How often and by which clock.

    Args:
        pairs: turns that count.
        warmup: turns before them.
        clock: `wall` or `cpu`.
        memory: also measure the peak, in a process for each row.
        profile: also profile a call of every row.
    """

    pairs: int = 7
    warmup: int = 2
    clock: str = "wall"
    memory: bool = True
    profile: bool = False


@dataclass(frozen=True)
class Row:
    """One model on one case.

    Args:
        model: label.
        phase: stage of training; empty where there is one only.
        parameters, heads, total, layout: see `subjects.Facts`.
        seconds: of every turn, for what the workload's time is of: a batch, a step, an update, a draw.
        median: of `seconds`.
        engine: `fairseq`, or CTranslate2 and the type of its weights.
        ratio: baseline's time / this one's, paired; None for the baseline itself.
        engine_ratio: the same to the first row of its engine; None for that one.
        tokens_per_second: by the median; None where there are no tokens.
        flops: floating-point operations of the same; see `flops.count`. 0 in CTranslate2, which does not tell.
        attention: kernels that attended.
        promised: baseline's flops / this one's; None for the baseline.
        share: of the promised speed-up that came; see `measuring.achieved_share`.
        peak_bytes: see `memory.peak`; None in CTranslate2, or where it was not to be measured.
        profile: seconds by operator, see `profiling`; None in CTranslate2, or where it was not to be measured.
    """

    model: str
    phase: str
    parameters: int
    heads: int
    total: int
    layout: str
    engine: str
    seconds: list[float]
    median: float
    ratio: Estimate | None
    engine_ratio: Estimate | None
    tokens_per_second: float | None
    flops: float
    attention: str
    promised: float | None
    share: float | None
    peak_bytes: int | None
    profile: dict[str, float] | None

    def record(self, case: Case, signature: dict[str, Any]) -> dict[str, Any]:
        """The row as one JSON object: case, row, signature."""
        return {**asdict(case), **asdict(self), "signature": signature}


def compare(
    subjects: list[tuple[str, Subject, Facts]],
    settings: Settings,
    plan: Plan,
    case: Case,
    done: Callable[[], Any] = lambda: None,
) -> list[Row]:
    """Measures all models in turn; the first is the baseline.

    Args:
        subjects: label, model, and what is known of it.
        done: called after every turn.

    Returns:
        a row for every model and phase that the workload applies to.
    """
    workload = WORKLOADS[case.workload]
    entries = [
        (entry, phase)
        for entry in subjects
        if case.workload == "generate" or not entry[1].ctranslate2
        for phase in workload.phases(entry[2])
    ]
    with _quiet_randomness():
        runs = [
            translate(subject.build(settings.words), settings, case, subject.ctranslate2)
            if subject.ctranslate2
            else workload.prepare(subject.build(settings.words), settings, case, phase)
            for (_, subject, _), phase in entries
        ]
        counts = [count(run.call) for run in runs]
        measures = [lambda run=run: timed(run.call, plan.clock, settings.device) / run.times for run in runs]
        seconds = take_turns(measures, plan.pairs, plan.warmup, done)
        profiles = [
            seconds_by_operator(run.call, settings.device) if plan.profile and not subject.ctranslate2 else None
            for run, ((_, subject, _), _) in zip(runs, entries, strict=True)
        ]
    rows = []
    for ((label, subject, facts), phase), run, (flops, attention), times, profile in zip(
        entries, runs, counts, seconds, profiles, strict=True
    ):
        typical = median(times)
        rows.append(
            Row(
                model=label,
                phase=phase,
                parameters=facts.parameters,
                heads=facts.heads,
                total=facts.total,
                layout=facts.layout,
                engine=f"CTranslate2 {subject.ctranslate2}" if subject.ctranslate2 else "fairseq",
                seconds=times,
                median=typical,
                ratio=None,
                engine_ratio=None,
                tokens_per_second=None if run.tokens is None else run.tokens / (typical * run.times),
                flops=flops / run.times,
                attention=attention,
                promised=None,
                share=None,
                peak_bytes=None,
                profile=profile,
            )
        )
    del runs, measures
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    if plan.memory:
        peaks = [
            None if subject.ctranslate2 else peak(subject, settings, case, phase) for (_, subject, _), phase in entries
        ]
        rows = [replace(row, peak_bytes=size) for row, size in zip(rows, peaks, strict=True)]
    first_of_engine: dict[str, Row] = {}
    for row in rows:
        first_of_engine.setdefault(row.engine, row)
    return [
        replace(
            row if row is rows[0] else _beside(rows[0], row),
            engine_ratio=None if row is first else paired_ratio(first.seconds, row.seconds),
        )
        for row, first in ((row, first_of_engine[row.engine]) for row in rows)
    ]


def signature(settings: Settings, plan: Plan) -> dict[str, Any]:
    """Where and how it was measured."""
    return {
        "machine": torch.cuda.get_device_name() if settings.device == "cuda" else processor_name(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "torch": torch.__version__,
        "fairseq": fairseq.__version__,
        "fairseq_dsp": fairseq_dsp.__version__,
        "dtype": settings.dtype,
        "clock": plan.clock,
        "pairs": plan.pairs,
        "sentences": f"{settings.length} words" if settings.data is None else settings.subset,
        "date": datetime.date.today().isoformat(),
    }


def _beside(baseline: Row, row: Row) -> Row:
    ratio = paired_ratio(baseline.seconds, row.seconds)
    promised = baseline.flops / row.flops if row.flops else None
    share = None if promised is None else achieved_share(ratio.median, promised)
    return replace(row, ratio=ratio, promised=promised, share=share)


@contextlib.contextmanager
def _quiet_randomness() -> Iterator[None]:
    """Dropout draws from torch's generator: the caller finds it as it was."""
    with torch.random.fork_rng():
        yield


def processor_name() -> str:
    """The processor's name, where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
