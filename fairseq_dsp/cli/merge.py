"""`fairseq-dsp-merge OUT IN… --by sum`: makes one ranking of heads from those of several language pairs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fairseq_dsp.api.merging import merge_scores
from fairseq_dsp.errors import as_command
from fairseq_dsp.units.merging import MERGES


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-merge", description="Merges score files of one model, for fairseq-dsp-prune --scores."
    )
    parser.add_argument("output", metavar="OUT", help="where to write the merged scores, JSON")
    parser.add_argument("inputs", metavar="IN", nargs="+", help="score files of fairseq-dsp-score")
    parser.add_argument(
        "--by",
        required=True,
        metavar="NAME",
        help=f"one of {', '.join(MERGES)}: of shares, or so that the pair that loses most keeps most",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the scores are not of one model; nothing has been written.
    """
    args = get_parser().parse_args(arguments)
    merge_scores(args.inputs, args.by, args.output, force=args.force)
    print(f"merged {len(args.inputs)} score files by {args.by}: {args.output}")


def cli_main() -> None:
    with as_command():
        main()
