"""`--budget` as text: what it stands for, and one sentence on all that it cannot be."""

from __future__ import annotations

import pytest

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.costs import Costs, Sentence
from fairseq_dsp.units.layout import Grid
from fairseq_dsp.units.request import parse_budget, parse_sentence, written

GRID = Grid.even(1, 4)


def costs(measure: str, rest: int = 600) -> Costs:
    return Costs.of_units(measure, GRID, dict.fromkeys(GRID.sites, 100), rest)


@pytest.mark.parametrize(
    ("text", "kept"), [("5", 5), ("0", 0), ("12", 12), ("0.25", 3), ("0.5", 6), ("0.49", 5), ("1.0", 12), ("0.0", 0)]
)
def test_a_number_is_of_units_and_a_share_is_rounded_down(text, kept):
    assert parse_budget(text).count(GRID.total) == kept


@pytest.mark.parametrize(
    ("text", "measure", "limit"),
    [
        ("parameters=0.5", "parameters", 300),
        ("parameters=1", "parameters", 1200),
        ("parameters=1.2k", "parameters", 600),
        ("macs=1800", "macs", 1200),
        ("macs=0.34", "macs", 12),
        ("macs=0.001M", "macs", 400),
        ("macs=1.8e3", "macs", 1200),
    ],
)
def test_a_measure_counts_the_whole_model_of_which_units_get_what_is_left(text, measure, limit):
    request = parse_budget(text)
    assert request.measure == measure
    assert request.limit(costs(measure)) == limit


def test_a_share_is_the_number_that_is_written_and_not_the_nearest_that_a_machine_has():
    """0.29 times 100 is 28.999999999999996 in floating point."""
    for total in (7, 20, 72, 100, 12_360):
        for hundredths in range(101):
            text = f"{hundredths / 100:.2f}"
            assert parse_budget(text).count(total) == hundredths * total // 100
            units = Costs.of_units("macs", Grid.even(1, 1), dict.fromkeys(Grid.even(1, 1).sites, total), 0)
            assert parse_budget(f"macs={text}").limit(units) == hundredths * 3 * total // 100
    for tenths in range(10, 100):
        assert parse_budget(f"parameters={tenths / 10}M").limit(costs("parameters", 0)) == tenths * 100_000


def test_a_time_is_written_with_its_unit():
    assert parse_budget("latency=40ms").amount.value == pytest.approx(0.04)
    assert parse_budget("latency=0.6").amount.is_share


def test_kinds_have_amounts_of_their_own():
    request = parse_budget("heads=18,ffn=0.5")
    assert [(kind, amount.value, amount.is_share) for kind, amount in request.by_kind] == [
        ("heads", 18, False), ("ffn", 0.5, True),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["parameters=0.33", "macs=599", "parameters=0.1k"])
def test_what_the_untouchable_part_exceeds_is_refused_with_its_size(text):
    with pytest.raises(Refusal, match=r"must be at least what no unit costs \(.*600 .*33.3% of the model\), but is"):
        parse_budget(text).limit(costs(parse_budget(text).measure))


@pytest.mark.parametrize(
    "text",
    ["", "-1", "1.5", "half", "nan", "inf", "3M", "neurons=3", "macs", "macs=", "macs=x", "macs=3x", "macs=5ms", "macs=0.5,macs=0.4",
     "macs=0.5,parameters=0.4", "heads=3,heads=4", "heads=3,macs=0.5", "heads=1.5", "latency=40", "latency=3M", "parameters=1e999",
     "0.5,0.5", "18,ffn=3", "9" * 40],
)  # fmt: skip
def test_anything_else_is_refused_in_a_sentence(text):
    with pytest.raises(Refusal, match="`--budget` must") as refused:
        parse_budget(text)
    assert text[:10] in str(refused.value)


def test_more_units_than_there_are_are_refused():
    with pytest.raises(Refusal, match=r"between 0 and 12 \(the units of this model\), but is 13"):
        parse_budget("13").count(12)


@pytest.mark.parametrize("text", ["25,24", "25,24,0", "0,24,5", "25,24,5,1", "a,b,c", "2.5,2,1", ""])
def test_a_sentence_is_three_numbers(text):
    with pytest.raises(Refusal, match="`--sentence` must be source tokens, target tokens and beam"):
        parse_sentence(text)
    assert parse_sentence("25,24,5") == Sentence(25, 24, 5)


def test_numbers_are_written_for_people():
    assert written(31_500_000, "parameters") == "31.5 M parameters"
    assert written(1234, "macs") == "1.234 k multiply-adds a sentence"
    assert written(12, "count") == "12 units"
    assert written(0.0401, "latency") == "40.1 ms a sentence"
