"""A report of finished runs: Markdown, figures, and one HTML page with everything in it. Called by `fairseq-dsp-report`."""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_dsp.analysis import plots, tables
from fairseq_dsp.analysis.groups import grouped
from fairseq_dsp.analysis.records import COSTS, DENSE, NATS, Record, describe, name_of, resolve
from fairseq_dsp.analysis.significance import PairedTests
from fairseq_dsp.analysis.training_log import TrainingLog, read_log
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.output import OutputFolder
from fairseq_dsp.units.groups import has_neurons
from fairseq_dsp.units.layout import HEAD_STACKS, STACK_NAMES

MARKDOWN, PAGE, FIGURES = "report.md", "report.html", "figures"
_PIXELS_PER_INCH = 165  # of figures on the page; their text is then about as large as the page's
_COLUMNS = 4  # runs side by side in a figure of trainings


@dataclass(frozen=True)
class FigureFile:
    """A figure that was drawn.

    Attributes:
        name: of its files, without suffix.
        caption: what it shows.
        image: its PNG in base64.
        width: of its PNG on the page, in pixels.
    """

    name: str
    caption: str
    image: str
    width: int


@dataclass(frozen=True)
class Section:
    """A heading with figures and tables under it."""

    title: str
    figures: list[FigureFile] = field(default_factory=list)
    tables: list[tables.Table] = field(default_factory=list)


def refuse_mixtures(records: Sequence[Record], path: str) -> None:
    """Refuses runs that do not belong into one table.

    Raises:
        Refusal: of different models, on different data, or dense ones that were trained differently long.
    """
    reasons = []
    dense = [record for record in records if record.is_dense]
    trained = [record for record in dense if record.updates is not None]
    for what, some, value in (
        ("of one model, with the same heads", records, lambda record: record.heads.grid),
        ("on the same data", records, lambda record: describe(record.data)),
        ("of one model, with as many parameters where it is dense", dense, lambda record: record.parameters),
        ("trained alike, for as many updates where they are dense", trained, lambda record: record.updates),
    ):
        other = next((record for record in some if value(record) != value(some[0])), None)
        if other is not None:
            lines = f"lines {some[0].line} and {other.line}"
            reasons.append(f"the runs of a report must be {what}, but {path} has others in {lines}: report them apart.")
    if reasons:
        raise Refusal(*reasons)


def read_logs(records: Sequence[Record], results: str) -> tuple[dict[str, TrainingLog], list[str]]:
    """The training logs worth a figure: of each method that learns heads, the run of the lowest seed nearest to H/4 heads, or above.

    Returns:
        title -> log, and a sentence on the methods of which there should be a log and none can be read.
    """
    chosen: dict[str, TrainingLog] = {}
    missing: dict[str, list[str]] = {}
    shown: set[str | None] = set()
    total = max(record.total for record in records)
    for method in dict.fromkeys(group.method for group in grouped(records)):
        candidates = [record for record in records if record.method == method and record.log is not None]
        if shown & {record.log for record in candidates}:
            continue  # hard-concrete's own number and its budgets may be of the same trainings
        shared = Counter(record.log for record in candidates)
        for record in sorted(candidates, key=lambda record: (abs(record.kept - total / 4), -record.kept, record.seed)):
            try:
                log = read_log(Path(resolve(str(record.log), results)).read_text(encoding="utf-8", errors="replace"))
            except OSError as error:
                unread = str(error.strerror)
                continue
            shown.add(record.log)
            if log.figures:
                # one training that was cut to several budgets had none of them itself
                chosen[method if shared[record.log] > 1 else f"{method}, {_size(record)}"] = log
            break
        else:
            if candidates:
                missing.setdefault(unread, []).append(method)
    return chosen, [f"no log of {', '.join(methods)} can be read: {reason}." for reason, methods in missing.items()]


def write_report(
    records: Sequence[Record],
    output: OutputFolder,
    tests: PairedTests | None = None,
    logs: dict[str, TrainingLog] | None = None,
    warnings: Sequence[str] = (),
    against: str = DENSE,
) -> None:
    """Writes the report's folder, whole or not at all.

    Args:
        records: runs of one model on the same data.
        output: the folder.
        tests: comparisons with dense.
        logs: title -> training log.
        warnings: sentences that readers should see.
        against: the method that all others are compared with over seeds.

    Raises:
        Refusal: the folder cannot be written.
    """
    with output.written("the report") as folder:
        sections = _sections(records, folder, tests, logs or {}, against)
        first = records[0]
        title = f"Attention heads pruned: {name_of(first.data)}"
        methods = {record.method for record in records if not record.is_dense}
        budgets = {record.size for record in records if not record.is_dense}
        summary = (
            f"{len(records)} runs of a model with {first.heads.grid.total} attention heads: {_count(len(methods), 'method')} at "
            f"{_count(len(budgets), 'budget')}, {_count(len({record.seed for record in records}), 'seed')}."
        )
        facts = [("Data", describe(first.data))]
        for name, attribute in (("Hardware", "hardware"), ("Versions", "versions")):
            facts += [(name, text) for text in dict.fromkeys(describe(getattr(each, attribute)) for each in records)]
        facts += [("Signature", line) for line in tables.signature_lines(records)]
        Path(folder, MARKDOWN).write_text(_markdown(title, summary, warnings, facts, sections), encoding="utf-8")
        page = _template().render(
            title=title,
            summary=summary,
            warnings=warnings,
            facts=facts,
            sections=sections,
            runs=tables.all_runs(records),
        )
        Path(folder, PAGE).write_text(page, encoding="utf-8")


def is_report(folder: str) -> bool:
    """Whether a folder holds what `write_report` writes and nothing else."""
    return set(os.listdir(folder)) == {MARKDOWN, PAGE, FIGURES}


