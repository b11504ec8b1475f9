"""`costs.json`: what is written is read again, becomes costs that are never too low, and anything else is refused in sentences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import CONDITIONS, COSTS
from models import build_with, many_examples

from fairseq_dsp.errors import Refusal
from fairseq_dsp.options.costing import measured_costs, sizes_of
from fairseq_dsp.units.cost_file import CostFile, Table, read_costs
from fairseq_dsp.units.groups import with_groups
from fairseq_dsp.units.layout import Grid, Layout, Site
from fairseq_dsp.units.request import parse_budget

CONTENT = json.loads(COSTS.text())
HEADS = Grid.of_heads((3, 3), (3, 3), (3, 3))
NEURONS = {"ffn-enc": (14, 14), "ffn-dec": (14, 14)}


@pytest.fixture
def written(tmp_path: Path):
    """Writes content, text or JSON, and returns the file's name."""

    def write(content: Any) -> str:
        path = tmp_path / "costs.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_what_is_written_is_read_again(written):
    assert read_costs(written(COSTS.text())) == COSTS


@given(group=st.sampled_from([1, 2, 7, 14]), seconds=st.lists(st.floats(0, 0.01), min_size=5, max_size=5))
@many_examples
def test_costs_are_what_was_measured_rounded_up(group, seconds):
    table = Table((0, 2, 5, 9, 14), tuple(sorted([0.0, *seconds[:4]])))
    file = replace(COSTS, tables={**COSTS.tables, "ffn-dec": table})
    grid = with_groups(HEADS, NEURONS, group)
    costs = file.costs(grid, group)
    for (site, count), own in zip(grid.counts, costs.tables, strict=True):
        width = group if site.stack.startswith("ffn") else 1
        for kept in range(count + 1):
            true = file.tables[site.stack].at(kept * width)
            assert true <= own[kept] * costs.scale + 1e-9 <= true + costs.scale + 2e-9
    assert costs.dense * costs.scale == pytest.approx(file.dense)
    assert table.at(1) == table.at(2) == table.seconds[1]
    assert table.at(0) == 0


def test_neurons_that_are_no_units_are_among_what_no_unit_costs():
    alone, together = COSTS.costs(HEADS), COSTS.costs(with_groups(HEADS, NEURONS, 14), 14)
    neurons = sum(table[-1] for site, table in zip(together.grid.sites, together.tables, strict=True) if "ffn" in site.stack)  # fmt: skip
    assert together.rest + neurons == pytest.approx(alone.rest, abs=4)


@given(share=st.floats(0.6, 1), slower=st.sampled_from([0.9, 1.0, 1.2]))
@many_examples
def test_a_share_is_of_the_model_that_was_measured(share, slower):
    """fairseq's own attention may take other time than ours with all heads; all of the time buys all units where it does not."""
    file = replace(COSTS, dense=COSTS.dense * slower)
    costs = file.costs(HEADS)
    limit = parse_budget(f"latency={share:.9f}").limit(costs)
    assert (costs.rest + limit) * costs.scale == pytest.approx(share * file.dense, rel=4e-4)
    if share == 1.0:
        assert (limit >= costs.prunable) == (slower >= 1)


def test_costs_are_of_a_model_of_the_same_sizes():
    layout = Layout.parse("enc:101.010/dec:000.111/cross:100.001")
    small, sizes = build_with(layout), sizes_of(build_with(Layout.full(layout.grid)))
    assert sizes_of(small) == sizes
    file = replace(COSTS, sizes=sizes)
    assert measured_costs(small, file).grid == layout.grid
    other = {**sizes, "enc": (2, 2), "parameters": (7,)}
    with pytest.raises(Refusal) as refused:
        measured_costs(small, replace(COSTS, sizes=other))
    assert [reason.split("its ")[1].split(" and")[0] for reason in refused.value.reasons] == [
        "`enc` is 2 times 2",
        "`parameters` is 7",
    ]


def test_every_difference_of_conditions_is_a_sentence():
    other = replace(CONDITIONS, machine="a laptop", threads=4, runtime="CTranslate2 int8")
    reasons = COSTS.objections_to_conditions(other, "--promised")
    assert ["machine" in reasons[0], "threads" in reasons[1], "runtime" in reasons[2]] == [True] * 3
    assert all(each.startswith("`--promised` must be measured under the same conditions") for each in reasons)
    assert COSTS.objections_to_conditions(CONDITIONS, "--promised") == []


def with_table(**values: Any) -> dict[str, Any]:
    return {**CONTENT, "tables": {**CONTENT["tables"], "dec": {**CONTENT["tables"]["dec"], **values}}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "whole JSON"),
        (COSTS.text()[:-40], "whole JSON"),
        ([], "a costs file of format 1, but"),
        ({**CONTENT, "format": 2}, "of format 1, but"),
        (COSTS.text().replace("0.002", "NaN"), "NaN is no number"),
        (with_table(seconds=[0.0, -0.001, 0.002]), "`seconds` of `dec` must be 3 numbers from 0 on"),
        (with_table(seconds=[0.0, 0.002, 0.001]), "none below the one before"),
        (with_table(seconds=[0.0, 0.002]), "must be 3 numbers"),
        (with_table(seconds=[0.0, "1", 0.1]), "`seconds` of `dec`"),
        (with_table(kept=[0, 3, 3]), "`kept` of `dec` must be whole numbers that rise from 0"),
        (with_table(kept=[0, 1, 4]), "`dec` has 4 units at most for the 3 of `sizes`"),
        ({**CONTENT, "tables": {}}, "`tables` must have enc, dec, cross, ffn-enc, ffn-dec and nothing else"),
        ({**CONTENT, "tables": {**CONTENT["tables"], "enc": 3}}, "`enc` must have `kept` and `seconds`"),
        ({**CONTENT, "sizes": {**CONTENT["sizes"], "enc": [-1]}}, "`sizes` of `enc` must be a list of whole numbers"),
        ({**CONTENT, "dense": 0}, "`dense` must be seconds above 0, but is 0"),
        ({**CONTENT, "rest": -1.0}, "`rest` must be seconds above 0"),
        ({**CONTENT, "threads": True}, "`threads` must be a whole number above 0"),
        ({**CONTENT, "machine": ""}, "`machine` must be a text"),
        ({**CONTENT, "cores": 2}, "`cores` is not known"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(content, words, written):
    with pytest.raises(Refusal) as refused:
        read_costs(written(content))
    assert len(refused.value.reasons) == 1
    assert "`--costs` must be" in refused.value.reasons[0]
    assert words in refused.value.reasons[0]


def test_all_reasons_are_said_at_once(written):
    content = {**with_table(seconds=[0.0, -1, 0]), "beam": 0, "extra": 1}
    del content["machine"]
    with pytest.raises(Refusal) as refused:
        read_costs(written(content))
    assert len(refused.value.reasons) == 4


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refusal, match="cannot be read"):
        read_costs(str(tmp_path / "none.json"))


def test_layers_of_a_stack_have_one_table():
    costs = COSTS.costs(HEADS)
    tables = dict(zip(costs.grid.sites, costs.tables, strict=True))
    assert tables[Site("dec", 0)] == tables[Site("dec", 1)]
    assert isinstance(COSTS, CostFile)
