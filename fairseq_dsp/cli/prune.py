"""`fairseq-dsp-prune IN OUT`: rewrites a checkpoint so that only its chosen heads exist."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from fairseq_dsp.checkpoints.batches import draw_batches
from fairseq_dsp.checkpoints.rewriting import Rewrite, rewrite
from fairseq_dsp.cli.arguments import add_languages, megabytes, whole_number
from fairseq_dsp.config import get_option, set_option
from fairseq_dsp.errors import Refusal, as_command
from fairseq_dsp.files.checkpoint import write_checkpoint
from fairseq_dsp.files.data_folder import refuse_no_folder
from fairseq_dsp.files.output import checked_file
from fairseq_dsp.units.layout import HEAD_STACKS, STACK_NAMES, Layout
from fairseq_dsp.units.score_file import read_scores

# Sentences that `--rescale` reads: some tens of contexts for every weight that it fits, at the usual sizes.
_RESCALE_BATCHES, _RESCALE_TOKENS = 25, 4096


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-prune",
        description="Rewrites a fairseq transformer checkpoint so that only the chosen attention heads exist.",
    )
    parser.add_argument("input", metavar="IN", help="checkpoint trained with a head budget, or any dense transformer's")
    parser.add_argument("output", metavar="OUT", help="where to write the small checkpoint")
    parser.add_argument(
        "--layout",
        metavar="TEXT|CHECKPOINT",
        help="keep these heads: enc:…/dec:…/cross:…, 1 or 0 for every head; or those that another checkpoint keeps",
    )
    parser.add_argument("--unpruned-heads", metavar="K", help="keep the K most important heads, not the trained budget")
    parser.add_argument("--scores", metavar="FILE", help="importance by fairseq-dsp-score, with --unpruned-heads")
    parser.add_argument(
        "--cross-floor",
        metavar="N|layer",
        help="with --scores: cross-attention heads that stay whatever the scores say, or one in every decoder layer (default: 1, "
        "or 0 where no head is kept)",
    )
    parser.add_argument(
        "--rescale",
        metavar="DATA-BIN",
        help="fit the output projections on sentences of its training set, so that the heads that stay say what all said: for "
        "a dense model that is cut, before fine-tuning",
    )
    add_languages(parser)
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured; nothing has been written.
    """
    args = get_parser().parse_args(arguments)
    output = checked_file(args.output, args.force)
    budget = whole_number(args.unpruned_heads, "unpruned_heads")
    scores = None
    if args.scores is not None:
        if args.layout is not None:
            raise Refusal(
                f"`--scores` and `--layout` must not be given together, but are {args.scores} and {args.layout}."
            )
        scores = read_scores(args.scores)
    sentences = None
    if args.rescale is not None:
        refuse_no_folder(args.rescale, "`--rescale`")
        sentences = partial(_sentences, args)
    done = rewrite(args.input, args.layout, budget, scores, sentences, _floor(args, budget))
    write_checkpoint(done.state, output)
    report(done, args.input, args.output)
    if scores is not None and scores.weights is None:
        print(
            f"not checked: {args.scores} is of an earlier version, which does not say of which weights its scores are"
        )


def _floor(args: argparse.Namespace, budget: int | None) -> str | None:
    """`--cross-floor`, given or by default.

    Raises:
        Refusal: it was given without `--scores`.
    """
    if args.cross_floor is not None and args.scores is None:
        raise Refusal(
            f"`--cross-floor` must come with `--scores`, but `--scores` is not given and it is {args.cross_floor}."
        )
    return args.cross_floor if args.cross_floor is not None else "1" if args.scores is not None and budget else None


def _sentences(args: argparse.Namespace, model: Any, options: Any) -> list[dict[str, Any]]:
    """Batches of the training set for `--rescale`."""
    for side in ("source_lang", "target_lang"):
        set_option(options, side, getattr(args, side) or get_option(options, side))
    return draw_batches(model, options, args.rescale, "train", _RESCALE_BATCHES, _RESCALE_TOKENS, seed=1)


def cli_main() -> None:
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # of the data of `--rescale`
    with as_command():
        main()


def report(done: Rewrite, source: str, target: str) -> None:
    """Prints the before/after table, the grid of kept heads and the layout."""
    full = Layout.full(done.layout.grid).by_type()
    kept = done.layout.by_type()
    print(f"{source} -> {target}")  # not the table's title, which would be folded within a path
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for stack in HEAD_STACKS:
        table.add_row(f"{STACK_NAMES[stack]} heads", str(full[stack][1]), str(kept[stack][0]))
    table.add_row("heads", str(done.layout.grid.total), str(done.layout.count))
    table.add_row("parameters", f"{done.parameters_before:,}", f"{done.parameters_after:,}")
    table.add_row("megabytes on disk", megabytes(source), megabytes(target))
    console = Console(markup=False, emoji=False)  # a path may hold what looks like either
    console.print(table)
    print(done.layout.drawing())
    print(f"layout {done.layout}")
    if done.losses is not None:
        print("loss a target token: {:.3f} with all heads, {:.3f} cut, {:.3f} rescaled".format(*done.losses))
    print(f"checked: masked and rewritten model differ by at most {done.difference:.1e} in log-probability")
