"""Prints what was measured: a table a case, and one of its profile. Called by `fairseq-dsp-bench`.

No path, name or number is folded: where a table is wider than the terminal, its models get numbers, which lines below explain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from fairseq_dsp.benchmark.comparison import Row
from fairseq_dsp.benchmark.measuring import Estimate, estimate
from fairseq_dsp.benchmark.settings import Case
from fairseq_dsp.benchmark.workloads import WORKLOADS

_OPERATORS = 10  # of each model in the table of a profile
_WIDE = " ?"


def show(console: Console, case: Case, rows: Sequence[Row]) -> None:
    """Prints the table of a case."""
    names = _print(console, rows, lambda names, whole: _figures(case, rows, names, whole))
    for kernels in dict.fromkeys(row.attention for row in rows if row.attention):
        some = [name for name, row in zip(names, rows, strict=True) if row.attention == kernels]
        _say(console, f"attention by {kernels}: {'; '.join(some)}")
    for name, row in zip(names, rows, strict=True):
        if row.by_costs is not None:
            _say(console, f"by costs, {name}: {_beside(row)}")
    if any(each.too_wide for row in rows for each in (estimate(row.seconds), row.ratio, row.engine_ratio) if each):
        _say(
            console,
            "?: the 95 % interval's ends are more than a factor of 1.5 apart, and the figure says next to nothing: measure "
            "with more `--pairs`, on a quieter machine, or with `--clock cpu`.",
        )


def show_profile(console: Console, rows: Sequence[Row]) -> None:
    """Prints what each model spends its time on: the operators that are among the first of any model."""
    rows = [row for row in rows if row.profile is not None]
    if rows:
        _print(console, rows, lambda names, whole: _profile(rows, names))


def title_of(case: Case) -> str:
    """What a case is called."""
    sizes = [f"{name} {size}" for name, size in (("batch", case.batch), ("beam", case.beam)) if size is not None]
    return ", ".join([case.workload, *sizes])


def _print(console: Console, rows: Sequence[Row], table: Callable[[list[str], bool], Table]) -> list[str]:
    """Prints a table of the rows.

    Args:
        table: makes it of what the rows are called, with or without what is known of the models.

    Returns:
        what the rows are called: their names, or numbers.
    """
    names = [row.model + (f" ({row.phase})" if row.phase else "") for row in rows]
    width = console.width
    unlimited = console.options.update(max_width=100_000)
    whole = table(names, True)
    if console.measure(whole, options=unlimited).maximum <= width:
        console.print(whole)
        return names
    numbers = [str(number) for number in range(1, len(rows) + 1)]
    short = table(numbers, False)
    short.box, short.padding = None, (0, 1, 0, 0)
    console.width = max(width, console.measure(short, options=unlimited).maximum)
    console.print(short)
    console.width = width
    for number, name, row in zip(numbers, names, rows, strict=True):
        _say(console, f"{number}: {name}, {row.heads} of {row.total} heads, {row.parameters:,} parameters")
    return numbers


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _figures(case: Case, rows: Sequence[Row], names: Sequence[str], whole: bool) -> Table:
    engines = len({row.engine for row in rows}) > 1
    table = Table(title=title_of(case), title_justify="left")
    table.add_column("model" if whole else "", no_wrap=True)
    time = f"ms {WORKLOADS[case.workload].what}"
    for column in (
        *(["heads", "parameters"] if whole else []), time, "ratio", "95 %",
        *(["within engine", "95 %"] if engines else []), "tokens/s", "GFLOP", "promised", "share", "peak MB",
    ):  # fmt: skip
        broken = column if whole or column == "95 %" else "\n".join(column.rsplit(" ", 1))
        table.add_column(broken, justify="right", no_wrap=True)
    for name, row in zip(names, rows, strict=True):
        wide = _WIDE if estimate(row.seconds).too_wide else ""
        hidden = row.share is None or row.ratio is None or row.ratio.too_wide
        table.add_row(
            name,
            *([f"{row.heads}/{row.total}", f"{row.parameters:,}"] if whole else []),
            (f"{row.median * 1e3:.3g}" if row.median < 1 else f"{row.median * 1e3:.0f}") + wide,
            *_ratio(row.ratio),
            *(_ratio(row.engine_ratio) if engines else ()),
            "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}{wide}",
            f"{row.flops / 1e9:.3g}" if row.flops else "",
            "" if row.promised is None else f"{row.promised:.2f}",
            "" if hidden else f"{row.share:.0%}",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:,.0f}",
        )
    return table


def _beside(row: Row) -> str:
    """What was promised and what was measured, side by side."""
    assert row.by_costs is not None
    measured = None if row.engine_ratio is None else row.engine_ratio.median
    text = f"promised {row.by_costs * 1e3:.4g} ms, measured {row.median * 1e3:.4g} ms"
    if measured is None or row.by_costs_ratio is None:
        return text
    return f"{text}; promised ratio {row.by_costs_ratio:.2f}, measured {measured:.2f} ({measured / row.by_costs_ratio - 1:+.1%})"


def _profile(rows: Sequence[Row], names: Sequence[str]) -> Table:
    profiles = [row.profile for row in rows if row.profile is not None]
    table = Table(title="ms a call under the profiler, and share", title_justify="left")
    table.add_column("operator", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for operator in dict.fromkeys(name for profile in profiles for name in list(profile)[:_OPERATORS]):
        cells = [
            f"{profile.get(operator, 0.0) * 1e3:.3g} ({profile.get(operator, 0.0) / sum(profile.values()):.0%})"
            for profile in profiles
        ]
        table.add_row(operator.removeprefix("aten::"), *cells)
    return table


def _ratio(ratio: Estimate | None) -> tuple[str, str]:
    if ratio is None:
        return "1", ""
    interval = "" if ratio.low is None else f"{ratio.low:.2f}-{ratio.high:.2f}{_WIDE if ratio.too_wide else ''}"
    return f"{ratio.median:.2f}", interval
