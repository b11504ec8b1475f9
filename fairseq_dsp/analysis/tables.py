"""The report's tables: made of records here, shown as Markdown here and as HTML by the report's template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_dsp.analysis.groups import Group, grouped, mean_and_spread
from fairseq_dsp.analysis.records import COSTS, DENSE, NATS, SCORES, Record, describe
from fairseq_dsp.analysis.seeds import Difference, paired
from fairseq_dsp.analysis.significance import PairedTests
from fairseq_dsp.units.groups import has_neurons
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kind import Kind
from fairseq_dsp.units.neurons import NEURONS

NONE = "–"
_FIGURES = {**SCORES, NATS: "Validation loss (nats a target token)"}
_DIGITS = {NATS: 3}
STRATIFIED = "stratified"


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


def by_budget(records: Sequence[Record], figure: str) -> Table:
    """A score, or the loss (`NATS`), of every method at every budget; of runs whose budget is a number of heads."""
    records = [record for record in records if record.is_counted]
    groups = {(group.method, group.kept): group for group in grouped(records)}
    budgets = sorted({kept for _, kept in groups}, reverse=True)
    methods = list(dict.fromkeys(method for method, _ in groups))
    counts = {len(group.values(figure)) for group in groups.values()} - {0} or {1}
    many = len(counts) > 1
    rows = [(method, *(_cell(groups.get((method, kept)), figure, many) for kept in budgets)) for method in methods]
    note = _spread_note(list(groups.values()))
    if many:
        note += " The number of seeds stands in brackets."
    elif counts != {1}:
        note += f" {max(counts)} seeds each."
    return Table(
        f"{_FIGURES[figure]} by heads kept",
        note,
        ("method", *map(str, budgets)),
        tuple(rows),
    )


def all_figures(records: Sequence[Record]) -> Table:
    """A row a method and budget, with everything that was measured."""
    groups = grouped(records)
    kinds = [HEADS, NEURONS] if any(has_neurons(record.layout.grid) for record in records) else [HEADS]
    costs = [(name, *COSTS[name]) for name in ("macs", "latency") if any(group.values(name) for group in groups)]
    rows = []
    for group in groups:
        rows.append(
            (
                group.method,
                group.size,
                str(len(group.records)),
                *(_value(group.values(score)) for score in SCORES),
                *(_by_type(group, kind) for kind in kinds),
                f"{mean_and_spread(group.values('parameters'))[0]:,.0f}",
                *(_scaled(group.values(name), scale) for name, _, scale in costs),
                *(_rounded(group.values(name)) for name in ("updates", "seconds", "words_per_second")),
            )
        )
    names = ("method", _column(records), "seeds", "BLEU", "sacreBLEU", "chrF")
    types = (
        " / ".join(stack.title.replace("encoder", "enc").replace("decoder", "dec") for stack in kind.stacks)
        for kind in kinds
    )
    return Table(
        "All figures",
        f"BLEU is tokenised and lower-cased, sacreBLEU and chrF are on detokenised text. {_spread_note(groups)} "
        + ("Groups of neurons by type are counted beside heads. " if len(kinds) > 1 else "")
        + "Heads by type, parameters and training's figures are means; seconds are those of training steps, words the "
        "target side's tokens after segmentation.",
        (*names, *types, "parameters", *(what for _, what, _ in costs), "updates", "seconds", "words/s"),
        tuple(rows),
    )


def significance(tests: PairedTests) -> Table:
    """The paired test of every method and budget against dense."""
    cells: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for each in sorted(tests.comparisons, key=lambda each: -each.record.kept):
        cell = cells.setdefault((each.record.method, each.record.size), [])
        cell.append((each.record.seed, each.score - each.dense_score, each.p_value))
    rows = []
    for (method, kept), found in cells.items():
        found.sort()
        rows.append((method, kept, *("; ".join(texts) for texts in _by_seed(found))))
    order = list(dict.fromkeys(each.record.method for each in tests.comparisons))
    rows.sort(key=lambda row: order.index(row[0]))
    return Table(
        "Against dense",
        "Difference of sacreBLEU to the dense model of the same seed (where there is none, of the lowest), and sacreBLEU's "
        "paired bootstrap test: p is how often a test set drawn by chance would make a difference as large. It knows nothing of "
        "the chance in training, which the spread over seeds shows, and p is not corrected for the number of tests. Values are "
        "in the order of seeds. "
        f"Signature: {tests.signature}",
        ("method", _column([each.record for each in tests.comparisons]), "seeds", "difference", "p"),
        tuple(rows),
    )


def over_seeds(records: Sequence[Record], against: str) -> Table | None:
    """Every method and budget less a method, paired by seed; None where no two runs can be compared.

    Args:
        against: the method; of the dense model its only budget is meant, of others the same as the run's.
    """
    groups = grouped(records)
    rows = []
    for group in groups:
        base = next(
            (each for each in groups if each.method == against and (against == DENSE or each.size == group.size)), None
        )
        if base is None or group.method == against:
            continue
        found = {
            figure: paired(_by_seed_of(group, figure), _by_seed_of(base, figure)) for figure in (NATS, "sacrebleu")
        }
        if any(found.values()):
            seeds = dict.fromkeys(str(each.seeds) for each in found.values() if each)
            rows.append(
                (
                    group.method,
                    group.size,
                    " / ".join(seeds),
                    *(cell for figure in found for cell in _compared(found[figure], figure)),
                )
            )
    if not rows:
        return None
    return Table(
        f"Against {against}, over seeds",
        f"Difference to {against}, the mean over seeds that both have ± its standard error; p is of Student's paired test over these "
        "seeds, two-sided and not corrected for the number of tests. One seed has neither. Of two numbers, the first is of nats.",
        ("method", _column(records), "seeds", "nats", "p (nats)", "sacreBLEU", "p (sacreBLEU)"),
        tuple(rows),
    )


def do_heads_matter(records: Sequence[Record]) -> Table | None:
    """What chose heads beside its own counts with heads drawn within, and beside a rule; None without runs that say `shuffled_of`.

    The first figure that all three have decides: the validation loss, or sacreBLEU.
    """
    groups = {(group.method, group.kept): group for group in grouped([each for each in records if each.is_counted])}
    rows = []
    for (method, kept), shuffled in groups.items():
        learned = groups.get((shuffled.records[0].shuffled_of or "", kept))
        if learned is None:
            continue
        rule = groups.get((STRATIFIED + method[method.rindex("-") :] if "-" in method else STRATIFIED, kept))
        three = [learned, shuffled] + ([rule] if rule else [])
        figure = NATS if all(each.values(NATS) for each in three) else "sacrebleu"
        one = _by_seed_of(learned, figure)
        others = [paired(one, _by_seed_of(each, figure)) if each else None for each in (shuffled, rule)]
        values = [
            _value(each.values(figure), _DIGITS.get(figure, 1)) if each else NONE for each in (learned, shuffled, rule)
        ]
        compared = [cell for each in others for cell in _compared(each, figure)]
        rows.append((learned.method, "nats" if figure == NATS else "sacreBLEU", str(kept), *values, *compared))
    if not rows:
        return None
    return Table(
        "Do heads matter, or only how many where?",
        "Shuffled has as many heads in every sublayer as the choice, drawn within it; stratified has counts by a rule. Differences are of the "
        "choice less the control, paired by seed ± standard error, p as above. Where the choice is no better than shuffled, its "
        "allocation is all that it adds; where it is no better than stratified, the rule does as well.",
        (
            "choice",
            "figure",
            "heads",
            "chosen",
            "shuffled",
            "stratified",
            "less shuffled",
            "p (shuffled)",
            "less stratified",
            "p (stratified)",
        ),
        tuple(rows),
        texts=2,
    )


def _by_seed_of(group: Group, figure: str) -> dict[int, float]:
    values = {record.seed: getattr(record, figure) for record in group.records}
    return {seed: value for seed, value in values.items() if value is not None}


def _compared(found: Difference | None, figure: str) -> tuple[str, str]:
    """Mean ± standard error, and p."""
    if found is None:
        return NONE, NONE
    digits = _DIGITS.get(figure, 1)
    mean = f"{found.mean:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    if found.error is None or found.p_value is None:
        return mean, NONE
    return f"{mean} ± {found.error:.{digits}f}", _p_value(found.p_value)


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def all_runs(records: Sequence[Record]) -> Table:
    """A row a run: its layout and what was run."""
    rows = [
        (record.method, str(record.layout), describe(record.command), record.size, str(record.seed))
        + tuple(f"{getattr(record, score):.2f}" for score in SCORES)
        for group in grouped(records)
        for record in group.records
    ]
    header = ("method", "layout", "command", _column(records), "seed", "BLEU", "sacreBLEU", "chrF")
    return Table("All runs", "", header, tuple(rows), texts=3)


def signature_lines(records: Sequence[Record]) -> list[str]:
    """Each score's signatures: one, unless runs were scored in different ways, which then stands here."""
    return [f"{SCORES[score]}: {_signature(records, score)}" for score in SCORES]


