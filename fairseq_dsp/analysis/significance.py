"""Is a pruned model worse than the dense one? sacreBLEU's paired bootstrap over the translations of a results file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_dsp.analysis.records import Record, resolve
from fairseq_dsp.errors import Refusal


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


def paired_tests(records: Sequence[Record], results: str, references: str) -> PairedTests:
    """Compares every run that has translations with dense.

    Args:
        records: runs; those without `hypotheses` are left out.
        results: path of the results file, from whose folder paths in it are seen.
        references: path of the reference translations, detokenised, a line a sentence.

    Raises:
        Refusal: files are missing or of other lengths, or there are no translations to compare; every reason.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    reasons: list[str] = []
    expected = _lines(references, "`--references`", reasons)
    translated = [record for record in records if record.hypotheses is not None]
    texts: dict[int, list[str]] = {}
    for record in translated:
        path = resolve(str(record.hypotheses), results)
        lines = _lines(path, f"`hypotheses` of line {record.line}", reasons)
        if lines is not None and expected is not None and len(lines) != len(expected):
            reasons.append(
                f"`hypotheses` of line {record.line} must have the {len(expected)} lines of `--references`, but {path} has "
                f"{len(lines)}."
            )
        texts[record.line] = lines or []
    dense = sorted((record for record in translated if record.is_dense), key=lambda record: record.seed)
    others = [record for record in translated if not record.is_dense]
    if not dense or not others:
        missing = "dense" if not dense else "pruned"
        reasons.append(f"`--references` needs `hypotheses` of dense and pruned runs, but no {missing} run has any.")
    if reasons or expected is None:
        raise Refusal(*reasons)
    comparisons, signature = [], ""
    for baseline in dense:
        paired = [record for record in others if _baseline(record, dense) == baseline]
        if not paired:
            continue
        systems = [(str(record.line), texts[record.line]) for record in (baseline, *paired)]
        test = PairedTest(systems, {"BLEU": BLEU()}, [expected], test_type="bs")
        signatures, outcome = test()
        signature = str(signatures["BLEU"])
        first, *rest = outcome["BLEU"]
        comparisons += [
            Comparison(record, baseline, result.score, first.score, result.p_value)
            for record, result in zip(paired, rest, strict=True)
        ]
    return PairedTests(tuple(comparisons), signature)


def disagreements(tests: PairedTests) -> list[str]:
    """Sentences on runs whose sacreBLEU here is not that of the results file: other references, or another tokenisation."""
    seen = {}
    for each in tests.comparisons:
        seen[each.record.name] = (each.record.sacrebleu, each.score)
        seen[each.dense.name] = (each.dense.sacrebleu, each.dense_score)
    return [
        f"the sacreBLEU of {name} is {stored:.2f} in the results but {computed:.2f} with these references."
        for name, (stored, computed) in seen.items()
        if abs(stored - computed) > 0.05
    ]


def _baseline(record: Record, dense: Sequence[Record]) -> Record:
    return next((each for each in dense if each.seed == record.seed), dense[0])


def _lines(path: str, what: str, reasons: list[str]) -> list[str] | None:
    """A text file's lines; None and a reason where there are none."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except OSError as error:
        reasons.append(f"{what} must be a file, but {path} cannot be read: {error.strerror}.")
        return None
    except UnicodeDecodeError as error:
        reasons.append(f"{what} must be UTF-8, but {path} is not: {error}.")
        return None
    if not lines:
        reasons.append(f"{what} must have lines, but {path} is empty.")
    return lines
