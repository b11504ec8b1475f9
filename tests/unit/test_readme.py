"""The README: its lines are short enough to read, its first table has the figures of the results, its lists have all there is. So has
docs/log.md the columns of a log."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from statistics import mean

import pytest

from fairseq_dsp.analysis.training_log import FIGURES
from fairseq_dsp.benchmark.measuring import paired_ratio
from fairseq_dsp.config import UNDECLARED, PruningConfig
from fairseq_dsp.methods import METHODS
from fairseq_dsp.scoring import SCORERS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUDGETS = (18, 12, 6)


def lines_of(path: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]


def speeds_of(name: str) -> dict[str, float]:
    """Times as fast as the first model, by model: generation at batch 32, in the order of the file."""
    rows = [
        row for row in lines_of(f"docs/benchmarks/cpu-amd-epyc-2-cores-2026-11-25/{name}.jsonl") if "workload" in row
    ]
    rows = [row for row in rows if row["workload"] == "generate" and row["batch"] == 32]
    return {row["model"]: paired_ratio(rows[0]["seconds"], row["seconds"]).median for row in rows[1:]}


def test_no_line_is_longer_than_130_characters():
    assert [line for line in README.splitlines() if len(line) > 130] == []


def test_the_first_table_is_that_of_the_results():
    table = re.search(r"^\| \| dense \|.*?\n\n", README, re.M | re.S)
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")[1:]] for line in table.group().strip().splitlines()[2:]
    ]
    runs = lines_of("examples/translation/results/cpu-amd-epyc-2-cores/results.jsonl")

    def means(key: str, method: str, shown: str) -> list[str]:
        found = {}
        for run in runs:
            if run["method"] == method:
                found.setdefault(run["kept"], []).append(run[key])
        assert all(len(values) == 2 for values in found.values())
        return [format(mean(found[kept]), shown) for kept in BUDGETS]

    dense = format(mean(run["bleu_tok"] for run in runs if run["method"] == "dense"), ".1f")
    speeds = speeds_of("learned")
    assert lines == [
        [dense, *means("bleu_tok", "dsp", ".1f")],
        ["", *means("bleu_tok", "fixed", ".1f")],
        ["", *means("bleu_tok", "random", ".1f")],
        [f"{runs[0]['parameters']:,}", *means("parameters", "dsp", ",.0f")],
        ["1", *(f"{speeds[f'runs/dsp-k{kept}-s1/pruned.pt']:.2f}" for kept in BUDGETS)],
    ]


def test_the_speeds_at_full_size_are_those_of_the_file():
    speeds = speeds_of("generation")
    shown = [f"{speeds[f'dsp_transformer_iwslt_de_en:spread={kept}']:.2f}" for kept in (36, 18, 6)]
    assert "generates {}, {} and {} times as fast".format(*shown) in " ".join(README.split())


@pytest.mark.parametrize("name", [*METHODS, *SCORERS])
def test_every_method_and_scorer_has_an_entry(name):
    assert re.search(rf"^- `{re.escape(name)}`", README, re.MULTILINE)


@pytest.mark.parametrize("option", [field.name for field in fields(PruningConfig) if field.name not in UNDECLARED])
def test_every_option_of_a_training_has_an_entry(option):
    assert re.search(rf"^(- .*)?`--{option.replace('_', '-')}\b", README, re.MULTILINE)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_in_the_help_of_its_option(name):
    (option,) = [field for field in fields(PruningConfig) if field.name == "head_selection"]
    assert re.search(rf"(^|[ ,]){re.escape(name)} \(", option.metadata["help"])


@pytest.mark.parametrize("column", [*FIGURES, "heads_on", "head_penalty"])
def test_every_column_of_the_log_is_explained(column):
    rows = [line for line in (ROOT / "docs/log.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert sum(f"`{column}`" in row.split("|")[1] for row in rows) == 1
