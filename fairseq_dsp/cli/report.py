"""`fairseq-dsp-report RESULTS --output DIR`: a table, figures and a page of finished runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial

from fairseq_dsp.analysis.records import DENSE, REFERENCES, read_records, resolve
from fairseq_dsp.analysis.report import (
    MARKDOWN,
    PAGE,
    is_report,
    read_logs,
    refuse_mixtures,
    write_report,
)
from fairseq_dsp.analysis.significance import disagreements, paired_tests
from fairseq_dsp.cli.waiting import watched
from fairseq_dsp.errors import Refusal, as_command
from fairseq_dsp.files.output import checked_folder


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-report",
        description="Makes a report of finished runs: a Markdown table, PNG and PDF figures, one self-contained HTML page.",
    )
    parser.add_argument("results", metavar="RESULTS", help="results.jsonl: a finished run a line")
    parser.add_argument("--output", required=True, metavar="DIR", help="the report's folder")
    parser.add_argument(
        "--references",
        metavar="FILE",
        help="detokenised reference translations: test every run whose line names `hypotheses` against dense "
        f"(default: {REFERENCES} beside RESULTS, if it is there)",
    )
    parser.add_argument(
        "--against",
        metavar="METHOD",
        default=DENSE,
        help="compare every method with this one, paired by seed (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="replace the report in DIR")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured; nothing has been written.
    """
    args = get_parser().parse_args(arguments)
    output = checked_folder(args.output, args.force, "reports", is_report)
    warnings: list[str] = []

    def warn(sentence: str) -> None:
        print(f"fairseq_dsp: warning: {sentence}", file=sys.stderr)
        warnings.append(sentence)

    records = read_records(args.results, warn)
    methods = dict.fromkeys(record.method for record in records)
    if args.against != DENSE and args.against not in methods:
        raise Refusal(f"`--against` must be a method of the results ({', '.join(methods)}), but is {args.against}.")
    refuse_mixtures(records, args.results)
    logs, problems = read_logs(records, args.results)
    tests = None
    beside = resolve(REFERENCES, args.results)
    references = args.references or (beside if os.path.isfile(beside) else None)
    if references is not None:
        count = sum(record.hypotheses is not None and not record.is_dense for record in records)
        print(f"testing {count} runs against dense", flush=True)
        tests = paired_tests(records, args.results, references, partial(watched, "testing against dense"))
        problems += disagreements(tests)
    for problem in problems:
        warn(problem)
    write_report(records, output, tests, logs, warnings, args.against)
    print(f"reported {len(records)} runs: {args.output}/{PAGE}, {args.output}/{MARKDOWN}")


def cli_main() -> None:
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)  # it tells of every step of every test
    with as_command():
        main()
