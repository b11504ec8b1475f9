"""Tables of an exploration's lines, as Markdown.

    python examples/translation/explore_report.py DIR/results.jsonl
    python examples/translation/explore_report.py phase2.jsonl phase3.jsonl --against fisher

Mean nats by arm with standard errors over seeds, and their number; with --against also differences to an arm, paired by seed; rank correlations
of the loss right after the cut, and after 30 and 60 updates, with the loss at the end. Files are taken together: give those whose
arms had the same updates and learning rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from exploration.reading import (
    EARLY,
    Line,
    budget_of,
    budgets,
    by_arm,
    dense_nats,
    early_means,
    is_tuning,
    name_of,
    only_cuts,
    rank_correlation,
)
from exploration.setting import budget_text

from fairseq_dsp.analysis.seeds import paired
from fairseq_dsp.errors import Refusal, as_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: a file cannot be read, or has no such arm.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="results.jsonl of explore.py")
    parser.add_argument("--against", metavar="ARM", help="differences to this arm")
    args = parser.parse_args(arguments)
    lines = [line for path in args.files for line in _read(path)]
    if args.against and not any("K" in line and name_of(line) == args.against for line in lines):
        raise Refusal(f"`--against` must be an arm of the files, but is {args.against}.")
    dense = dense_nats(lines)
    if dense:
        print(f"dense: {_mean(list(dense.values()))} nats\n")
    print("\n".join(summary(lines)) + "\n")
    for kept in budgets(lines):
        print("\n".join(table(lines, kept, args.against)) + "\n")
        print("\n".join(early_table(lines, kept)) + "\n")
    print("\n".join(correlations(lines)))


def summary(lines: Sequence[Line]) -> Iterator[str]:
    """Mean nats of every arm at every budget, with the number of seeds; the lowest at the smallest budget first."""
    columns = {kept: by_arm(lines, kept) for kept in budgets(lines)}
    yield "| nats | " + " | ".join(map(budget_text, columns)) + " |"
    yield "| --- |" + " ---: |" * len(columns)
    for name in dict.fromkeys(name for arms in columns.values() for name in arms):
        cells = [list(arms.get(name, {}).values()) for arms in columns.values()]
        yield f"| {name} | " + " | ".join(f"{_mean(each)} ({len(each)})" if each else "" for each in cells) + " |"


def table(lines: Sequence[Line], kept: float, against: str | None) -> Iterator[str]:
    """The arms of a budget, the lowest mean first."""
    arms = by_arm(lines, kept)
    base = arms.get(against or "")
    more = f" less {against} | p |" if base else ""
    yield f"| {budget_text(kept)} | nats | by seed |{more}"
    yield "| --- | ---: | --- |" + (" ---: | ---: |" if base else "")
    for name, values in arms.items():
        seeds = ", ".join(f"{seed}: {value:.3f}" for seed, value in sorted(values.items()))
        row = f"| {name} | {_mean(list(values.values()))} | {seeds} |"
        if base and name != against and (found := paired(values, base)):
            error = "" if found.error is None else f" ± {found.error:.3f}"
            p_value = "" if found.p_value is None else f"{found.p_value:.3f}"
            row += f" {found.mean:+.3f}{error} | {p_value} |"
        elif base:
            row += " | |"
        yield row


def early_table(lines: Sequence[Line], kept: float) -> Iterator[str]:
    """Early losses and the last of the arms that cut the trained model and change nothing else; none where nothing was measured."""
    if means := early_means(lines, kept):
        yield f"| {budget_text(kept)}, arms that only cut | {' | '.join(EARLY)} | nats |"
        yield "| --- |" + " ---: |" * (len(EARLY) + 1)
        for name, values in means.items():
            yield f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"


def correlations(lines: Sequence[Line]) -> Iterator[str]:
    """Spearman's rank correlation with the loss at the end, over the arms of a seed, and its mean over the seeds."""
    groups = {
        "arms": [line for line in lines if "K" in line and name_of(line) != "landscape" and not is_tuning(line)],
        "landscape": [line for line in lines if "K" in line and name_of(line) == "landscape"],
    }
    groups["arms that only cut"] = [line for line in groups["arms"] if only_cuts(line)]
    yield "| rank correlation with the last loss | lines | " + " | ".join(EARLY) + " |"
    yield "| --- | ---: |" + " ---: |" * len(EARLY)
    for name, some in groups.items():
        for kept in budgets(some):
            here = [line for line in some if budget_of(line) == kept and "cut" in line]
            cells = [_correlation(here, early) for early in EARLY]
            if any(cells):
                yield f"| {name}, {budget_text(kept)} | {len(here)} | " + " | ".join(cells) + " |"


def _correlation(lines: Sequence[Line], early: str) -> str:
    """Mean over seeds, with the lowest and the highest."""
    seeds = sorted({line["seed"] for line in lines})
    found = [rank_correlation([line for line in lines if line["seed"] == seed], early) for seed in seeds]
    known = [value for value in found if value is not None]
    if not known:
        return ""
    spread = f" ({min(known):.2f} to {max(known):.2f})" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def _mean(values: Sequence[float]) -> str:
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{error}"


def _read(path: str) -> list[Line]:
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise Refusal(f"FILE must be lines of JSON, but {path} cannot be read: {error}") from error


if __name__ == "__main__":
    with as_command():
        main()
