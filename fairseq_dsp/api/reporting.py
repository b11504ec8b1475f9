"""Reports of finished runs, and pictures of layouts. Called by `fairseq-dsp-report`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fairseq_dsp.analysis import plots
from fairseq_dsp.analysis.records import DENSE, REFERENCES, Record, read_records, resolve
from fairseq_dsp.analysis.report import is_report, read_logs, refuse_mixtures, write_report
from fairseq_dsp.analysis.significance import PairedTests, disagreements, paired_tests
from fairseq_dsp.api.watching import Watch, unwatched, watched
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.output import checked_folder
from fairseq_dsp.units.layout import Layout


@dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Attributes:
        records: the runs.
        tests: comparisons of their translations with those of dense; None without references.
        warnings: sentences on what is missing or odd, which the report shows too.
    """

    records: list[Record]
    tests: PairedTests | None
    warnings: list[str]


def report(
    results: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    references: str | os.PathLike[str] | None = None,
    against: str = DENSE,
    force: bool = False,
    warn: Callable[[str], Any] = lambda sentence: None,
    watch: Watch = unwatched,
) -> Report:
    """Writes a report of finished runs, a table, figures and one self-contained page: `fairseq-dsp-report`.

    Args:
        results: `results.jsonl`, a finished run a line.
        output: the folder to write.
        references: detokenised reference translations. Every run whose line names `hypotheses` is tested against dense. None for
            those that a reproduction left beside `results`, if they are there.
        against: the method that every other is compared with, paired by seed.
        force: replace the report in `output`.
        warn: is given every warning as soon as it is known.
        watch: shows how far the tests are: see `score`.

    Raises:
        Refusal: the request cannot be honoured, with the sentences of the command; nothing has been written.
    """
    results = os.fspath(results)
    target = checked_folder(output, force, "reports", is_report)
    warnings: list[str] = []

    def note(sentence: str) -> None:
        warn(sentence)
        warnings.append(sentence)

    records = read_records(results, note)
    methods = dict.fromkeys(record.method for record in records)
    if against != DENSE and against not in methods:
        raise Refusal(f"`--against` must be a method of the results ({', '.join(methods)}), but is {against}.")
    refuse_mixtures(records, results)
    logs, problems = read_logs(records, results)
    tests = None
    beside = resolve(REFERENCES, results)
    references = references or (beside if os.path.isfile(beside) else None)
    if references is not None:
        under = partial(watched, watch, "testing against dense")
        tests = paired_tests(records, results, os.fspath(references), under)
        problems += disagreements(tests)
    for problem in problems:
        note(problem)
    write_report(records, target, tests, logs, warnings, against)
    return Report(records, tests, warnings)


def draw_heads(layouts: Mapping[str, Layout], *paths: str | os.PathLike[str]) -> None:
    """Draws which heads are kept: a row of panels a layout, a panel an attention type, a row a layer, a column a head.

    Where neurons are units of a layout two panels more show the share that the feed-forward network of every layer keeps.

    Args:
        layouts: title -> layout, one at least.
        paths: files to write; the suffix chooses the format (png, pdf, svg).
    """
    plots.kept_heads_grid(layouts, *(os.fspath(path) for path in paths))
