"""The figures of docs/performance.md and of the lines in docs/benchmarks are those of the times that are stored there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fairseq_dsp.benchmark.measuring import estimate, median, paired_ratio

DOCS = Path(__file__).resolve().parents[2] / "docs"
FILES = {"/".join(path.parts[-2:]): path for path in sorted((DOCS / "benchmarks").glob("*/*.jsonl"))}
RUN = "cpu-amd-epyc-2-cores-2026-11-25"
TABLES = {
    "Generation": ("generation", "generation-2-threads"),
    "Training": ("training", "training-2-threads"),
    "Validation": ("validation",),
    "Learned layouts": ("learned",),
    "CTranslate2": ("ctranslate2",),
    "Drawing the mask": ("mask",),
}
WIDE = " ?"


def rows_of(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if "workload" in row]  # the rewriting of checkpoints compares nothing


def cases_of(path: Path) -> dict[str, list[dict]]:
    """Rows by the title of their case."""
    cases: dict[str, list[dict]] = {}
    for row in rows_of(path):
        sizes = [f"{name} {row[name]}" for name in ("batch", "beam") if row[name] is not None]
        cases.setdefault(", ".join([row["workload"], *sizes]), []).append(row)
    return cases


def comparisons(path: Path) -> list[list[dict]]:
    """Rows that took turns: one file may compare models of the same sizes twice, and a baseline begins the rows of a comparison."""
    found: list[list[dict]] = []
    for rows in cases_of(path).values():
        for row in rows:
            if row is rows[0] or row.get("ratio", "") is None:
                found.append([])
            found[-1].append(row)
    return found


def shown(found) -> str:
    return f"{found.low:.2f}-{found.high:.2f}{WIDE * found.too_wide}"


@pytest.mark.parametrize("name", FILES)
def test_stored_ratios_are_those_of_the_stored_times(name):
    for rows in comparisons(FILES[name]):
        first = {row.get("engine"): row for row in reversed(rows)}
        for row in rows:
            for key, baseline in (("ratio", rows[0]), ("engine_ratio", first[row.get("engine")])):
                if row is baseline:
                    assert row.get(key) is None
                elif key in row:
                    found = paired_ratio(baseline["seconds"], row["seconds"])
                    assert row[key] == pytest.approx({"median": found.median, "low": found.low, "high": found.high})


@pytest.mark.parametrize("section", TABLES)
def test_published_tables_are_those_of_the_stored_times(section):
    """Medians, ratios and intervals of every row, in the order of the file; two threads stand to the right of one."""
    text = re.search(rf"^### {section}$(.*?)^##", (DOCS / "performance.md").read_text(), re.M | re.S).group(1)
    tables = [
        table for table in re.findall(r"^\|.*?(?=\n\n)", text, re.M | re.S) if "95 %" in table or "engine" in table
    ]
    files = [cases_of(DOCS / f"benchmarks/{RUN}/{name}.jsonl") for name in TABLES[section]]
    assert len(tables) == len(files[0])
    for table, title in zip(tables, files[0], strict=True):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        others = files[-1][title] if len(files) > 1 else []
        assert len(lines) == len(files[0][title])
        for number, cells in enumerate(lines):
            expected = figures(files[0][title], number)
            if number < len(others):
                expected += figures(others, number)
            missing = [figure for figure in expected if figure not in cells]
            assert not missing, (title, cells)
            if number and WIDE in expected[2]:
                assert cells[cells.index(expected[2]) + 2 :][:1] == [""], "the share of a row that says next to nothing"


def figures(rows: list[dict], number: int) -> list[str]:
    """What a table says of a row: milliseconds, beside the baseline ratio and interval, beside its engine's first row likewise."""
    row, seconds = rows[number], rows[number]["seconds"]
    milliseconds = 1e3 * median(seconds)
    digits = 2 if row["workload"] == "mask" else 1 if milliseconds < 99.5 else 0
    texts = [f"{milliseconds:,.{digits}f}{WIDE * estimate(seconds).too_wide}"]
    if number:
        found = paired_ratio(rows[0]["seconds"], seconds)
        texts += [f"{found.median:.2f}", shown(found)]
    if len({each.get("engine") for each in rows}) > 1:
        first = next(each for each in rows if each["engine"] == row["engine"])
        found = paired_ratio(first["seconds"], seconds)
        texts.append("1" if first is row else f"{found.median:.2f} {shown(found)}")
    return texts
