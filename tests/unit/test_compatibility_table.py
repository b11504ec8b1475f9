"""The tables of docs/compatibility.md name options that the tests beside them are about, and tests that are run every time."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
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


def is_slow(test: str, text: str, words: list[str]) -> bool:
    """Whether a test is run with --slow only, or is so with one of the words as a parameter."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == test]
    marks = [node.value for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    if any("slow" in ast.unparse(mark) for mark in marks):
        return True
    often, seldom = set(), set()
    for decorator in (mark for function in functions for mark in function.decorator_list):
        if "parametrize" not in ast.unparse(decorator):
            if "slow" in ast.unparse(decorator):
                return True
            continue
        slow_parts = {
            part
            for call in ast.walk(decorator)
            if isinstance(call, ast.Call) and any(word.arg == "marks" and "slow" in ast.unparse(word) for word in call.keywords)
            for part in ast.walk(call)
        }  # fmt: skip
        for part in ast.walk(decorator):
            if isinstance(part, ast.Constant):
                (seldom if part in slow_parts else often).add(part.value)
    return any(word in seldom - often for word in words)


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
        if all(is_slow(test, text, words_of(option)) for test, texts in named_tests(named).items() for text in texts)
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


PARAMETRIZED = """
@pytest.mark.parametrize("kind", ["fast", *(pytest.param("slack", marks=pytest.mark.slow) for _ in range(2))])
def test_it(): ...
"""


@pytest.mark.parametrize(
    ("text", "words", "slow"),
    [
        ("def test_it(): ...", [], False),
        ("@pytest.mark.slow\ndef test_it(): ...", [], True),
        ("pytestmark = [pytest.mark.slow]\ndef test_it(): ...", [], True),
        (PARAMETRIZED, [], False),
        (PARAMETRIZED, ["--kind", "fast"], False),
        (PARAMETRIZED, ["--kind", "slack"], True),
    ],
)
def test_a_slow_test_is_known_by_its_marks(text: str, words: list[str], slow: bool):
    assert is_slow("test_it", text, words) is slow


@pytest.mark.parametrize(
    ("option", "missing"),
    [
        ("`--beam`, `--score-reference`", []),
        ("`--sampling-topk`", ["--sampling-topk"]),
        ("`--clip-norm`", []),
        ("`--clip`, `--score`", ["--clip", "--score"]),
        ("`--constraints ordered`", ["--constraints", "ordered"]),
        ("scale-heads and base layers", ["scale-heads and base layers"]),
        ("`fairseq-validate`", ["fairseq-validate"]),
    ],
)
def test_an_option_is_known_by_its_name_or_its_field(option: str, missing: list[str]):
    text = '["--beam", 5, "--score-reference", "--sampling"], {"clip_norm": 1}'
    assert missing_words(option, text) == missing