def _by_seed(found: Sequence[tuple[int, float, float]]) -> list[list[str]]:
    return [
        [str(seed) for seed, _, _ in found],
        [f"{difference:+.1f}".replace("-", "\N{MINUS SIGN}") for _, difference, _ in found],
        [_p_value(p) for _, _, p in found],
    ]


def _cell(group: Group | None, figure: str, with_count: bool) -> str:
    if group is None:
        return NONE
    values = group.values(figure)
    return _value(values, _DIGITS.get(figure, 1)) + (f" ({len(values)})" if with_count and values else "")


def _column(records: Sequence[Record]) -> str:
    """What the column of budgets is called."""
    return "heads" if all(record.is_counted for record in records) else "kept"


def _by_type(group: Group, kind: Kind) -> str:
    """Mean units kept of every type of a kind; none where the units of the kind are not counted."""
    found = [record.layout.by_type() for record in group.records]
    if any(stack.name not in types for types in found for stack in kind.stacks):
        return NONE
    means = [mean_and_spread([types[stack.name][0] for types in found])[0] for stack in kind.stacks]
    return " / ".join(f"{mean:.3g}" for mean in means)


def _scaled(values: Sequence[float], scale: float) -> str:
    return f"{mean_and_spread(values)[0] * scale:,.4g}" if values else NONE


def _value(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return NONE
    middle, spread = mean_and_spread(values)
    return f"{middle:.{digits}f}" if spread is None else f"{middle:.{digits}f} ± {spread:.{digits}f}"


def _rounded(values: Sequence[float]) -> str:
    return f"{mean_and_spread(values)[0]:,.0f}" if values else NONE


def _spread_note(groups: Sequence[Group]) -> str:
    several = any(len(group.records) > 1 for group in groups)
    return "Mean ± sample standard deviation over seeds." if several else "One seed each."


def _signature(records: Sequence[Record], score: str) -> str:
    found = dict.fromkeys(record.signatures.get(score, "none given") for record in records)
    return "; ".join(found)
