"""Comparisons over seeds: paired differences, and the report's tables of these."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import run, write

from fairseq_dsp.analysis.records import NATS, Record, read_records
from fairseq_dsp.analysis.seeds import paired
from fairseq_dsp.analysis.tables import by_budget, do_heads_matter, over_seeds

VALUES = st.dictionaries(st.integers(0, 9), st.floats(0, 9), min_size=1)


def test_a_difference_is_paired_by_the_seeds_that_both_have():
    found = paired({1: 1.0, 2: 2.0, 3: 4.0, 9: 0.0}, {1: 0.5, 2: 1.0, 3: 2.0, 8: 0.0})
    assert found is not None
    assert found.seeds == 3
    assert found.mean == pytest.approx(3.5 / 3)
    assert found.error == pytest.approx(0.4410, abs=1e-4)
    # Student's t with two degrees of freedom has a closed form
    t = found.mean / found.error
    assert found.p_value == pytest.approx(1 - t / (2 + t * t) ** 0.5)
    assert paired({1: 1.0}, {2: 1.0}) is None
    one = paired({1: 1.0}, {1: 2.0})
    assert (one.mean, one.error, one.p_value) == (-1.0, None, None)


@given(VALUES, VALUES)
def test_two_arms_change_places_with_their_sign(one, other):
    there, back = paired(one, other), paired(other, one)
    if not one.keys() & other.keys():
        assert there is back is None
        return
    assert there.seeds == len(one.keys() & other.keys())
    assert there.mean == pytest.approx(-back.mean)
    assert there.p_value == (back.p_value if back.p_value is None else pytest.approx(back.p_value))


@given(VALUES, st.floats(0.1, 5))
def test_what_differs_by_the_same_at_every_seed_differs_for_certain(one, offset):
    found = paired(one, {seed: value + offset for seed, value in one.items()})
    assert found.mean == pytest.approx(-offset)
    assert found.p_value is None if len(one) == 1 else found.p_value < 1e-6


def records(tmp_path, nats: dict[tuple[str, int], list[float]], **more: dict) -> list[Record]:
    """Runs of seeds 1, 2, ... with these losses."""
    lines = [
        run(
            method,
            kept,
            seed,
            **{"valid_nats": value, "sacrebleu": 20.0 - value} | more.get(method.replace("-", "_"), {}),
        )
        for (method, kept), values in nats.items()
        for seed, value in enumerate(values, 1)
    ]
    return read_records(str(write(tmp_path / "results.jsonl", lines)), pytest.fail)


def test_the_loss_stands_by_budget_with_three_digits(tmp_path):
    table = by_budget(records(tmp_path, {("dense", 36): [2.5], ("dsp", 6): [3.0, 3.002]}), NATS)
    assert table.rows[0] == ("dense", "2.500 (1)", "–")
    assert table.rows[1][2] == "3.001 ± 0.001 (2)"


def test_methods_are_compared_at_their_own_budget_and_with_dense_at_its_only_one(tmp_path):
    found = records(
        tmp_path,
        {("dense", 36): [2.0, 2.1], ("a", 6): [3.0, 3.2], ("b", 6): [2.9, 3.1], ("b", 3): [3.5, 3.6], ("c", 6): [3.0]},
    )
    against_a = over_seeds(found, "a")
    assert [row[:4] for row in against_a.rows] == [
        ("b", "6", "2", "\N{MINUS SIGN}0.100 ± 0.000"),
        ("c", "6", "1", "+0.000"),
    ]
    assert against_a.rows[1][4] == "–"
    against_dense = over_seeds(found, "dense")
    assert [row[:3] for row in against_dense.rows] == [
        ("a", "6", "2"),
        ("b", "6", "2"),
        ("b", "3", "2"),
        ("c", "6", "1"),
    ]
    assert over_seeds(found[:2], "dense") is None


def test_the_choice_stands_beside_its_counts_shuffled_and_the_rule(tmp_path):
    found = records(
        tmp_path,
        {
            ("new-finetune", 6): [3.0, 3.1, 3.2],
            ("shuffled-finetune", 6): [3.1, 3.2, 3.31],
            ("stratified-finetune", 6): [3.0, 3.1, 3.2],
            ("stratified", 6): [9.0, 9.0, 9.0],
        },
        shuffled_finetune={"shuffled_of": "new-finetune"},
    )
    (row,) = do_heads_matter(found).rows
    assert row[:4] == ("new-finetune", "nats", "6", "3.100 ± 0.100")
    assert row[6].startswith("\N{MINUS SIGN}0.103")
    assert row[8:] == ("+0.000 ± 0.000", "1.000")
    assert do_heads_matter(found[:3]) is None


def test_without_losses_sacrebleu_decides_whether_heads_matter(tmp_path):
    found = records(
        tmp_path,
        {("new", 6): [3.0], ("shuffled", 6): [3.1]},
        shuffled={"shuffled_of": "new", "valid_nats": None},
    )
    (row,) = do_heads_matter(found).rows
    assert row[1] == "sacreBLEU"
    assert row[5] == row[8] == "–"


def test_seeds_that_lack_a_figure_are_not_counted_for_it(tmp_path):
    found = records(tmp_path, {("dense", 36): [2.0, 2.1, 2.3], ("a", 6): [3.0, 3.2, 3.3]})
    lacking = [replace(each, valid_nats=None) if (each.method, each.seed) == ("a", 3) else each for each in found]
    assert by_budget(lacking, NATS).rows == (("dense", "2.133 ± 0.153 (3)", "–"), ("a", "–", "3.100 ± 0.141 (2)"))
    (row,) = over_seeds(lacking, "dense").rows
    assert row[2] == "2 / 3"
    (row,) = over_seeds(found, "dense").rows
    assert row[2] == "3"
    for runs in (found, lacking):
        assert by_budget(runs, "sacrebleu").note.endswith(" 3 seeds each.")
