"""Costs by formula against models: parameters that a rewriting takes away, operations that torch counts."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build_with, few_examples, grids, layouts_of, many_examples, model_options  # noqa: F401

from fairseq_dsp.benchmark.flops import count
from fairseq_dsp.options.costing import costs_of
from fairseq_dsp.units.costs import Costs, Sentence
from fairseq_dsp.units.layout import Grid, Layout

GRID = Grid.even(2, 3)
LAYOUTS = layouts_of(GRID)
SIZES = {"decoder_embed_dim": 18, "decoder_output_dim": 18, "decoder_input_dim": 18}


@pytest.mark.parametrize("options", [{}, {"share_all_embeddings": True}, SIZES])
@given(one=LAYOUTS, other=LAYOUTS)
@few_examples
def test_parameters_of_a_model_are_those_predicted_from_another(options, one, other):
    model, another = build_with(one, **options), build_with(other, **options)
    costs = costs_of(model, "parameters")
    assert costs.rest + costs.of(one) == model.weight_count()
    assert costs.rest + costs.of(other) == another.weight_count()
    assert costs.dense == build_with(Layout.full(GRID), **options).weight_count()


@pytest.mark.parametrize("options", [{}, SIZES, {"decoder_output_dim": 7}, {"cross_self_attention": True}])
@given(layout=LAYOUTS, lengths=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3)))
@few_examples
def test_operations_are_those_that_torch_counts_in_a_search(options, layout, lengths):
    source, target, beam = lengths
    model = build_with(layout, **options).float()
    costs = costs_of(model, "macs", Sentence(*lengths))
    words = torch.full((1, source), 5)

    def search() -> None:
        encoded = model.encoder(words, torch.tensor([source]))
        order = torch.zeros(beam, dtype=torch.long)
        encoded = model.encoder.reorder_encoder_out(encoded, order)
        caches: dict = {}
        for step in range(target):
            model.decoder(torch.full((beam, step + 1), 6), encoder_out=encoded, incremental_state=caches)

    with torch.no_grad():
        operations, _ = count(search)
    assert operations == 2 * (costs.rest + costs.of(layout))


@given(steps=st.lists(st.lists(st.integers(0, 20), max_size=6), min_size=1, max_size=4), rest=st.integers(0, 9))
@many_examples
def test_straight_costs_are_the_lowest_line_that_no_number_of_units_lies_above(steps, rest):
    grid = Grid.of_heads([len(each) for each in steps], (), ())
    costs = Costs("latency", grid, tuple(tuple(itertools.accumulate([0, *each])) for each in steps), rest)
    line = costs.straight()
    for place, table in enumerate(costs.tables):
        if len(table) == 1:
            continue
        price = line.price(place)
        assert price >= 1
        fixed = max(cost - price * count for count, cost in enumerate(table))
        if price > 1:  # all units together cost what they did
            assert fixed + price * (len(table) - 1) == table[-1]
    for counts in itertools.product(*(range(len(each) + 1) for each in steps)):
        layout = Layout.of_mask(
            grid, [float(u < n) for n, each in zip(counts, steps, strict=True) for u in range(len(each))]
        )
        assert costs.rest + costs.of(layout) <= line.rest + line.of(layout)
    assert line.straight() == line


def test_costs_that_are_straight_stay_as_they_are():
    costs = Costs("latency", Grid.of_heads((3, 2), (), ()), ((0, 5, 10, 15), (0, 1, 2)), 7)
    assert costs.straight() == costs


@pytest.mark.parametrize("table", [(0, 1), (1, 2, 3, 4), (0, 3, 2, 4), (0, 1, 2, -3)])
def test_a_table_rises_from_0_and_has_a_cost_for_every_number_of_units(table):
    grid = Grid.of_heads((3,), (), ())
    with pytest.raises(ValueError, match="must rise from 0"):
        Costs("latency", grid, (table,), 0)
    assert Costs("latency", grid, ((0, 5, 6, 7),), 0).price(0) is None
    assert Costs("latency", grid, ((0, 5, 10, 15),), 0).price(0) == 5
