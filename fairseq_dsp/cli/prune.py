"""`fairseq-dsp-prune IN OUT`: rewrites a checkpoint so that only its chosen heads exist."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fairseq_dsp.api.pruning import prune
from fairseq_dsp.checkpoints.rewriting import Rewrite
from fairseq_dsp.cli.arguments import add_languages, megabytes
from fairseq_dsp.errors import as_command
from fairseq_dsp.units.kinds import KINDS


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-prune",
        description="Rewrites a fairseq transformer checkpoint so that only the chosen attention heads (and neurons) exist.",
    )
    parser.add_argument("input", metavar="IN", help="checkpoint trained with a head budget, or any dense transformer's")
    parser.add_argument("output", metavar="OUT", help="where to write the small checkpoint")
    parser.add_argument(
        "--layout",
        metavar="TEXT|CHECKPOINT",
        help="keep these heads: enc:…/dec:…/cross:…, 1 or 0 for every head, and with /ffn-enc:…/ffn-dec:… for every group of neurons too; "
        "or those that another checkpoint keeps",
    )
    parser.add_argument("--unpruned-heads", metavar="K", help="keep the K most important heads, not the trained budget")
    parser.add_argument(
        "--budget",
        metavar="TEXT",
        help="in place of --unpruned-heads, what to keep at most: a number of units, a share of them (0.25), or what the whole model may "
        "cost, parameters=20M, macs=0.5 (multiply-adds a sentence) or latency=40ms (a sentence); a share is of the dense model's",
    )
    parser.add_argument(
        "--sentence",
        metavar="S,T,BEAM",
        help="what macs= is counted of: source and target tokens and the beam (default: mean lengths of the validation set, beam 5)",
    )
    parser.add_argument(
        "--costs",
        metavar="FILE",
        help="what units take, for latency=: measured by fairseq-dsp-bench --costs on the machine that will serve",
    )
    parser.add_argument(
        "--scores", metavar="FILE", help="importance by fairseq-dsp-score, with --unpruned-heads or --budget"
    )
    parser.add_argument(
        "--cross-floor",
        metavar="N|layer",
        help="with --scores or --scorer: cross-attention heads that stay whatever the scores say, or one in every decoder layer (default: 1, "
        "or 0 where no head is kept)",
    )
    parser.add_argument(
        "--rescale",
        metavar="DATA-BIN",
        help="fit the output projections, and fc2 where neurons go, on sentences of its training set, so that the units that stay "
        "say what all said: for a dense model that is cut, before fine-tuning",
    )
    parser.add_argument(
        "--scorer",
        metavar="NAME",
        help="with --rescale and --unpruned-heads: choose in stages by this scorer of fairseq-dsp-score (joint-fisher was measured), on "
        "the same sentences: score, cut, fit, and again",
    )
    parser.add_argument(
        "--stages", metavar="N", help="of --scorer (default: 4); each leaves the same share of the heads"
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
    given = {name: value for name, value in vars(args).items() if name not in ("input", "output")}
    done = prune(args.input, args.output, **given)
    report(done, args.input, args.output)
    if done.scores is not None and done.scores.weights is None:
        print(
            f"not checked: {args.scores} is of an earlier version, which does not say of which weights its scores are"
        )


def cli_main() -> None:
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # of the data of `--rescale`
    with as_command():
        main()


def report(done: Rewrite, source: str, target: str) -> None:
    """Prints the before/after table, the grid of kept heads and the layout."""
    before, after = ({**layout.by_type(), **layout.by_kind()} for layout in (done.before, done.layout))
    print(f"{source} -> {target}")  # not the table's title, which would be folded within a path
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for kind in KINDS:
        rows = {stack.name: f"{stack.title} {kind.noun}" for stack in kind.stacks} | {kind.noun: kind.noun}
        for name in (name for name in rows if name in after):
            table.add_row(rows[name], str(before[name][0]), str(after[name][0]))
    table.add_row("parameters", f"{done.parameters_before:,}", f"{done.parameters_after:,}")
    table.add_row("megabytes on disk", megabytes(source), megabytes(target))
    console = Console(markup=False, emoji=False)  # a path may hold what looks like either
    console.print(table)
    print(done.layout.drawing())
    print(f"layout {done.layout}")
    if done.account is not None:
        print("\n".join(done.account.lines()))
    if done.losses is not None:
        print("loss a target token: {:.3f} with all heads, {:.3f} cut, {:.3f} rescaled".format(*done.losses))
    print(f"checked: masked and rewritten model differ by at most {done.difference:.1e} in log-probability")
