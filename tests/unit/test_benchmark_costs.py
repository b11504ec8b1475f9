"""fairseq-dsp-bench --costs and --promised: what tables are made of times, what is refused, and what stands beside what. No time is asserted."""

from __future__ import annotations

import io
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import made_up_costs
from models import many_examples
from rich.console import Console
from test_benchmark_printed import row

from fairseq_dsp.benchmark import costs as module
from fairseq_dsp.benchmark.candidates import Candidate, facts_of
from fairseq_dsp.benchmark.promises import conditions_of, seconds_of
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.tables import show
from fairseq_dsp.cli.bench import main
from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.cost_file import read_costs
from fairseq_dsp.units.layout import Layout

DENSE = "transformer_tiny:words=30/40"
OURS = "dsp_transformer_tiny:words=30/40"
SIZES = {"enc": (3, 3), "dec": (2, 2), "cross": (2, 2), "ffn-enc": (64, 64), "ffn-dec": (48, 48)}
QUICK = "--batch-size 2 --beam 2 --length 4 --pairs 1 --warmup 0 --cpu".split()


@st.composite
def truths(draw: st.DrawFn) -> module.Fit:
    """What sublayers take at the numbers of their tables, rising, and the rest."""
    tables = {}
    for stack, sizes in SIZES.items():
        kept = module.points(stack, sizes[0])
        steps = draw(st.lists(st.floats(0.001, 1), min_size=len(kept) - 1, max_size=len(kept) - 1))
        tables[stack] = module.Table(tuple(kept), tuple(itertools.accumulate([0.0, *steps])))
    return module.Fit(tables, draw(st.floats(0.1, 2)), 0.0)


def times_of(truth: module.Fit, noise: float = 0.0) -> list[tuple[module.Counts, float]]:
    """The layouts that are measured, and what they take if sublayers add up."""
    draw = random.Random(3)
    return [(counts, truth.of(counts) * (1 + draw.uniform(-noise, noise))) for _, counts in module.layouts(SIZES)]


@given(truths())
@many_examples
def test_tables_are_the_costs_that_the_times_were_made_of(truth):
    found = module.fitted(times_of(truth), SIZES)
    assert found.rest == pytest.approx(truth.rest)
    assert found.spread == pytest.approx(0, abs=1e-6)
    for stack, table in found.tables.items():
        assert table.kept == truth.tables[stack].kept
        assert table.seconds == pytest.approx(truth.tables[stack].seconds, abs=1e-6)


@given(truths(), st.floats(0.001, 0.3))
@many_examples
def test_noise_makes_no_table_that_falls_and_is_what_the_tables_are_off_by(truth, noise):
    measured = times_of(truth, noise)
    found = module.fitted(measured, SIZES)
    assert all(table.seconds[0] == 0 for table in found.tables.values())
    assert all(list(table.seconds) == sorted(table.seconds) for table in found.tables.values())
    errors = [found.of(counts) / time - 1 for counts, time in measured]
    assert found.spread == pytest.approx((sum(error**2 for error in errors) / len(errors)) ** 0.5)
    assert found.spread <= noise / (1 - noise)  # the truth itself is no further off


def test_times_that_do_not_fall_with_units_are_refused():
    with pytest.raises(Refusal, match="must fall as units go, but layouts of any size take 1 to 1 s a batch"):
        module.fitted([(counts, 1.0) for _, counts in module.layouts(SIZES)], SIZES)


@given(st.lists(st.integers(1, 300), min_size=2, max_size=2), st.integers(1, 4))
@many_examples
def test_what_is_measured_tells_every_step_of_every_table_from_the_others(sizes, layers):
    """All units and none come first, and each unknown is determined: the matrix of steps has full rank."""
    heads, neurons = sizes
    model = {stack: ((neurons if stack.startswith("ffn") else heads),) * layers for stack in SIZES}
    found = dict(module.layouts(model))
    assert [*found][:2] == ["all units", "no units"]
    assert found["all units"] == model
    assert not any(map(sum, found["no units"].values()))
    kept = {stack: module.points(stack, max(numbers)) for stack, numbers in model.items()}
    assert all(
        each[0] == 0 and each[-1] == max(model[stack]) and each == sorted(set(each)) for stack, each in kept.items()
    )
    steps = np.array([module._steps(counts, kept) for counts in found.values()])
    assert np.linalg.matrix_rank(steps) == steps.shape[1]
    for counts in found.values():
        layout = module.layout_of(model, counts)
        for site, span in layout.grid.spans():
            assert sum(layout.kept[span]) * model[site.stack][0] == counts[site.stack][site.layer] * (
                span.stop - span.start
            )


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    """A costs file of the tiny models, under the conditions of `QUICK`."""
    settings = Settings(length=4, output_length=4)
    conditions = conditions_of("fairseq", settings, Case("generate", 2, 2))
    file = made_up_costs(facts_of(Candidate(DENSE, True).build()).sizes, conditions)
    (tmp_path / "costs.json").write_text(file.text())
    return tmp_path / "costs.json"


