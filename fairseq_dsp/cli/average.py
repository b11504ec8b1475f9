"""`fairseq-dsp-average OUT IN…`: averages the weights of checkpoints that keep the same heads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fairseq_dsp.api.pruning import average
from fairseq_dsp.errors import as_command


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-average", description="Averages the weights of checkpoints that keep the same heads."
    )
    parser.add_argument("output", metavar="OUT", help="where to write the average")
    parser.add_argument("inputs", metavar="IN", nargs="+", help="checkpoints of one model, pruned or not")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the checkpoints differ in heads, names or shapes; nothing has been written.
    """
    args = get_parser().parse_args(arguments)
    average(args.inputs, args.output, force=args.force)
    print(f"averaged {len(args.inputs)} checkpoints into {args.output}")


def cli_main() -> None:
    with as_command():
        main()
