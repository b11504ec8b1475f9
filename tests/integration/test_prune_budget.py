"""`fairseq-dsp-prune --budget`: what the model may keep or cost, met and accounted for, or refused in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import assert_refused, generate, load, prune
from measured import made_up_costs
from test_score import score

import fairseq_dsp as api
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.options.costing import costs_of, measured_costs, sizes_of
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.cost_file import read_costs
from fairseq_dsp.units.costs import Sentence
from fairseq_dsp.units.layout import Layout

LENGTHS = Sentence(9, 8, 5)


@pytest.fixture
def costs(dense: Path, tmp_path: Path) -> Path:
    """Costs of the dense checkpoint's sizes."""
    file = made_up_costs(sizes_of(load_model(read_checkpoint(str(dense)))))
    (tmp_path / "costs.json").write_text(file.text())
    return tmp_path / "costs.json"


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
        (["--budget", "latency=0.5"], ["`--costs` must be given for `--budget latency=`", "latency=0.5"], 1),
        (["--budget", "macs=0.9", "--costs", "none.json"], ["`--costs` must come with `--budget latency=`", "cannot be read"], 2),
        (["--costs", "none.json", "--sentence", "2,2,2"], ["`--sentence` must come with", "`--costs` must come with"], 2),
        (["--budget", "latency=40", "--costs", "none.json"], ["`--budget` must have a number with us, ms, s", "cannot be read"], 2),
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


@pytest.mark.parametrize("budget", ["latency=0.85", "latency=75ms"])
def test_measured_time_is_met_by_the_best_choice_under_its_tables(budget, dense, data, costs, tmp_path):
    score(data, dense, tmp_path / "units.json", "--units", "heads,ffn", "--ffn-group", 4, scorer="random")
    options = ["--scores", tmp_path / "units.json", "--budget", budget, "--costs", costs]
    done = prune(dense, tmp_path / "small.pt", *options)
    model, file, layout = load_model(read_checkpoint(str(dense))), read_costs(str(costs)), kept(tmp_path / "small.pt")
    table = measured_costs(model, file, Layout.full(layout.grid))
    assert table.scale == pytest.approx(file.dense / 2**16)
    seconds = 0.85 * file.dense if budget == "latency=0.85" else 0.075
    spent = (table.rest + table.of(layout)) * table.scale
    assert spent <= seconds * 1.0004 < spent + table.cheapest_off(layout) * table.scale + 3 * table.scale
    assert 0 < layout.count < layout.grid.total
    assert f"budget {budget}: at most" in done.out
    assert (
        "costs measured in fairseq float32 on a server (cpu, 1 thread), batch 32, beam 5, 21 source and 21" in done.out
    )
    assert re.search(
        r"kept: .* ms a sentence, .* of the whole model .*; slack .* ms a sentence, the cheapest", done.out
    )
    same = api.prune(dense, tmp_path / "same.pt", scores=tmp_path / "units.json", budget=budget, costs=file)
    assert same.layout == layout


def test_all_of_the_time_keeps_all_units(dense, data, costs, scores, tmp_path):
    prune(dense, tmp_path / "small.pt", "--scores", scores, "--budget", "latency=1.0", "--costs", costs)
    assert kept(tmp_path / "small.pt").count == 12


def test_a_trained_checkpoint_keeps_what_its_importance_says_within_measured_time(trained, costs, tmp_path):
    prune(trained, tmp_path / "small.pt", "--budget", "latency=0.9", "--costs", costs)
    assert 0 < kept(tmp_path / "small.pt").count < 12


def test_costs_of_another_model_are_refused(pruned, scores, dense, tmp_path):
    file = made_up_costs({**sizes_of(load_model(read_checkpoint(str(dense)))), "words": (3, 4), "ffn-enc": (16,) * 3})
    (tmp_path / "other.json").write_text(file.text())
    options = ["--scores", scores, "--budget", "latency=0.9", "--costs", tmp_path / "other.json"]
    done = prune(dense, tmp_path / "small.pt", *options, ok=False)
    assert_refused(done, "its `ffn-enc` is 3 times 16", "its `words` is 3, 4", reasons=2)
    assert not (tmp_path / "small.pt").exists()
