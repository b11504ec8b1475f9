"""How the soak tells ties from other hypotheses, and a leak from a process that has its size."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.campaigns.material import Tally
from tests.campaigns.soak import GROWTH, NOTHING, TOLERANCE, Hypotheses, compare, judge, judge_memory

ONE, OTHER, THIRD, FOURTH = [5, 2], [6, 2], [7, 8, 2], [9, 2]
NEAR, FAR = 0.4 * TOLERANCE, 2 * TOLERANCE


def compared(theirs: Hypotheses, ours: Hypotheses) -> tuple[list[str], Tally]:
    tally = Tally(1)
    tally.figures.update(hypotheses=0, ties=0, largest_difference=0.0)
    return compare(theirs, ours, "the sentence", tally), tally


def test_what_float64_does_not_know_was_decided_by_rounding(capsys: pytest.CaptureFixture[str]):
    one, other = [(ONE, -0.4), (OTHER, -0.5)], [(ONE, -0.4), (THIRD, -0.6)]
    tally = Tally(1)
    tally.figures.update(NOTHING)
    assert judge(one, other, lambda: [one, one], "the sentence", tally) == []
    assert tally.figures == {**NOTHING, "hypotheses": 2, "decided by rounding": 1}
    assert "the sentence: rank 1: scores -0.5" in capsys.readouterr().err
    tally.figures = dict(NOTHING)
    failures = judge(one, other, lambda: [one, other], "the sentence", tally)
    assert ["in float64" in failure for failure in failures] == [False, True]
    assert "decided by rounding" not in tally.figures


def test_the_same_hypotheses_are_no_ties():
    both = [(ONE, -0.5), (OTHER, -0.5)]
    failures, tally = compared(both, [(words, score + NEAR) for words, score in both])
    assert failures == []
    assert tally.figures["hypotheses"] == 2
    assert tally.figures["ties"] == 0
    assert tally.figures["largest_difference"] == pytest.approx(NEAR)


def test_two_that_change_places_with_near_scores_are_ties_counted_and_listed_all(capsys: pytest.CaptureFixture[str]):
    many = [([number, 2], -0.5) for number in range(4, 34)]
    failures, tally = compared(many, [(words, score + NEAR) for words, score in reversed(many)])
    assert failures == []
    assert tally.figures["ties"] == 30
    listed = capsys.readouterr().err.splitlines()
    assert len(listed) == 30
    assert "rank 29" in listed[-1]
    assert "the sentence" in listed[-1]


def test_only_the_last_rank_may_have_words_that_the_other_list_lacks():
    failures, tally = compared([(ONE, -0.4), (OTHER, -0.5)], [(ONE, -0.4), (THIRD, -0.5 + NEAR)])
    assert failures == []
    assert tally.figures["ties"] == 1
    failures, tally = compared([(ONE, -0.4), (OTHER, -0.5)], [(THIRD, -0.4 + NEAR), (OTHER, -0.5)])
    assert ["no tie" in failure for failure in failures] == [True]
    assert tally.figures["ties"] == 0


@pytest.mark.parametrize("swapped", [False, True])
def test_words_that_stand_in_one_list_alone_are_no_tie(swapped: bool):
    lists = [(ONE, -0.5), (OTHER, -0.5), (THIRD, -0.5)], [(OTHER, -0.5), (FOURTH, -0.5), (THIRD, -0.5)]
    failures, tally = compared(*reversed(lists)) if swapped else compared(*lists)
    assert len(failures) == 2
    assert tally.figures["ties"] == 0


def test_words_that_stand_elsewhere_with_a_far_score_are_no_tie():
    theirs = [(ONE, -0.5), (OTHER, -0.5), (THIRD, -0.6)]
    failures, _ = compared(theirs, [(OTHER, -0.5), (THIRD, -0.5), (ONE, -0.6)])
    assert len(failures) == 2  # and the last rank, which is taken for cut off


@pytest.mark.parametrize("score", [-0.5 - FAR, -0.5 + FAR, math.nan])
def test_a_far_score_is_a_failure_whatever_the_words(score: float):
    for words in (ONE, OTHER):
        failures, _ = compared([(ONE, -0.5)], [(words, score)])
        assert ["scores" in failure for failure in failures] == [True]


def test_another_number_of_hypotheses_is_a_failure():
    assert compared([(ONE, -0.5)], [])[0] == ["1 hypotheses, rewritten 0"]


MB = 10**6
FLAT = [300 * MB + 7 * MB * (batch % 3) for batch in range(80)]
WARMING_UP = [min(batch, 20) * 15 * MB for batch in range(80)]
GROWING = [300 * MB + batch * MB for batch in range(80)]
STEPPING = [300 * MB if batch < 60 else int(301 * MB * GROWTH) for batch in range(80)]


@pytest.mark.parametrize(
    ("memory", "fails"),
    [(FLAT, False), (WARMING_UP, False), (list(reversed(GROWING)), False), (GROWING, True), (STEPPING, True)],
    ids=["flat", "warming up", "shrinking", "growing", "stepping"],
)
def test_memory_that_grows_after_the_first_quarter_is_a_failure(memory: list[int], fails: bool):
    tally = Tally(1)
    figures = judge_memory(memory, tally)
    assert bool(tally.failures) == fails
    assert figures == {
        "second_quarter_mb": pytest.approx(max(memory[20:40]) / MB, abs=0.1),
        "last_quarter_mb": pytest.approx(max(memory[60:]) / MB, abs=0.1),
    }


def test_a_run_that_is_too_short_is_not_judged():
    tally = Tally(1)
    for memory in ([], [MB], GROWING[:30]):
        judge_memory(memory, tally)
    assert tally.failures == []
