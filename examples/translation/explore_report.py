"""Tables of an exploration's lines, as Markdown.

    python examples/translation/explore_report.py DIR/results.jsonl
    python examples/translation/explore_report.py phase2.jsonl phase3.jsonl --against staged-full
    python examples/translation/explore_report.py decisive.jsonl neighbours.jsonl --seeds 4,5 --against paper
    python examples/translation/explore_report.py decisive.jsonl --against strat5+1 strat8+4 fisher gradient random-floor paper

Mean nats, and BLEU where lines have it, by arm with standard errors over seeds, and their number; choices beside their counts shuffled and
the best rule; with --against also differences to an arm, paired by seed, of several to the one of the best mean at the budget; rank
correlations of the loss right after the cut, and after 30 and 60 updates, with the loss at the end. Files are taken together; arms that
began from scratch have tables of their own. Where arms had several numbers of updates or learning rates, --updates and --lr must say which
are meant. A dagger marks arms of the first scripts that chose by scores of other sublayers.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from exploration.reading import (
    BLEU,
    EARLY,
    NATS,
    SHUFFLED,
    Line,
    best_of,
    budget_of,
    budgets,
    by_arm,
    dense_nats,
    early_means,
    from_scratch,
    is_cut,
    is_tuning,
    name_of,
    only_cuts,
    rank_correlation,
    regime_of,
    regimes,
    rules,
)
from exploration.setting import budget_text

from fairseq_dsp.analysis.seeds import Difference, paired
from fairseq_dsp.cli.arguments import whole_numbers
from fairseq_dsp.errors import Refusal, as_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: a file cannot be read, or has no such arm.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="results.jsonl of explore.py")
    parser.add_argument("--against", nargs="+", default=(), metavar="ARM",
                        help="differences to this arm, or to the best of these")  # fmt: skip
    parser.add_argument(
        "--seeds", metavar="LIST", help="leave out lines of other seeds, so that means are over the same"
    )
    parser.add_argument("--updates", type=int, metavar="N", help="leave out arms of another number of updates")
    parser.add_argument("--lr", type=float, metavar="LR",
                        help="leave out arms of another learning rate, but for those that compare rates")  # fmt: skip
    args = parser.parse_args(arguments)
    lines = [line for path in args.files for line in _read(path)]
    if args.seeds is not None:
        seeds = whole_numbers(args.seeds, "seeds", 0)
        lines = [line for line in lines if line.get("seed") in seeds]
    lines = [line for line in lines if budget_of(line) is None or _is_meant(line, args.updates, args.lr)]
    starts = [[line for line in lines if from_scratch(line) == scratch] for scratch in (False, True)]
    known = {name_of(line) for line in lines if budget_of(line) is not None}
    reasons = [f"`--against` must be an arm of the files, but is {name}." for name in args.against if name not in known]
    translated = {(line["bleu_sentences"], line["bleu_signature"]) for line in lines if BLEU in line}
    if len(translated) > 1:
        reasons.append(
            f"BLEU of the files must be of the same sentences by the same score, but is of {sorted(translated)}."
        )
    for some in starts:
        if len(several := regimes(some)) > 1:
            words = " and ".join(f"{updates} at {lr:g}" for updates, lr in several)
            reasons.append(
                f"Arms of one report must have the same updates and learning rate, but have {words}: `--updates` and `--lr` say which."
            )
    if reasons:
        raise Refusal(*reasons)
    trained, scratch = starts
    if trained:
        _print_report(trained, args.against)
    if scratch:
        print("Arms that began from scratch:\n")
        _print_report(scratch, args.against)


def _print_report(lines: Sequence[Line], against: Sequence[str]) -> None:
    """The tables of lines that may be compared."""
    dense = dense_nats(lines)
    if dense:
        print(f"dense: {_mean(list(dense.values()))} nats\n")
    figures = [NATS, *([BLEU] if any(BLEU in line for line in lines) else [])]
    for figure in figures:
        print("\n".join(summary(lines, figure)) + "\n")
    for kept in budgets(lines):
        for figure in figures:
            print("\n".join(table(lines, kept, against, figure)) + "\n")
        if matter := list(heads_matter(lines, kept, figures)):
            print("\n".join(matter) + "\n")
        if early := list(early_table(lines, kept)):
            print("\n".join(early) + "\n")
    if any(is_cut(line) for line in lines):
        print("\n".join(correlations(lines)))


def _is_meant(line: Line, updates: int | None, lr: float | None) -> bool:
    own_updates, own_lr = regime_of(line)
    return updates in (None, own_updates) and (lr in (None, own_lr) or is_tuning(line))


def summary(lines: Sequence[Line], figure: str = NATS) -> Iterator[str]:
    """Means of every arm at every budget, with the number of seeds; the best at the smallest budget first."""
    columns = {kept: by_arm(lines, kept, figure) for kept in budgets(lines)}
    yield f"| {figure} | " + " | ".join(map(budget_text, columns)) + " |"
    yield "| --- |" + " ---: |" * len(columns)
    for name in dict.fromkeys(name for arms in columns.values() for name in arms):
        cells = [list(arms.get(name, {}).values()) for arms in columns.values()]
        yield f"| {name} | " + " | ".join(f"{_mean(each)} ({len(each)})" if each else "" for each in cells) + " |"


def table(lines: Sequence[Line], kept: float, against: Sequence[str] = (), figure: str = NATS) -> Iterator[str]:
    """The arms of a budget, the best mean first.

    Args:
        against: arms of which the best is compared with all others.
    """
    arms = by_arm(lines, kept, figure)
    base = best_of(arms, against)
    more = f" less {base} | p |" if base else ""
    yield f"| {budget_text(kept)} | {figure} | by seed |{more}"
    yield "| --- | ---: | --- |" + (" ---: | ---: |" if base else "")
    for name, values in arms.items():
        seeds = ", ".join(f"{seed}: {value:.3f}" for seed, value in sorted(values.items()))
        row = f"| {name} | {_mean(list(values.values()))} | {seeds} |"
        if base:
            row += _compared(paired(values, arms[base]) if name != base else None)
        yield row


def heads_matter(lines: Sequence[Line], kept: float, figures: Sequence[str]) -> Iterator[str]:
    """Choices beside their own counts with heads drawn within, and beside the best rule; nothing where no arm was shuffled."""
    rows = []
    for figure in figures:
        arms = by_arm(lines, kept, figure)
        rule = best_of(arms, rules(arms))
        for name, values in arms.items():
            if (shuffled := arms.get(name + SHUFFLED)) is None:
                continue
            others = [shuffled, arms[rule] if rule else {}]
            cells = " | ".join(_mean(list(each.values())) if each else "" for each in (values, *others))
            compared = "".join(_compared(paired(values, each)) for each in others)
            rows.append(f"| {name} | {figure} | {rule or ''} | {cells} |{compared}")
    if rows:
        yield f"| {budget_text(kept)} | figure | rule | chosen | shuffled | rule's | less shuffled | p | less the rule | p |"
        yield "| --- | --- | --- |" + " ---: |" * 7
        yield from rows


def _compared(found: Difference | None) -> str:
    """The cells of a difference and its p."""
    if found is None:
        return " | |"
    error = "" if found.error is None else f" ± {found.error:.3f}"
    p_value = "" if found.p_value is None else f"{found.p_value:.3f}"
    return f" {found.mean:+.3f}{error} | {p_value} |"


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
            here = [line for line in some if budget_of(line) == kept and is_cut(line)]
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
