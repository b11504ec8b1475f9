"""`fairseq-dsp-report RESULTS --output DIR`: a table, figures and a page of finished runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from fairseq_dsp.analysis.records import DENSE, REFERENCES
from fairseq_dsp.analysis.report import MARKDOWN, PAGE
from fairseq_dsp.api.reporting import report
from fairseq_dsp.cli.waiting import steps
from fairseq_dsp.errors import as_command


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
    given = {name: value for name, value in vars(args).items() if name not in ("results", "output")}
    done = report(args.results, args.output, **given, warn=_warn, watch=_tested)
    print(f"reported {len(done.records)} runs: {args.output}/{PAGE}, {args.output}/{MARKDOWN}")


def _warn(sentence: str) -> None:
    print(f"fairseq_dsp: warning: {sentence}", file=sys.stderr)


def _tested(what: str, total: int) -> AbstractContextManager[Callable[[], None]]:
    print(f"testing {total} runs against dense", flush=True)
    return steps(what, total)


def cli_main() -> None:
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)  # it tells of every step of every test
    with as_command():
        main()
