"""Compares models on a case: a row for each, and the signature of where and how it was measured."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fairseq
import torch

from fairseq_dsp.benchmark.candidates import Candidate, Facts
from fairseq_dsp.benchmark.flops import count
from fairseq_dsp.benchmark.measuring import (
    Estimate,
    Watch,
    achieved_share,
    median,
    paired_ratio,
    take_turns,
    timed,
    unwatched,
)
from fairseq_dsp.benchmark.memory import peak
from fairseq_dsp.benchmark.profiling import seconds_by_operator
from fairseq_dsp.benchmark.serving import translate
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.workloads import WORKLOADS, Run
from fairseq_dsp.version import __version__


@dataclass(frozen=True)
class Timing:
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
        parameters: their number; this and the next three are those of `candidates.Facts`.
        heads: those that are kept.
        total: all heads.
        layout: as text.
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
        by_costs: seconds of a batch that a costs file promises; None where none does. Likewise:
        by_costs_ratio: what it promises of the first row of this engine / of this one.
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
    by_costs: float | None = None
    by_costs_ratio: float | None = None

    def record(self, case: Case, signature: dict[str, Any]) -> dict[str, Any]:
        """The row as one JSON object: case, row, signature."""
        return {**asdict(case), **asdict(self), "signature": signature}


@dataclass(frozen=True)
class _Entry:
    """A model in one phase."""

    label: str
    candidate: Candidate
    facts: Facts
    phase: str

    @property
    def engine(self) -> str:
        return engine_of(self.candidate)


def engine_of(candidate: Candidate) -> str:
    """What runs it."""
    return f"CTranslate2 {candidate.ctranslate2}" if candidate.ctranslate2 else "fairseq"


def compare(
    candidates: list[tuple[str, Candidate, Facts]],
    settings: Settings,
    timing: Timing,
    case: Case,
    watch: Watch = unwatched,
    promise: Callable[[Candidate, Facts, Case], float | None] = lambda candidate, facts, case: None,
) -> list[Row]:
    """Measures all models in turn; the first is the baseline.

    Args:
        candidates: label, model, and what is known of it.
        watch: is told how far each part of the work is.
        promise: seconds that a costs file promises of a model.

    Returns:
        a row for every model and phase that the workload applies to.
    """
    entries = [
        _Entry(*each, phase)
        for each in candidates
        if case.workload == "generate" or not each[1].ctranslate2
        for phase in WORKLOADS[case.workload].phases(each[2])
    ]
    with _quiet_randomness():
        runs, counts = [], []
        for entry in watch("getting ready", entries):
            runs.append(_prepare(entry, settings, case))
            counts.append(count(runs[-1].call))
        measures = [lambda run=run: timed(run.call, timing.clock, settings.device) / run.times for run in runs]
        seconds = take_turns(measures, timing.pairs, timing.warmup, watch)
        profiles = [
            None
            if entry.candidate.ctranslate2 or not timing.profile
            else seconds_by_operator(run.call, settings.device)
            for entry, run in watch("profiles", list(zip(entries, runs, strict=True)))
        ]
    sizes = [(run.times, run.tokens) for run in runs]
    del runs, measures  # peak memory on a GPU is that of one model alone
    if settings.device == "cuda":
        torch.cuda.empty_cache()
    peaks = [
        None if entry.candidate.ctranslate2 or not timing.memory else peak(entry.candidate, settings, case, entry.phase)
        for entry in watch("peak memory", entries)
    ]
    flops = [total / times for (total, _), (times, _) in zip(counts, sizes, strict=True)]
    engines = [entry.engine for entry in entries]
    promises = [promise(entry.candidate, entry.facts, case) for entry in entries]
    rows = []
    for number, (entry, own, (times, tokens)) in enumerate(zip(entries, seconds, sizes, strict=True)):
        first = engines.index(entry.engine)
        ratio = paired_ratio(seconds[0], own) if number else None
        promised = flops[0] / flops[number] if ratio and flops[number] else None
        rows.append(
            Row(
                model=entry.label,
                phase=entry.phase,
                parameters=entry.facts.parameters,
                heads=entry.facts.heads,
                total=entry.facts.total,
                layout=entry.facts.layout,
                engine=entry.engine,
                seconds=own,
                median=median(own),
                ratio=ratio,
                engine_ratio=None if number == first else paired_ratio(seconds[first], own),
                tokens_per_second=None if tokens is None else tokens / (median(own) * times),
                flops=flops[number],
                attention=counts[number][1],
                promised=promised,
                share=achieved_share(ratio.median, promised) if ratio and promised else None,
                peak_bytes=peaks[number],
                profile=profiles[number],
                by_costs=promises[number],
                by_costs_ratio=_ratio(promises[first], promises[number]),
            )
        )
    return rows


def _ratio(first: float | None, own: float | None) -> float | None:
    return None if first is None or own is None else first / own


def _prepare(entry: _Entry, settings: Settings, case: Case) -> Run:
    model = entry.candidate.build(settings.words)
    if entry.candidate.ctranslate2:
        return translate(model, settings, case, entry.candidate.ctranslate2)
    return WORKLOADS[case.workload].prepare(model, settings, case, entry.phase)


def signature(settings: Settings, timing: Timing) -> dict[str, Any]:
    """Where and how it was measured."""
    return {
        "machine": processor_of(settings),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "torch": torch.__version__,
        "fairseq": fairseq.__version__,
        "fairseq_dsp": __version__,
        "dtype": settings.dtype,
        "clock": timing.clock,
        "pairs": timing.pairs,
        "sentences": f"{settings.length} words" if settings.data is None else settings.subset,
        "date": datetime.date.today().isoformat(),
    }


@contextlib.contextmanager
def _quiet_randomness() -> Iterator[None]:
    """Dropout draws from torch's generator: the caller finds it as it was."""
    with torch.random.fork_rng():
        yield


def processor_of(settings: Settings) -> str:
    """The name of what computes: the GPU, or the processor."""
    return str(torch.cuda.get_device_name()) if settings.device == "cuda" else processor_name()


def processor_name() -> str:
    """The processor's name, where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
