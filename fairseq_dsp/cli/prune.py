"""`fairseq-dsp-prune IN OUT`: rewrites a checkpoint so that only its chosen heads exist."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fairseq_dsp.checkpoint import write_checkpoint
from fairseq_dsp.cli.arguments import megabytes, whole_number
from fairseq_dsp.errors import Refusal, as_command
from fairseq_dsp.heads import STACK_NAMES, HeadLayout
from fairseq_dsp.output import checked_file
from fairseq_dsp.rewriting import Rewrite, rewrite
from fairseq_dsp.scoring.score_file import read_scores


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
    done = rewrite(args.input, args.layout, budget, scores)
    write_checkpoint(done.state, output)
    report(done, args.input, args.output)
    if scores is not None and scores.weights is None:
        print(
            f"not checked: {args.scores} is of an earlier version, which does not say of which weights its scores are"
        )


def cli_main() -> None:
    with as_command():
        main()


def report(done: Rewrite, source: str, target: str) -> None:
    """Prints the before/after table, the grid of kept heads and the layout."""
    full = HeadLayout.full(done.layout.grid).by_type()
    kept = done.layout.by_type()
    print(f"{source} -> {target}")  # not the table's title, which would be folded within a path
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for stack, name in STACK_NAMES.items():
        table.add_row(f"{name} heads", str(full[stack][1]), str(kept[stack][0]))
    table.add_row("heads", str(done.layout.grid.total), str(done.layout.count))
    table.add_row("parameters", f"{done.parameters_before:,}", f"{done.parameters_after:,}")
    table.add_row("megabytes on disk", megabytes(source), megabytes(target))
    console = Console(markup=False, emoji=False)  # a path may hold what looks like either
    console.print(table)
    print(done.layout.drawing())
    print(f"layout {done.layout}")
    print(f"checked: masked and rewritten model differ by at most {done.difference:.1e} in log-probability")
