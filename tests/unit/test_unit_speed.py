"""`python -m fairseq_dsp.benchmark.unit_speed`: every row of the table of targets, on a tiny model. No time is asserted."""

from __future__ import annotations

import json

import pytest
from measured import made_up_costs

from fairseq_dsp.benchmark import unit_speed
from fairseq_dsp.benchmark.candidates import facts_of
from fairseq_dsp.benchmark.comparison import engine_of
from fairseq_dsp.benchmark.costs import Fit
from fairseq_dsp.benchmark.measuring import Estimate
from fairseq_dsp.benchmark.promises import conditions_of
from fairseq_dsp.benchmark.unit_choice import Chooser
from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.request import parse_budget

TINY = "--arch transformer_tiny --words 60/70 --group 8 --gated-group 16 --batch-size 2 --served 2 1 --length 3 --max-tokens 20".split()
QUICK = [*TINY, "--pairs", "1", "--warmup", "0"]


@pytest.fixture
def made_up(monkeypatch):
    """Costs that need no clock, with little that no unit costs."""

    def measure(candidate, settings, timing, case):
        file = made_up_costs(
            facts_of(candidate.build()).sizes, conditions_of(engine_of(candidate), settings, case), rest=1e-3
        )
        return file, Fit(dict(file.tables), file.rest, 0.0), []

    monkeypatch.setattr(unit_speed, "measure_costs", measure)


def test_parts_of_the_table_are_measured_alone(tmp_path):
    pytest.importorskip("ctranslate2")  # which the command asks for
    file = tmp_path / "units.jsonl"
    unit_speed.main([*QUICK, "--parts", "gates", "choosing", "--json", str(file)])
    found = [line["target"] for line in map(json.loads, file.read_text().splitlines()) if "target" in line]
    assert [target.split(",")[0] for target in found] == ["one knapsack", "drawing 256 gates of neurons"]


def test_every_row_is_measured_and_kept(made_up, tmp_path, capsys):
    pytest.importorskip("ctranslate2")
    file = tmp_path / "units.jsonl"
    unit_speed.main([*QUICK, "--json", str(file)])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = [line["target"] for line in lines if "target" in line]
    assert found == [
        "one knapsack, macs=0.5, neurons in groups of 8",
        "drawing 256 gates of neurons, forward and backward",
        "macs=0.5, an update once units are fixed",
        "gates on FFNs while units are chosen",
        "macs=0.5, generation in fairseq, batch 2, beam 5",
        "latency=0.5, generation in fairseq, batch 2, beam 5, by its own dense",
        "latency=0.5 by a layout of as many parameters, generation in fairseq, batch 2, beam 5",
        "macs=0.5, CTranslate2 int8, batch 2, beam 5, by its own dense",
        "macs=0.5, CTranslate2 int8, batch 2, beam 5, by fairseq's dense",
        "latency=0.5, CTranslate2 int8, batch 2, beam 5, by its own dense",
        "latency=0.5 by a layout of as many parameters, CTranslate2 int8, batch 2, beam 5",
        "macs=0.5, CTranslate2 int8, batch 1, beam 5, by its own dense",
        "macs=0.5, CTranslate2 int8, batch 1, beam 5, by fairseq's dense",
    ]
    assert [line["model"] for line in lines if line.get("workload") == "update"][0] == "dense"
    promised = [line["by_costs_ratio"] for line in lines if line.get("model") == "latency=0.5"]
    assert all(2 <= ratio < 3 for ratio in promised)
    assert len(promised) == 2
    assert sum("costs" in line for line in lines) == 2
    assert "targets" in capsys.readouterr().out


def test_what_cannot_be_chosen_is_said_and_the_rest_is_measured(made_up, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unit_speed, "in_training", lambda *_: None)
    monkeypatch.setattr(
        unit_speed, "in_ctranslate2", lambda bench, *_: bench.at_least("served", 1.0, Estimate(2, None, None))
    )

    def refuse(*_):
        raise Refusal("no room.")

    monkeypatch.setattr(unit_speed, "in_fairseq", refuse)
    with pytest.raises(Refusal, match="no room"):
        unit_speed.main(QUICK)
    assert "served" in capsys.readouterr().out


def test_budgets_choose_within_their_limits_and_by_worth():
    chooser = Chooser("dsp_transformer_tiny", "60/70", 8)
    costs = chooser.operations(5)
    layout = chooser.within("macs=0.6", costs)
    assert costs.of(layout) <= parse_budget("macs=0.6").limit(costs) < costs.prunable
    equal = chooser.as_many_parameters(layout)
    assert chooser.parameters.of(equal) <= chooser.parameters.of(layout)
    assert layout.by_type()["cross"][0] >= 1
    with pytest.raises(Refusal, match="must leave room for a cross-attention head"):
        chooser.keep(costs, 0)


def test_requests_that_cannot_be_honoured_are_refused_at_once(tmp_path):
    precious = tmp_path / "units.jsonl"
    precious.write_text("precious")
    with pytest.raises(Refusal) as refused:
        unit_speed.main(["--pairs", "0", "--clock", "sun", "--arch", "dsp_transformer_tiny", "--json", str(precious)])
    assert len(refused.value.reasons) == 4
    assert precious.read_text() == "precious"
