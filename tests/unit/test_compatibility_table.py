"""The tables of docs/compatibility.md name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs/compatibility.md"


def rows() -> list[list[str]]:
    """Cells of every row of the tables in the section "Options of fairseq"."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Options of fairseq\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [cells for cells in table if cells[0] != "option" and not cells[0].startswith("---")]


def test_every_row_has_an_option_a_verdict_and_a_test():
    found = rows()
    assert len(found) > 30
    for cells in found:
        assert len(cells) == 3, cells
        assert re.match(r"works|refused|needs a GPU", cells[1]), cells
        assert "::" in cells[2], cells


def test_every_test_that_a_row_names_exists():
    missing = []
    for *_, named in rows():
        for file, test in re.findall(r"(\w+\.py)::(\w+)", named):
            texts = [path.read_text(encoding="utf-8") for path in TESTS.rglob(file)]
            if not any(re.search(rf"^\s*def {test}\(", text, re.MULTILINE) for text in texts):
                missing.append(f"{file}::{test}")
    assert missing == []
