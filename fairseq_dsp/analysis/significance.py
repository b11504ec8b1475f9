"""Is a pruned model worse than the dense one? sacreBLEU's paired bootstrap over the translations of a results file."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq_dsp.analysis.records import Record, resolve
from fairseq_dsp.errors import Refusal, summed_up

_MOST_PROCESSES = 8  # each takes some hundred megabytes for its resamples


@dataclass(frozen=True)
class Comparison:
    """One run against a dense one.

    Attributes:
        record: the run.
        dense: the dense run: of the same seed, or, where there is none, of the lowest.
        score: sacreBLEU of the run, computed here. Likewise:
        dense_score: of the dense one.
        p_value: how often a test set drawn by chance would make a difference as large (Koehn 2004, as sacreBLEU computes it).
    """

    record: Record
    dense: Record
    score: float
    dense_score: float
    p_value: float


@dataclass(frozen=True)
class PairedTests:
    """All comparisons, and the signature of the test: metric, number of resamples, seed."""

    comparisons: tuple[Comparison, ...]
    signature: str


def paired_tests(
    records: Sequence[Record],
    results: str,
    references: str,
    watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda things, total: things,
) -> PairedTests:
    """Compares every run that has translations with dense, in as many processes as there are cores.

    Args:
        records: runs; those without `hypotheses` are left out.
        results: path of the results file, from whose folder paths in it are seen.
        references: path of the reference translations, detokenised, a line a sentence.
        watch: gives the comparisons one after the other, and is told their number.

    Raises:
        Refusal: files are missing or of other lengths, or there are no translations to compare; every reason.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    translated = [record for record in records if record.hypotheses is not None]
    expected, texts, reasons = _read(translated, results, references)
    dense = sorted((record for record in translated if record.is_dense), key=lambda record: record.seed)
    others = [record for record in translated if not record.is_dense]
    if not dense or not others:
        missing = "dense" if not dense else "pruned"
        reasons.append(f"`--references` needs `hypotheses` of dense and pruned runs, but no {missing} run has any.")
    if reasons:
        raise Refusal(*reasons)
    metric = BLEU(references=[expected])
    tests: list[PairedTest] = []
    tasks: list[_Task] = []
    pairs: list[tuple[Record, Record]] = []
    for baseline in dense:
        paired = [record for record in others if _baseline(record, dense) == baseline]
        if paired:
            # given None, the metric takes the references that it has read once
            tests.append(PairedTest([("dense", texts[baseline.line])], {"BLEU": metric}, None, test_type="bs"))
            tasks += [(len(tests) - 1, texts[record.line]) for record in paired]
            pairs += [(record, baseline) for record in paired]
    found = list(watch(_compared(tests, tasks), len(tasks)))
    comparisons = [
        Comparison(record, baseline, result.score, first.score, result.p_value)
        for (record, baseline), (first, result, _) in zip(pairs, found, strict=True)
    ]
    return PairedTests(tuple(comparisons), found[-1][2])


def disagreements(tests: PairedTests) -> list[str]:
    """Sentences on runs whose sacreBLEU here is not that of the results file: other references, or another tokenisation."""
    seen = {}
    for each in tests.comparisons:
        seen[each.record.name] = (each.record.sacrebleu, each.score)
        seen[each.dense.name] = (each.dense.sacrebleu, each.dense_score)
    return summed_up(
        "runs",
        [
            f"the sacreBLEU of {name} is {stored:.2f} in the results but {computed:.2f} with these references."
            for name, (stored, computed) in seen.items()
            if abs(stored - computed) > 0.05
        ],
    )


_Task = tuple[int, list[str]]  # number of the test, translations
_tests: list[Any] = []  # of a process that compares


def _compared(tests: list[Any], tasks: list[_Task]) -> Iterator[tuple[Any, Any, str]]:
    """What sacreBLEU says of dense, of each of the others, and its signature; the resamples are the same in every process."""
    processes = min(_cores(), len(tasks), _MOST_PROCESSES)
    if processes == 1:
        _begin(tests)
        yield from map(_compare, tasks)
        return
    # forked, as sacreBLEU's own are: importing everything again would take longer than the tests
    with multiprocessing.get_context("fork").Pool(processes, _begin_child, (tests,)) as pool:
        yield from pool.imap(_compare, tasks)


def _begin(tests: list[Any]) -> None:
    _tests[:] = tests


def _begin_child(tests: list[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends its children
    _begin(tests)


def _compare(task: _Task) -> tuple[Any, Any, str]:
    number, text = task
    test = _tests[number]
    test.named_systems = [test.named_systems[0], ("pruned", text)]
    signatures, outcome = test()
    return (*outcome["BLEU"], str(signatures["BLEU"]))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _baseline(record: Record, dense: Sequence[Record]) -> Record:
    return next((each for each in dense if each.seed == record.seed), dense[0])


def _read(
    translated: Sequence[Record], results: str, references: str
) -> tuple[list[str], dict[int, list[str]], list[str]]:
    """Reads references and translations.

    Returns:
        references, line of a run -> its translations, and what is wrong: a sentence for each kind of fault.
    """
    reasons: list[str] = []
    expected: list[str] = []
    try:
        expected = _lines(references)
    except _Fault as fault:
        reasons.append(f"`--references` must {fault.rule}, but {fault}.")
    texts: dict[int, list[str]] = {}
    faults: dict[str, list[str]] = {}
    for record in translated:
        path = resolve(str(record.hypotheses), results)
        try:
            lines = texts[record.line] = _lines(path)
            if expected and len(lines) != len(expected):
                raise _Fault(f"have the {len(expected)} lines of `--references`", f"{path} has {len(lines)}")
        except _Fault as fault:
            sentence = f"`hypotheses` of line {record.line} must {fault.rule}, but {fault}."
            faults.setdefault(fault.rule, []).append(sentence)
    for sentences in faults.values():
        reasons += summed_up("lines", sentences)
    return expected, texts, reasons


class _Fault(Exception):
    """What is wrong with a file.

    Args:
        rule: what it must: "be a file".
    """

    def __init__(self, rule: str, fact: str) -> None:
        super().__init__(fact)
        self.rule = rule


def _lines(path: str) -> list[str]:
    """A text file's lines; a `_Fault` where there are none."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except OSError as error:
        raise _Fault("be a file", f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _Fault("be UTF-8", f"{path} is not: {error}") from error
    if not lines:
        raise _Fault("have lines", f"{path} is empty")
    return lines
