"""fairseq-dsp-bench --costs and --promised: what tables are made of times, what is refused, and what stands beside what. No time is asserted."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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
def truths(draw: st.DrawFn) -> tuple[dict[str, list[float]], float]:
    """What sublayers take at the measured numbers, rising, and the rest."""
    found = {}
    for stack, sizes in SIZES.items():
        steps = draw(st.lists(st.floats(0.001, 1), min_size=1, max_size=5))
        values = list(itertools.accumulate([0.0, *itertools.islice(itertools.cycle(steps), len(module.points(stack, sizes[0])) - 1)]))  # fmt: skip
        found[stack] = values
    return found, draw(st.floats(0.1, 2))


def times_of(
    truth: dict[str, list[float]], rest: float, noise: list[float], gain: float, held: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Seconds of every turn of every model, if sublayers add up; `gain` times as much of it among empty sublayers."""
    whole = rest + sum(values[-1] * len(SIZES[stack]) for stack, values in truth.items())
    rest += sum(truth[stack][-1] for stack in held)
    measured = {}
    for stack, values in truth.items():
        layers = len(SIZES[stack]) - (stack in held)
        kept = module.points(stack, SIZES[stack][0])
        times = {"all units": whole, "no units": rest}
        for count, value in zip(kept, values, strict=True):
            times.setdefault(f"{count} among all", whole - layers * (values[-1] - value))
            times.setdefault(f"{count} among none", rest + gain * layers * value)
        names = [name for name, _ in module._layouts(stack, SIZES, held)]
        measured[stack] = {name: [times[name] + shift for shift in noise] for name in names}
    return measured


@pytest.mark.parametrize("held", [(), ("enc", "dec")])
@given(truth=truths(), noise=st.lists(st.floats(0, 0.5), min_size=1, max_size=5), gain=st.sampled_from([1.0, 0.5]))
@many_examples
def test_tables_are_the_costs_that_the_times_were_made_of(held, truth, noise, gain):
    """A disturbance of a whole turn changes none of them; what differs between full and empty surroundings keeps its shape."""
    values, rest = truth
    tables, dense, found = module.tables_of(times_of(values, rest, noise, gain, held), SIZES, held)
    for stack, table in tables.items():
        assert table.kept == tuple(module.points(stack, SIZES[stack][0]))
        assert table.seconds == pytest.approx(values[stack], abs=1e-9)
    total = found + sum(table.seconds[-1] * len(SIZES[stack]) for stack, table in tables.items())
    assert dense == pytest.approx(total)


def test_noise_makes_no_table_that_falls():
    values, rest = {stack: [0.0] + [1.0] * (len(module.points(stack, sizes[0])) - 1) for stack, sizes in SIZES.items()}, 1.0  # fmt: skip
    times = times_of(values, rest, [0.0], 1.0)
    times["ffn-enc"]["16 among all"] = [times["ffn-enc"]["all units"][0] + 5.0]
    times["ffn-enc"]["16 among none"] = [times["ffn-enc"]["no units"][0] - 5.0]
    times["ffn-enc"]["32 among none"] = [0.0]
    tables, *_ = module.tables_of(times, SIZES)
    assert all(min(table.seconds) == 0 and list(table.seconds) == sorted(table.seconds) for table in tables.values())


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
@many_examples
def test_values_that_fall_are_levelled_to_the_nearest_that_do_not(values):
    """Pools of neighbours have their mean (the conditions of least squares); what rises already stays."""
    found = module.rising([0.0, *values])
    assert found[0] == 0
    assert found == sorted(found)
    assert module.rising([0.0, *sorted(map(abs, values))]) == pytest.approx([0.0, *sorted(map(abs, values))])
    place = 0
    for level, members in itertools.groupby(found[1:]):
        size = len(list(members))
        if level > 0:
            assert sum(values[place : place + size]) / size == pytest.approx(level, abs=1e-9)
        place += size


def test_times_that_do_not_fall_with_units_are_refused():
    times = times_of({stack: [0.0] * len(module.points(stack, sizes[0])) for stack, sizes in SIZES.items()}, 1.0, [0.0], 1.0)  # fmt: skip
    with pytest.raises(Refusal, match="must fall as units go"):
        module.tables_of(times, SIZES)


@pytest.mark.parametrize("stack", SIZES)
@given(most=st.integers(1, 300))
@many_examples
def test_the_measured_numbers_begin_with_none_and_end_with_all(stack, most):
    found = module.points(stack, most)
    assert found[0] == 0
    assert found[-1] == most
    assert found == sorted(set(found))
    for name, layout in module._layouts(stack, {**SIZES, stack: (most, most)}):
        kept = {site.stack: sum(layout.kept[span]) for site, span in layout.grid.spans()}
        group = most // layout.grid.of(stack)[0]
        number, _, among = name.partition(" among ")
        if among:
            assert kept[stack] * group == int(number)
            others = [count for each, count in kept.items() if each != stack]
            assert all(others) if among == "all" else not any(others)


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
    monkeypatch.setattr(module, "tables_of", lambda measured, sizes, held: stretched(measured, sizes))
    path, lines = tmp_path / "costs.json", tmp_path / "lines.jsonl"
    main(["--costs", str(path), "--random", DENSE, *QUICK, *engine, "--json", str(lines)])
    file = read_costs(str(path))
    facts = facts_of(Candidate(DENSE, True).build())
    assert file.sizes == facts.sizes
    assert file.conditions.runtime == ("CTranslate2 int8" if engine else "fairseq")
    assert (file.conditions.batch, file.conditions.beam, file.conditions.source, file.conditions.target) == (2, 2, 5, 5)
    assert set(file.tables) == set(SIZES)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {row["stack"] for row in rows} == set(SIZES)
    assert ("as it is" in {row["model"] for row in rows}) == (not engine)
    left = {Layout.parse(row["layout"]).by_kind()["heads"][0] for row in rows if row["model"] == "no units"}
    assert left == {
        4 if engine else 0
    }  # the last layers' self-attention, which CTranslate2's other attention is measured beside
    assert "measured in" in capsys.readouterr().out
    with pytest.raises(Refusal, match="--force"):
        main(["--costs", str(path), "--random", DENSE, *QUICK])


def stretched(measured: Any, sizes: Any) -> Any:
    """Tables whatever the clock said."""
    kept = {stack: module.points(stack, sizes[stack][0]) for stack in measured}
    return {stack: module.Table(tuple(each), tuple(map(float, each))) for stack, each in kept.items()}, 999.0, 1.0


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


@pytest.mark.parametrize("kept", ["16 among none", "all units", "no units"])
def test_what_is_promised_of_a_layout_is_the_sum_of_its_tables(costs, kept):
    file = read_costs(str(costs))
    sizes = facts_of(Candidate(DENSE, True).build()).sizes
    layout = dict(module._layouts("ffn-dec", sizes))[kept]
    facts = facts_of(Candidate(f"{OURS},layout={layout}", True).build())
    counts = {"all units": sizes, "no units": {}}.get(kept, {"ffn-dec": (16,) * len(sizes["ffn-dec"])})
    added = sum(file.tables[stack].at(size) for stack in file.tables for size in counts.get(stack, ()))
    assert seconds_of(file, facts) == pytest.approx(file.rest + added, rel=1e-3)


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
