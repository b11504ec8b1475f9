"""The tables of docs/compatibility.md name options that the tests beside them are about, and tests that are run every time."""

from __future__ import annotations

import re
from pathlib import Path

from fairseq.dataclass.constants import DDP_BACKEND_CHOICES

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs/compatibility.md"

# Rows about no option, and what stands for one: an exception is written here, or the row names an option in backticks.
WITHOUT_OPTION = {
    "all heads kept": "budget(12",
    "resuming, in mid-epoch too": "--restore-file",
    "resuming in two processes": "--distributed-world-size",
    "data in shards (`bin1:bin2`)": "shards",
    "TorchScript of the generator, saved and loaded": "torch.jit.script",
}
# Commands go by these names in tests, and two checkpoints are any two.
SPELT = {
    "fairseq-interactive": "INTERACTIVE",
    "fairseq-validate": "VALIDATE",
    "fairseq-score": "fairseq_cli.score",
    "A": "",
    "B": "",
}


def rows() -> list[list[str]]:
    """Cells of every row of the tables in the section "Options of fairseq"."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Options of fairseq\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [cells for cells in table if cells[0] != "option" and not cells[0].startswith("---")]


def named_tests(cell: str) -> dict[str, list[str]]:
    """Names of tests that a row names, each with the texts of the files of the name before it."""
    return {
        test: [path.read_text(encoding="utf-8") for path in TESTS.rglob(file)]
        for file, test in re.findall(r"(\w+\.py)::(\w+)", cell)
    }


def words_of(option: str) -> list[str]:
    """Options, values and commands that a row is about: what stands in backticks, word by word."""
    return [word for code in re.findall(r"`([^`]+)`", option) for word in re.split(r"[\s,:]+", code)]


def missing_words(option: str, text: str) -> list[str]:
    """What a row is about and a text is not; the row itself where it names nothing."""
    if option in WITHOUT_OPTION:
        return [] if WITHOUT_OPTION[option] in text else [option]
    return [word for word in words_of(option) if not stands_in(word, text)] if words_of(option) else [option]


def stands_in(word: str, text: str) -> bool:
    """Whether a text has a word whole: an option as on the command line, or as a field of fairseq's configuration."""
    spelt = [SPELT.get(word, word)]
    if word.startswith("--"):
        spelt.append(word.removeprefix("--").replace("-", "_"))
    return any(re.search(rf"(?<![\w-]){re.escape(each)}(?![\w-])", text) for each in spelt)


def is_slow(test: str, text: str) -> bool:
    """Whether a test, or all of its file, is run with --slow only; one that is so with some parameters is not."""
    decorators = re.split(rf"^\s*def {test}\(", text, flags=re.MULTILINE)[0].rpartition("\n\n")[2]
    return (
        re.search(r"^\s*@pytest\.mark\.slow$", decorators, re.MULTILINE) is not None
        or "pytestmark = pytest.mark.slow" in text
    )


def test_every_row_has_an_option_a_verdict_and_a_test():
    found = rows()
    assert len(found) > 30
    for cells in found:
        assert len(cells) == 3, cells
        assert re.match(r"works|refused|needs a GPU|as fairseq", cells[1]), cells
        assert named_tests(cells[2]), cells


def test_every_test_that_a_row_names_exists():
    missing = [
        test
        for *_, named in rows()
        for test, texts in named_tests(named).items()
        if not any(re.search(rf"^\s*def {test}\(", text, re.MULTILINE) for text in texts)
    ]
    assert missing == []


def test_every_row_names_a_test_that_is_run_every_time():
    slow = [
        option
        for option, _, named in rows()
        if all(is_slow(test, text) for test, texts in named_tests(named).items() for text in texts)
    ]
    assert slow == []


def test_what_a_row_is_about_stands_in_a_file_that_it_names():
    missing = {
        option: words
        for option, _, named in rows()
        if (words := missing_words(option, "".join(text for texts in named_tests(named).values() for text in texts)))
    }
    assert missing == {}


def test_every_exception_is_a_row():
    assert WITHOUT_OPTION.keys() <= {option for option, *_ in rows()}


def test_every_way_of_data_parallelism_that_fairseq_has_is_in_the_table():
    named = [word for option, *_ in rows() if "--ddp-backend" in option for word in words_of(option)]
    assert {str(choice.value) for choice in DDP_BACKEND_CHOICES} <= set(named)