@pytest.mark.parametrize("engine", [[], ["--ctranslate2", "int8"]])
def test_the_command_measures_what_prune_reads(engine, tmp_path, capsys, monkeypatch):
    if engine:
        pytest.importorskip("ctranslate2")
    monkeypatch.setattr(module, "_LAYOUTS_AN_UNKNOWN", 1)
    monkeypatch.setattr(module, "fitted", lambda measured, sizes: stretched(sizes))
    path, lines = tmp_path / "costs.json", tmp_path / "lines.jsonl"
    main(["--costs", str(path), "--random", DENSE, *QUICK, *engine, "--json", str(lines)])
    file = read_costs(str(path))
    facts = facts_of(Candidate(DENSE, True).build())
    assert file.sizes == facts.sizes
    assert file.conditions.runtime == ("CTranslate2 int8" if engine else "fairseq")
    assert (file.conditions.batch, file.conditions.beam, file.conditions.source, file.conditions.target) == (2, 2, 5, 5)
    assert set(file.tables) == set(SIZES)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert ("as it is" in {row["model"] for row in rows}) == (not engine)
    assert {Layout.parse(row["layout"]).count for row in rows if row["model"] == "no units"} == {0}
    assert "measured in" in capsys.readouterr().out
    with pytest.raises(Refusal, match="--force"):
        main(["--costs", str(path), "--random", DENSE, *QUICK])


def stretched(sizes: Any) -> module.Fit:
    """Tables whatever the clock said."""
    kept = {stack: module.points(stack, max(sizes[stack])) for stack in SIZES}
    return module.Fit(
        {stack: module.Table(tuple(each), tuple(map(float, each))) for stack, each in kept.items()}, 1.0, 0.0
    )


def test_promised_and_measured_stand_side_by_side(costs, tmp_path, capsys):
    small = f"{OURS},spread=6"
    lines = tmp_path / "lines.jsonl"
    main(["--promised", str(costs), "--random", DENSE, small, *QUICK, "--no-memory", "--json", str(lines)])
    file, printed = read_costs(str(costs)), capsys.readouterr().out
    dense, pruned = (json.loads(line) for line in lines.read_text().splitlines())
    assert dense["by_costs"] == pytest.approx(2 * file.dense)
    table = file.costs(Layout.parse(pruned["layout"]).grid)
    seconds = (table.rest + table.of(Layout.parse(pruned["layout"]))) * table.scale
    assert pruned["by_costs"] == pytest.approx(2 * seconds)
    assert pruned["by_costs_ratio"] == pytest.approx(file.dense / seconds)
    assert f"promised {2e3 * file.dense:.4g} ms, measured" in printed
    assert f"promised ratio {file.dense / seconds:.2f}, measured" in printed


def test_what_is_promised_of_a_layout_is_the_sum_of_its_tables(costs):
    file = read_costs(str(costs))
    sizes = facts_of(Candidate(DENSE, True).build()).sizes
    wanted = [counts for _, counts in module.layouts(sizes)]
    wanted.append({stack: (16 * (stack == "ffn-dec"),) * len(sizes[stack]) for stack in SIZES})
    for counts in wanted[:4] + wanted[-1:]:
        facts = facts_of(Candidate(f"{OURS},layout={module.layout_of(sizes, counts)}", True).build())
        added = sum(file.tables[stack].at(size) for stack, layers in counts.items() for size in layers)
        assert seconds_of(file, facts) == pytest.approx(file.rest + added, rel=1e-3)


