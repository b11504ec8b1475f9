"""`fairseq-dsp-score DATA-BIN --path CHECKPOINT`: says how much each unit of a finished model matters."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from typing import Any

from fairseq_dsp.api.blocks import block_scores
from fairseq_dsp.api.score_work import READERS
from fairseq_dsp.api.scoring import file_of_pair, score, score_pairs
from fairseq_dsp.cli.arguments import add_languages
from fairseq_dsp.cli.waiting import steps
from fairseq_dsp.config import flag
from fairseq_dsp.errors import Refusal, as_command
from fairseq_dsp.scoring import SCORERS
from fairseq_dsp.scoring.attention_statistics import STATISTICS
from fairseq_dsp.units.blocks import BLOCKS
from fairseq_dsp.units.chosen import Chosen
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import CHOICES


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-score",
        description="Scores the units of a finished fairseq transformer, its attention heads and the neurons of its feed-forward "
        "networks, for fairseq-dsp-prune --scores.",
    )
    readers = ", ".join(READERS)
    parser.add_argument("data", metavar="DATA-BIN", nargs="?", help=f"the data folder; read by {readers} alone")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="the model, dense or with gates")
    parser.add_argument("--scorer", required=True, metavar="NAME", help="one of " + ", ".join(SCORERS))
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="where to write the scores, JSON; a folder with --lang-pairs"
    )
    kinds = ", ".join(kind.name for kind in CHOICES)
    parser.add_argument(
        "--units",
        metavar="KINDS",
        help=f"what to score, with commas: {kinds} (default: {HEADS.name}); or {BLOCKS} of weight matrices, for a study of masks",
    )
    parser.add_argument("--block", metavar="B", help=f"with --units {BLOCKS}: rows and columns of a block, 16 or 32")
    parser.add_argument(
        "--ffn-group",
        metavar="G",
        help="neurons of a feed-forward network that are one unit (default: 1, or as many as in the checkpoint)",
    )
    parser.add_argument("--subset", help="train (the default) or valid; never test")
    parser.add_argument("--batches", metavar="N", help="batches, drawn with --seed (default: 100), or all")
    parser.add_argument("--max-tokens", metavar="N", help="tokens in a batch (default: 4096)")
    add_languages(parser)
    parser.add_argument(
        "--lang-pairs",
        metavar="PAIRS",
        help="of a model of several language pairs: score each of these, into FILE/scores.SRC-TGT.json (default: all together)",
    )
    parser.add_argument("--iterative", metavar="N", help="score again after every N units removed")
    parser.add_argument("--seed", help="of the choice of batches and of random scores (default: 1)")
    parser.add_argument("--statistic", metavar="NAME", help="of attention-statistics: one of " + ", ".join(STATISTICS))
    parser.add_argument(
        "--norm", metavar="NAME", help="of function-norm: absolute (the default) or relative to the stream"
    )
    parser.add_argument("--scorer-model", metavar="FILE", help="of one-shot: a file of fairseq-dsp-train-scorer")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured; nothing has been written.
    """
    args = get_parser().parse_intermixed_args(arguments)  # a folder that may be missing may stand anywhere
    given = {name: value for name, value in vars(args).items() if name not in ("path", "scorer", "data", "output")}
    if args.units == BLOCKS:
        return _score_blocks(args, given)
    if given.pop("block") is not None:
        raise Refusal(f"`--block` must come with `--units {BLOCKS}`, but is {args.block}.")
    pairs = given.pop("lang_pairs")
    if pairs is None:
        files = [score(args.path, args.scorer, args.data, args.output, **given, watch=steps)]
    else:
        if alien := [name for name in ("source_lang", "target_lang") if given.pop(name) is not None]:
            raise Refusal(f"`--lang-pairs` must not come with {flag(alien[0])}, but is {pairs}.")
        found = score_pairs(args.path, args.scorer, args.data, args.output, lang_pairs=pairs, **given, watch=steps)
        files = list(found.values())
    for file in files:
        data = "" if file.sentences is None else f" on {file.sentences:,} sentences of {file.subset}"
        counts = {
            kind.noun: Chosen(file.layout, (kind.name,)).grid.total for kind in CHOICES if kind.name in file.units
        }
        units = " and ".join(f"{count} {noun}" for noun, count in counts.items())
        where = args.output if pairs is None else os.path.join(args.output, file_of_pair(file.pairs[0]))
        print(f"scored {units} of {args.path}{data} by {args.scorer}: {where}")
    if not files[0].comparable and len(files[0].units) > 1:
        print("scores of different kinds do not compare: give fairseq-dsp-prune a budget for each kind")


def _score_blocks(args: argparse.Namespace, given: dict[str, Any]) -> None:
    alien = [
        name
        for name in ("ffn_group", "iterative", "lang_pairs", "statistic", "norm", "scorer_model")
        if given.pop(name) is not None
    ]
    if alien:
        raise Refusal(
            *(
                f"{flag(name)} must not be given with `--units {BLOCKS}`, but is {getattr(args, name)}."
                for name in alien
            )
        )
    del given["units"]
    file = block_scores(args.path, args.scorer, args.data, args.output, **given)
    size = f"{file.block} x {file.block}"
    print(f"scored {file.count:,} blocks of {size} of {args.path} by {args.scorer}: {args.output}")
    print(
        "blocks are masks: no runtime that models are exported to computes sparse blocks, and nothing gets smaller or faster by them"
    )


def cli_main() -> None:
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # its warnings of sentences that are left out remain
    with as_command():
        main()