def _sections(
    records: Sequence[Record], folder: str, tests: PairedTests | None, logs: dict[str, TrainingLog], against: str
) -> list[Section]:
    os.mkdir(os.path.join(folder, FIGURES))
    note = name_of(records[0].data)  # figures are copied out of reports
    spread = "bars reach from the lowest seed to the highest"
    validated = [NATS] if any(record.valid_nats is not None for record in records) else []
    scores, counted = Section("Translation quality"), [record for record in records if record.is_counted]
    if counted:
        scores.tables.extend(tables.by_budget(records, each) for each in (*validated, "bleu_tok"))
        paths = _paths(folder, "bleu-against-heads")
        plots.score_against_heads(counted, *paths, note=note)
        scores.figures.append(
            _figure(paths, f"BLEU against heads kept. Lines are means over seeds, {spread}; the level line is dense.")
        )
    paths = _paths(folder, "bleu-against-costs")
    plots.score_against_costs(records, *paths, note=note)
    scores.figures.append(_figure(paths, _caption_of_costs(records, spread)))
    if tests is not None:
        scores.tables.append(tables.significance(tests))
    compared = (tables.over_seeds(records, against), tables.do_heads_matter(records))
    scores.tables.extend(table for table in compared if table is not None)
    sections = [scores]
    pruned = [group for group in grouped(records) if not group.records[0].has_all_heads]
    if any(group.kept for group in pruned):
        kept = Section("Which heads are kept")
        if any(group.kept and group.records[0].is_counted for group in pruned):
            paths = _paths(folder, "attention-types")
            plots.attention_type_shares(records, *paths, note=note)
            caption = f"Share of each attention type among the heads kept: means over seeds, {spread}; dotted, among all heads."
            kept.figures.append(_figure(paths, caption))
        names: set[str] = set()
        for method in dict.fromkeys(group.method for group in pruned):
            budgets = [group for group in pruned if group.method == method]
            paths = _paths(folder, _file_name(f"kept-heads-{method}", names))
            layouts = {_size(group.records[0]).replace("s=", "s\n"): group.records[0].layout for group in budgets}
            plots.kept_heads_by_budget(layouts, *paths, note=note)
            seeds = sorted({group.records[0].seed for group in budgets})
            caption = (
                f"Heads kept by {method}, {_list('seed', seeds)}: a row a layer, a column a head, their number below."
            )
            if any(has_neurons(layout.grid) for layout in layouts.values()):
                caption += (
                    " Bars are the share of neurons that a feed-forward network keeps, with the number of groups below."
                )
            kept.figures.append(_figure(paths, caption))
        sections.append(kept)
    titles = list(logs)
    for start in range(0, len(titles), _COLUMNS):
        part = {title: logs[title] for title in titles[start : start + _COLUMNS]}
        paths = _paths(folder, f"training-{start // _COLUMNS + 1}")
        plots.training_courses(part, *paths, note=note)
        figure = _figure(paths, f"While training: {'; '.join(part)}. Heads by type are {_types()}.")
        if start == 0:
            sections.append(Section("Training"))
        sections[-1].figures.append(figure)
    figures = tables.all_figures(records)
    return [*sections, Section(figures.title, tables=[figures])]


def _markdown(
    title: str, summary: str, warnings: Sequence[str], facts: list[tuple[str, str]], sections: Sequence[Section]
) -> str:
    parts = [f"# {title}", summary, *(f"> {warning}" for warning in warnings)]
    parts.append("\n".join(f"- {name}: {f'`{text}`' if name == 'Signature' else text}" for name, text in facts))
    for section in sections:
        parts.append(f"## {section.title}")
        for figure in section.figures:
            parts.append(f"![{figure.caption}]({FIGURES}/{figure.name}.png)\n\n*{figure.caption}*")
        for table in section.tables:
            heading = f"### {table.title}" if table.title != section.title else ""
            parts += [heading, table.note, table.markdown()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _template():  # type: ignore[no-untyped-def]
    """The page's template, which escapes all that it is given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fairseq_dsp.analysis", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.jinja")


def _paths(folder: str, name: str) -> tuple[str, str]:
    return tuple(os.path.join(folder, FIGURES, f"{name}.{suffix}") for suffix in ("png", "pdf"))  # type: ignore[return-value]


def _figure(paths: tuple[str, str], caption: str) -> FigureFile:
    data = Path(paths[0]).read_bytes()
    pixels = int.from_bytes(data[16:20], "big")  # the width in a PNG's header
    width = pixels * _PIXELS_PER_INCH // plots.DOTS_PER_INCH
    return FigureFile(Path(paths[0]).stem, caption, base64.b64encode(data).decode("ascii"), width)


def _file_name(text: str, taken: set[str]) -> str:
    """A name of plain characters that no other text has."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    taken.add(name)
    return name


def _size(record: Record) -> str:
    """What a run was cut to, as a title."""
    return f"K = {record.kept}" if record.is_counted else record.size


def _caption_of_costs(records: Sequence[Record], spread: str) -> str:
    known = {name for name in COSTS if any(getattr(record, name) is not None for record in records)}
    speed = ", and the seconds a sentence in which it translated the test set" if "latency" in known else ""
    operations = ", multiply-adds a sentence" if "macs" in known else ""
    return (
        f"BLEU against what the deployed model costs: parameters{operations}{speed}. Lines are means over seeds, {spread}; the "
        "level line is dense, the dotted one is what dense costs."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _list(what: str, numbers: Sequence[int]) -> str:
    return f"{what}{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def _types() -> str:
    return ", ".join(f"{STACK_NAMES[stack]} attention" for stack in HEAD_STACKS)
