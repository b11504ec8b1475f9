"""`fairseq-dsp-train-scorer DATA-BIN… --path CHECKPOINT… --output FILE`: trains a scorer that reads attention."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from fairseq_dsp.api.scorer_training import train_scorer
from fairseq_dsp.cli.arguments import add_languages
from fairseq_dsp.cli.waiting import steps
from fairseq_dsp.errors import as_command


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-train-scorer",
        description="Trains a small network that scores attention heads by what they attend to, on finished models, for "
        "fairseq-dsp-score --scorer one-shot of other models.",
    )
    parser.add_argument("data", metavar="DATA-BIN", nargs="+", help="a data folder for all models, or one for each")
    parser.add_argument(
        "--path", required=True, nargs="+", metavar="CHECKPOINT", help="the models, dense or with gates"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="where to write the scorer, JSON")
    parser.add_argument("--subset", help="train (the default) or valid; never test")
    parser.add_argument("--batches", metavar="N", help="batches of a folder, drawn with --seed (default: 30), or all")
    parser.add_argument("--max-tokens", metavar="N", help="tokens in a batch (default: 4096)")
    parser.add_argument("--steps", metavar="N", help="steps of the training (default: 500)")
    add_languages(parser)
    parser.add_argument("--seed", help="of all that is drawn (default: 1)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured; nothing has been written.
    """
    args = get_parser().parse_args(arguments)
    given = {name: value for name, value in vars(args).items() if name not in ("path", "data", "output")}
    trained = train_scorer(args.path, args.data, args.output, **given, watch=steps)
    models = f"{len(trained.models)} model{'s' if len(trained.models) > 1 else ''}"
    print(f"trained a scorer on {models} in {trained.steps:,} steps: {args.output}")


def cli_main() -> None:
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # its warnings of sentences that are left out remain
    with as_command():
        main()
