"""`fairseq-dsp-prune --budget`: what the model may keep or cost, met and accounted for, or refused in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import assert_refused, generate, load, prune
from test_score import score

from fairseq_dsp.checkpoints.building import load_model
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.plugin.costing import costs_of
from fairseq_dsp.units.costs import Sentence
from fairseq_dsp.units.layout import Layout

LENGTHS = Sentence(9, 8, 5)


@pytest.fixture
def scores(data: Path, dense: Path, tmp_path: Path) -> Path:
    score(data, dense, tmp_path / "scores.json", scorer="magnitude")
    return tmp_path / "scores.json"


def kept(path: Path) -> Layout:
    return Layout.parse(load(path)["fairseq_dsp"]["layout"])


def test_a_count_and_a_share_keep_the_heads_that_unpruned_heads_keeps(dense, scores, tmp_path):
    for name, options in (("k", ["--unpruned-heads", 5]), ("n", ["--budget", 5]), ("s", ["--budget", "0.45"])):
        prune(dense, tmp_path / f"{name}.pt", "--scores", scores, *options)
    assert kept(tmp_path / "k.pt") == kept(tmp_path / "n.pt") == kept(tmp_path / "s.pt")
    done = prune(dense, tmp_path / "h.pt", "--scores", scores, "--budget", "heads=5")
    assert kept(tmp_path / "h.pt") == kept(tmp_path / "k.pt")
    assert "kept: 5 units, 41.7%; slack 0 units, the cheapest unit that is off costs 1 units" in done.out


@pytest.mark.parametrize(
    ("budget", "measure"), [("parameters=0.9", "parameters"), ("macs=0.9", "macs"), ("macs=0.85", "macs")]
)
def test_a_measure_is_met_and_what_is_left_holds_no_other_head(budget, measure, dense, scores, data, tmp_path):
    done = prune(dense, tmp_path / "small.pt", "--scores", scores, "--budget", budget, *(["--sentence", "9,8,5"] if measure == "macs" else []))  # fmt: skip
    costs = costs_of(load_model(read_checkpoint(str(dense))), measure, LENGTHS)
    layout, most = kept(tmp_path / "small.pt"), float(budget.split("=")[1]) * costs.dense
    assert costs.rest + costs.of(layout) <= most < costs.rest + costs.of(layout) + costs.cheapest_off(layout)
    assert 0 < layout.count < 12
    if measure == "parameters":
        small = load_model(read_checkpoint(str(tmp_path / "small.pt")))
        assert small.weight_count() == costs.rest + costs.of(layout)
    assert f"budget {budget}: at most" in done.out
    assert re.search(r"kept: .* of the whole model and .*% of the .*% that can be taken out; slack", done.out)
    assert load(tmp_path / "small.pt")["fairseq_dsp"]["budget"] == budget
    assert generate(data, tmp_path / "small.pt", folder=tmp_path).hypotheses()


def test_operations_are_of_the_validation_set_by_default(dense, scores, tmp_path):
    done = prune(dense, tmp_path / "small.pt", "--scores", scores, "--budget", "macs=0.9")
    assert re.search(r"for \d+ source and \d+ target tokens at beam 5", done.out)


def test_a_trained_checkpoint_keeps_its_most_important_heads(trained, tmp_path):
    prune(trained, tmp_path / "five.pt", "--unpruned-heads", 5)
    prune(trained, tmp_path / "share.pt", "--budget", "0.42")
    assert kept(tmp_path / "five.pt") == kept(tmp_path / "share.pt")


@pytest.mark.parametrize(
    ("options", "words", "reasons"),
    [
        (["--budget", "parameters=0.1"], ["must be at least what no unit costs", "parameters=0.1"], 1),
        (["--budget", "neurons=3"], ["`--budget` must read", "neurons=3"], 1),
        (["--budget", "ffn=3"], ["`--budget` must name the kinds that are chosen (heads)", "ffn=3"], 1),
        (["--budget", "13"], ["between 0 and 12", "13"], 1),
        (["--budget", "3", "--sentence", "2,2,2"], ["`--sentence` must come with `--budget macs=`"], 1),
        (["--sentence", "2,2,2"], ["`--sentence` must come with `--budget macs=`"], 1),
        (["--budget", "macs=0.9", "--sentence", "2,2"], ["`--sentence` must be source tokens"], 1),
        (["--budget", "latency=0.5"], ["`--budget` must be in units, parameters or macs"], 1),
        (["--budget", "none", "--unpruned-heads", "3", "--sentence", "x"], ["must not be given together", "`--budget` must have", "`--sentence`"], 3),
        (["--budget", "1", "--cross-floor", "2"], ["`--cross-floor 2` must fit the budget of 1"], 1),
        (["--budget", "parameters=0.5", "--cross-floor", "4"], ["`--cross-floor 4` must fit the budget of parameters=0.5"], 1),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_refused_and_nothing_is_written(options, words, reasons, dense, scores, tmp_path):
    done = prune(dense, tmp_path / "small.pt", "--scores", scores, *options, ok=False)
    assert_refused(done, *words, reasons=reasons)
    assert not (tmp_path / "small.pt").exists()


def test_a_dense_checkpoint_needs_scores(dense, tmp_path):
    done = prune(dense, tmp_path / "small.pt", "--budget", "3", ok=False)
    assert_refused(done, "`--budget` must come with `--scores`")
