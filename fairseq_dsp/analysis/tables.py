"""The report's tables: made of records here, shown as Markdown here and as HTML by the report's template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_dsp.analysis.records import SCORES, Group, Record, describe, grouped, mean_and_spread
from fairseq_dsp.analysis.significance import PairedTests
from fairseq_dsp.units.layout import HEAD_STACKS, STACK_NAMES

NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table with a sentence above it.

    Attributes:
        title: its heading.
        note: what its numbers are.
        header: names of the columns.
        rows: as many texts each.
        texts: number of columns, from the left, that hold words; the others hold numbers and are aligned to the right.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1

    def markdown(self) -> str:
        rule = ("---",) * self.texts + ("---:",) * (len(self.header) - self.texts)
        rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in (self.header, *self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def by_budget(records: Sequence[Record], score: str) -> Table:
    """A score of every method at every budget."""
    groups = {(group.method, group.kept): group for group in grouped(records)}
    budgets = sorted({kept for _, kept in groups}, reverse=True)
    methods = list(dict.fromkeys(method for method, _ in groups))
    counts = {len(group.records) for group in groups.values()}
    many = len(counts) > 1
    rows = [(method, *(_cell(groups.get((method, kept)), score, many) for kept in budgets)) for method in methods]
    note = _spread_note(list(groups.values()))
    if many:
        note += " The number of seeds stands in brackets."
    elif counts != {1}:
        note += f" {max(counts)} seeds each."
    return Table(
        f"{SCORES[score]} by heads kept",
        note,
        ("method", *map(str, budgets)),
        tuple(rows),
    )


def all_figures(records: Sequence[Record]) -> Table:
    """A row a method and budget, with everything that was measured."""
    groups = grouped(records)
    rows = []
    for group in groups:
        types = [
            mean_and_spread([record.layout.by_type()[stack][0] for record in group.records])[0] for stack in HEAD_STACKS
        ]
        rows.append(
            (
                group.method,
                str(group.kept),
                str(len(group.records)),
                *(_value(group.values(score)) for score in SCORES),
                " / ".join(f"{count:.3g}" for count in types),
                f"{mean_and_spread(group.values('parameters'))[0]:,.0f}",
                *(_rounded(group.values(name)) for name in ("updates", "seconds", "words_per_second")),
            )
        )
    names = ("method", "heads", "seeds", "BLEU", "sacreBLEU", "chrF")
    types_name = " / ".join(
        STACK_NAMES[stack].replace("encoder", "enc").replace("decoder", "dec") for stack in HEAD_STACKS
    )
    return Table(
        "All figures",
        f"BLEU is tokenised and lower-cased, sacreBLEU and chrF are on detokenised text. {_spread_note(groups)} "
        "Heads by type, parameters and training's figures are means; seconds are those of training steps, words the "
        "target side's tokens after segmentation.",
        (*names, types_name, "parameters", "updates", "seconds", "words/s"),
        tuple(rows),
    )


def significance(tests: PairedTests) -> Table:
    """The paired test of every method and budget against dense."""
    cells: dict[tuple[str, int], list[tuple[int, float, float]]] = {}
    for each in tests.comparisons:
        cell = cells.setdefault((each.record.method, each.record.kept), [])
        cell.append((each.record.seed, each.score - each.dense_score, each.p_value))
    rows = []
    for (method, kept), found in sorted(cells.items(), key=lambda item: -item[0][1]):
        found.sort()
        rows.append((method, str(kept), *("; ".join(texts) for texts in _by_seed(found))))
    order = list(dict.fromkeys(each.record.method for each in tests.comparisons))
    rows.sort(key=lambda row: order.index(row[0]))
    return Table(
        "Against dense",
        "Difference of sacreBLEU to the dense model of the same seed (where there is none, of the lowest), and sacreBLEU's "
        "paired bootstrap test: p is how often a test set drawn by chance would make a difference as large. It knows nothing of "
        "the chance in training, which the spread over seeds shows, and p is not corrected for the number of tests. Values are "
        "in the order of seeds. "
        f"Signature: {tests.signature}",
        ("method", "heads", "seeds", "difference", "p"),
        tuple(rows),
    )


def all_runs(records: Sequence[Record]) -> Table:
    """A row a run: its layout and what was run."""
    rows = [
        (record.method, str(record.layout), describe(record.command), str(record.kept), str(record.seed))
        + tuple(f"{getattr(record, score):.2f}" for score in SCORES)
        for group in grouped(records)
        for record in group.records
    ]
    header = ("method", "layout", "command", "heads", "seed", "BLEU", "sacreBLEU", "chrF")
    return Table("All runs", "", header, tuple(rows), texts=3)


def signature_lines(records: Sequence[Record]) -> list[str]:
    """Each score's signatures: one, unless runs were scored in different ways, which then stands here."""
    return [f"{SCORES[score]}: {_signature(records, score)}" for score in SCORES]


def _by_seed(found: Sequence[tuple[int, float, float]]) -> list[list[str]]:
    return [
        [str(seed) for seed, _, _ in found],
        [f"{difference:+.1f}".replace("-", "\N{MINUS SIGN}") for _, difference, _ in found],
        ["< 0.001" if p < 0.001 else f"{p:.3f}" for _, _, p in found],
    ]


def _cell(group: Group | None, score: str, with_count: bool) -> str:
    if group is None:
        return NONE
    return _value(group.values(score)) + (f" ({len(group.records)})" if with_count else "")


def _value(values: Sequence[float]) -> str:
    if not values:
        return NONE
    middle, spread = mean_and_spread(values)
    return f"{middle:.1f}" if spread is None else f"{middle:.1f} ± {spread:.1f}"


def _rounded(values: Sequence[float]) -> str:
    return f"{mean_and_spread(values)[0]:,.0f}" if values else NONE


def _spread_note(groups: Sequence[Group]) -> str:
    several = any(len(group.records) > 1 for group in groups)
    return "Mean ± sample standard deviation over seeds." if several else "One seed each."


def _signature(records: Sequence[Record], score: str) -> str:
    found = dict.fromkeys(record.signatures.get(score, "none given") for record in records)
    return "; ".join(found)
