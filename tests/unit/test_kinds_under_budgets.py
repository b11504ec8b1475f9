"""Whatever is chosen among, and however importance lies: what a model deploys is within its budget, and no further unit fits."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from models import build

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.options.costing import costs_of
from fairseq_dsp.plugin.progress import HeadProgress, tell_what_is_given
from fairseq_dsp.units.costs import Costs, Sentence
from fairseq_dsp.units.request import written

LENGTHS = Sentence(9, 8, 5)
KINDS = {"heads": {}, "ffn": {"ffn_group": 2}, "heads,ffn": {"ffn_group": 2}, "sublayers": {}}
# encoder and decoder cost differently, in every measure
SIZES = {"decoder_ffn_embed_dim": 20, "decoder_embed_dim": 24, "decoder_output_dim": 24}


def choosing(kinds: str, budget: str, method: str = "dsp", **options: Any) -> Any:
    sentence = "9,8,5" if budget.startswith("macs") else None
    relaxation = "projection" if method == "dsp" else None
    return build(head_selection=method, prune=kinds, budget=budget, sentence=sentence, relaxation=relaxation, **KINDS[kinds], **SIZES, **options)  # fmt: skip


def costs_off(model: Any, layout: Any, costs: Costs) -> list[int]:
    """What each unit costs that was chosen among and is off."""
    whole = model.head_gates is not None and model.head_gates.chosen.kinds == ("sublayers",)
    counts = zip(layout.grid.counts, layout.surviving.counts, costs.tables, strict=True)
    return [table[-1] if whole else table[1] for (_, there), (_, kept), table in counts if kept < there]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("measure", ["parameters", "macs"])
def test_a_cost_is_met_over_a_sweep_of_shares(kinds, measure):
    costs = costs_of(choosing(kinds, f"{measure}=1.0"), measure, LENGTHS)
    least = costs.dense - sum(table[-1] for site, table in zip(costs.grid.sites, costs.tables, strict=True) if kinds in ("heads,ffn", "sublayers") or site.stack.startswith("ffn") == (kinds == "ffn"))  # fmt: skip
    for seed in range(14):
        share = least / costs.dense + (1 - least / costs.dense) * (seed + 1) / 14
        model = choosing(kinds, f"{measure}={min(share, 1.0):.6f}")
        with torch.no_grad():
            model.head_gates.importance.copy_(torch.randn(model.head_gates.grid.total, generator=torch.Generator().manual_seed(seed)))  # fmt: skip
        layout = model.deployed_layout()
        spent, most = costs.rest + costs.of(layout), math.floor(float(f"{min(share, 1.0):.6f}") * costs.dense)
        assert spent <= most
        assert most - spent < min(costs_off(model, layout, costs), default=math.inf)
        if measure == "parameters":
            model.bake()
            assert model.weight_count() == spent


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("method", ["dsp", "ste", "hard-concrete", "fixed"])
def test_every_number_is_met(kinds, method):
    total = choosing(kinds, "1.0").head_gates.grid.total
    for number in range(0, total + 1, max(total // 5, 1)):
        model = choosing(kinds, str(number), method)
        layout = model.deployed_layout()
        kept = [count for _, count in layout.surviving.counts]
        if kinds == "sublayers":
            assert sum(count > 0 for count in kept) == number
        else:
            assert sum(kept) == number + layout.grid.total - total


def test_auto_opens_as_many_sublayers_as_have_open_gates():
    model = build(head_selection="hard-concrete", prune="sublayers", unpruned_heads="auto")
    with torch.no_grad():
        model.head_gates.importance.copy_(torch.tensor([5.0, -5, 5, -5, 5, -5, 5, -5, 5, -5]))
    assert [count > 0 for _, count in model.deployed_layout().surviving.counts] == [True, False] * 5


def test_what_a_budget_comes_to_is_said_once_when_units_are_fixed(caplog: pytest.LogCaptureFixture):
    model = choosing("sublayers", "parameters=0.7", cooldown_updates=3)
    progress, gates = HeadProgress(), model.head_gates
    with caplog.at_level(logging.INFO):
        progress.look(gates)
        assert not caplog.records
        gates.set_num_updates(3)
        progress.look(gates)
        progress.look(gates)
    (record,) = caplog.records
    costs = costs_of(model, "parameters")
    spent, most = costs.rest + costs.of(model.deployed_layout()), math.floor(0.7 * costs.dense)
    off = min(costs_off(model, model.deployed_layout(), costs))
    assert f"slack {most - spent} parameters" in record.getMessage()
    assert record.getMessage().endswith(f"the cheapest that is off costs {written(off, 'parameters')}")
    assert progress.figures["kept_sublayers"] == int(gates.decided_mask().sum())


@pytest.mark.parametrize("kinds", KINDS)
def test_what_a_budget_comes_to_is_said_where_units_are_given_before_training(kinds, caplog: pytest.LogCaptureFixture):
    model = choosing(kinds, "parameters=0.85", "fixed")
    costs, layout = costs_of(model, "parameters"), model.layout
    with caplog.at_level(logging.INFO):
        tell_what_is_given(model, PruningConfig.from_model_cfg(model.unchecked))
        tell_what_is_given(choosing(kinds, "parameters=0.85"), PruningConfig())
    (record,) = caplog.records
    slack = math.floor(0.85 * costs.dense) - costs.rest - costs.of(layout)
    off = min(
        table[-1] if kinds == "sublayers" else table[1]
        for (site, there), (_, kept), table in zip(
            layout.grid.counts, layout.surviving.counts, costs.tables, strict=True
        )
        if kept < there and (kinds not in ("heads", "ffn") or (kinds == "ffn") == site.stack.startswith("ffn"))
    )
    assert f"slack {slack} parameters" in record.getMessage()
    assert record.getMessage().endswith(f"the cheapest that is off costs {written(off, 'parameters')}")