@pytest.mark.parametrize("runtime", ["fairseq", "CTranslate2 int8"])
def test_what_is_promised_of_the_whole_model_is_what_shares_are_of(runtime, costs):
    """Tables that are off at this end change no share; in fairseq the whole model in our attention is another than the one that was given."""
    file = read_costs(str(costs))
    file = replace(file, dense=1.5 * file.dense, conditions=replace(file.conditions, runtime=runtime))
    stock, ours = (facts_of(Candidate(text, True).build()) for text in (DENSE, OURS))
    assert seconds_of(file, stock) == file.dense
    added = sum(file.tables[stack].at(size) for stack in file.tables for size in ours.sizes[stack])
    assert seconds_of(file, ours) == pytest.approx(file.rest + added if runtime == "fairseq" else file.dense, rel=1e-3)


def test_a_row_without_a_promise_is_as_it_was():
    text = io.StringIO()
    show(Console(width=1000, file=text), Case("generate", 32, 5), [row("a"), row("b", baseline=[1.0] * 7)])
    assert "promised ratio" not in text.getvalue()
    promised = replace(row("b", baseline=[1.0] * 7), by_costs=0.9, by_costs_ratio=1.1)
    show(Console(width=1000, file=text), Case("generate", 32, 5), [row("a"), promised])
    assert "by costs, b: promised 900 ms, measured 1000 ms; promised ratio 1.10, measured 1.00 (-9.1%)" in text.getvalue()  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["--random", DENSE, OURS], ["`--costs` must be measured of one model, but 2 are given."]),
        (["--random", f"{OURS},spread=6"], ["`--costs` must be measured of a dense model", "keeps 6 of 12 heads"]),
        (["--random", f"{OURS},spread=6,gated"], ["chooses among its units"]),
        (["--random", DENSE, "--workloads", "encoder", "--beam", "1,5"], ["but `--workloads` is encoder.", "`--beam` must be one number"]),
        (["--random", DENSE, "--profile", "--promised", "none.json"], ["must not be given together", "`--profile`", "cannot be read"]),
    ],
)  # fmt: skip
def test_costs_that_cannot_be_measured_are_refused(arguments, sentences, tmp_path):
    with pytest.raises(Refusal) as refused:
        main(["--costs", str(tmp_path / "costs.json"), *arguments, "--cpu"])
    assert all(each in str(refused.value) for each in sentences)
    assert not (tmp_path / "costs.json").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "sentences"),
    [
        ({"machine": "another"}, [], ["its `machine` is another and here it is "]),
        ({"runtime": "CTranslate2 int8", "threads": 3}, [], ["its `threads` is 3", "its `runtime` is CTranslate2 int8"]),
        ({}, ["--batch-size", "3", "--length", "9"], ["its `batch` is 2", "its `source` is 5", "its `target` is 5"]),
        ({}, ["--workloads", "encoder"], ["`--promised` is of generation"]),
        ({}, ["--random", "transformer_tiny:words=31/40"], ["its `words` is 30, 40 and transformer_tiny:words=31/40 has 31, 40", "`parameters`"]),
    ],
)  # fmt: skip
def test_a_promise_of_other_conditions_is_refused(change, arguments, sentences, costs):
    content = json.loads(costs.read_text()) | change
    costs.write_text(json.dumps(content))
    with pytest.raises(Refusal) as refused:
        main(["--promised", str(costs), "--random", DENSE, *QUICK, "--no-memory", *arguments])
    assert len(refused.value.reasons) == len(sentences)
    assert all(each in reason for each, reason in zip(sentences, refused.value.reasons, strict=True))


def test_neurons_of_a_model_with_random_weights_may_be_units(tmp_path):
    model = Candidate(f"{OURS},ffn=16,budget=parameters=0.8,gated", True).build()
    assert model.layout.grid.total == 12 + 16
    small = Candidate(OURS, True, cut=str(Layout.full(model.layout.grid).narrow([1.0] * 14 + [0.0] * 14))).build()
    assert facts_of(small).parameters < facts_of(Candidate(OURS, True).build()).parameters
    assert facts_of(small).sizes == facts_of(Candidate(DENSE, True).build()).sizes
    for text in (f"{OURS},ffn=16,spread=3,gated", f"{OURS},budget=0.5", f"{OURS},ffn=x,budget=0.5,gated"):
        with pytest.raises(Refusal, match="`--random"):
            Candidate(text, True).build()
