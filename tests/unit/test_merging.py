"""Scores of several pairs made one: against brute force, and what each way promises."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.merging import MERGES, merge, protect_worst
from fairseq_dsp.units.score_file import ScoreFile

MARKS = {"float32": "0" * 16}


def file_of(scores, **changes) -> ScoreFile:
    layout = (
        Layout.parse("enc:" + "1" * len(scores) + "/dec:/cross:") if "layout" not in changes else changes.pop("layout")
    )
    facts = {
        "order": None,
        "iterative": None,
        "subset": "valid",
        "batches": 2,
        "max_tokens": 100,
        "sentences": 7,
        "seed": 1,
    }
    facts |= {"version": "1", "scorer": "gradient", "checkpoint": "a.pt", "weights": MARKS, "pairs": ("en-de",)}
    return ScoreFile(layout=layout, scores=tuple(scores), **(facts | changes))


shares = st.integers(2, 6).flatmap(
    lambda heads: st.lists(
        st.lists(st.integers(0, 50), min_size=heads, max_size=heads).filter(any), min_size=2, max_size=4
    )
)


@settings(deadline=None)
@given(shares)
def test_each_way_is_what_its_name_says_of_the_shares(rows):
    values = torch.tensor(rows, dtype=torch.float64)
    parts = values / values.sum(1, keepdim=True)
    files = [file_of([3.0 * each for each in row], pairs=(f"a-b{n}",)) for n, row in enumerate(rows)]
    found = {by: torch.tensor(merge(files, by).scores, dtype=torch.float64) for by in MERGES}
    assert torch.allclose(found["sum"], parts.sum(0))
    assert torch.allclose(found["max"], parts.max(0).values)
    assert merge(files, "sum").pairs == tuple(f"a-b{n}" for n in range(len(rows)))
    assert merge(files, "sum").sentences == 7 * len(rows)


@settings(deadline=None)
@given(shares)
def test_worst_removes_at_every_step_the_head_that_leaves_the_worst_pair_most(rows):
    values = torch.tensor(rows, dtype=torch.float64)
    parts = values / values.sum(1, keepdim=True)
    scores = protect_worst(parts)
    order = sorted(range(parts.shape[1]), key=lambda head: float(scores[head]))
    assert float(scores.max()) == pytest.approx(1)
    kept = set(order)
    for head in order:
        best = max(float(parts[:, sorted(kept - {other})].sum(1).min()) for other in kept)
        if float(scores[head]) > 1e-12 and sum(scores == scores[head]) == 1:  # no tie in the order
            assert float(parts[:, sorted(kept - {head})].sum(1).min()) == pytest.approx(best, abs=1e-9)
            assert 1 - float(scores[head]) == pytest.approx(best, abs=1e-9)
        kept.remove(head)


def test_worst_protects_the_pair_whose_heads_the_sum_would_give_up():
    # three pairs live on the first heads, the fourth on the last one alone
    parts = torch.tensor([[0.5, 0.4, 0.1]] * 3 + [[0.0, 0.1, 0.9]], dtype=torch.float64)
    top = {by: set(MERGES[by](parts).topk(2).indices.tolist()) for by in MERGES}
    assert top["sum"] == {0, 1}
    assert 2 in top["worst"] & top["max"]
    best = max(itertools.combinations(range(3), 2), key=lambda pair: float(parts[:, list(pair)].sum(1).min()))
    assert top["worst"] == set(best)


KINDS = {"units": ("heads", "ffn"), "layout": Layout.parse("enc:11/dec:/cross:/ffn-enc:111/ffn-dec:")}


@pytest.mark.parametrize("by", MERGES)
@given(data=st.lists(st.tuples(*[st.lists(st.integers(0, 50), min_size=n, max_size=n).filter(any) for n in (2, 3)]), min_size=2, max_size=3))  # fmt: skip
@settings(deadline=None, max_examples=30)
def test_kinds_that_do_not_compare_are_merged_each_for_itself(by, data):
    files = [file_of([*heads, *(1000.0 * n for n in ffn)], comparable=False, **KINDS) for heads, ffn in data]
    found = merge(files, by).scores
    alone = [merge([file_of(list(map(float, part[kind]))) for part in data], by).scores for kind in (0, 1)]
    assert found == pytest.approx([*alone[0], *alone[1]])
    assert not merge(files, by).comparable


def test_a_kind_without_importance_has_no_shares():
    files = [file_of([1.0, 2.0, 0.0, 0.0, 0.0], comparable=comparable, **KINDS) for comparable in (True, False)]
    assert merge(files[:1] * 2, "sum").scores[2:] == (0.0, 0.0, 0.0)
    with pytest.raises(Refusal, match="score file 1 must have scores of which none is negative and one of each kind is above 0"):  # fmt: skip
        merge(files[1:] * 2, "sum")


@pytest.mark.parametrize("by", MERGES)
@pytest.mark.parametrize("scorer", ["fisher", "joint-fisher"])
def test_places_in_an_order_are_no_sums_however_they_are_merged(by, scorer):
    merged = merge([file_of([1.0, 2.0, 3.0], scorer=scorer), file_of([3.0, 1.0, 2.0], scorer=scorer)], by)
    assert merged.is_sum == (scorer == "fisher" and by != "worst")
    again = merge([merged, merged], "sum")
    assert again.is_sum == merged.is_sum


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"weights": {"float32": "1" * 16}, "checkpoint": "b.pt"},
            "same weights as the first, of a.pt, but is of others, of b.pt",
        ),
        ({"weights": None}, "an earlier version"),
        ({"scorer": "fisher"}, "by the same scorer as the first"),
        ({"options": {"norm": "relative"}}, "same options of the scorer as the first (none), but is by norm relative."),
        ({"order": (0, 1), "iterative": 1}, "--iterative"),
        ({"scores": (-1.0, 2.0)}, "none is negative"),
        ({"scores": (0.0, 0.0)}, "one is above 0"),
        ({"layout": Layout.parse("enc:1/dec:1/cross:")}, "of the same heads"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_do_not_go_together_are_refused(change, words):
    change = dict(change)
    other = file_of(change.pop("scores", (1.0, 2.0)), **change)
    with pytest.raises(Refusal, match="score file 2") as refused:
        merge([file_of((1.0, 2.0)), other], "sum")
    assert words in str(refused.value)
    assert len(refused.value.reasons) == 1
