"""What a budget comes to, as text: read as it was written, and refused as anything else."""

from __future__ import annotations

import pytest

from fairseq_dsp.units.costs import Costs
from fairseq_dsp.units.layout import Grid
from fairseq_dsp.units.prices import read_prices, write_prices

GRID = Grid.of_stacks(enc=(2, 0), dec=(1,), cross=(1,), ffn_enc=(3,), ffn_dec=(0,))
PRICES = {"enc": 5, "dec": 7, "cross": 9, "ffn-enc": 2, "ffn-dec": 3}


def test_a_budget_is_read_as_it_was_written():
    costs = Costs.of_units("macs", GRID, {site: PRICES[site.stack] for site in GRID.sites}, 100)
    text = write_prices(costs, 21)
    assert text == "macs=21:enc=5,dec=7,cross=9,ffn-enc=2,ffn-dec=1"  # a stack without units costs what nobody asks
    budget = read_prices(text, GRID)
    assert (budget.measure, budget.limit, budget.costs) == ("macs", 21, (5, 5, 7, 9, 2, 2, 2))
    assert read_prices(text, Grid.of_stacks(enc=(1, 1))).costs == (5, 5)


def test_layers_that_cost_differently_are_written_one_by_one():
    grid = Grid.of_stacks(enc=(1, 0, 1), ffn_enc=(2, 2, 2))
    prices = {site: 1 + site.layer + 4 * (site.stack == "ffn-enc") for site in grid.sites}
    text = write_prices(Costs.of_units("macs", grid, prices, 0), 7)
    assert text == "macs=7:enc=1.1.3,ffn-enc=5.6.7"
    assert read_prices(text, grid).costs == (1, 3, 5, 5, 6, 6, 7, 7)
    with pytest.raises(ValueError, match="a limit and the costs of every stack"):
        read_prices(text, Grid.of_stacks(enc=(1, 0), ffn_enc=(2, 2)))


def test_units_of_a_site_that_cost_differently_have_no_text():
    costs = Costs("macs", Grid.of_heads((2,), (), ()), ((0, 3, 4),), 0)
    with pytest.raises(ValueError, match="the same, one by one"):
        write_prices(costs, 1)


def test_kinds_that_have_a_limit_each_are_read_as_they_were_written():
    text = "count=2:enc=1,dec=1,cross=1;count=3:ffn-enc=1,ffn-dec=1"
    budget = read_prices(text, GRID)
    assert [(part.limit, part.total) for part in budget.parts] == [(2, 4), (3, 3)]
    assert (budget.limit, budget.costs, budget.is_even) == (5, (1,) * 7, False)
    for other in (text.partition(";")[0], ";".join(reversed(text.split(";")))):
        with pytest.raises(ValueError, match="a limit and the costs of every stack"):
            read_prices(other, GRID)


@pytest.mark.parametrize("text", ["", "macs=3", "macs=3:", "macs=-1:enc=1", "macs=3:enc=0,dec=1,cross=1,ffn-enc=1", "macs=3:enc=1", "macs=3:enc=1,dec=2,cross=x,ffn-enc=1", "macs=3:enc=1,dec=1,cross=1,ffn-enc=1,heads=1"])  # fmt: skip
def test_any_other_text_is_an_error(text):
    with pytest.raises(ValueError, match="a limit and the costs of every stack"):
        read_prices(text, GRID)
