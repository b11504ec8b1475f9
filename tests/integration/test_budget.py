"""A training under `--budget`: what it deploys keeps within it, is resumed and rewritten as any other, or is refused in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import QUIET, assert_refused, generate, load, prune, train
from measured import made_up_costs

from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.options.costing import costs_of, measured_costs, sizes_of
from fairseq_dsp.options.stored_layout import stored_layout
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.cost_file import read_costs
from fairseq_dsp.units.costs import Sentence

PARTS = ["--importance-lr", 0.2, "--cooldown-updates", 8, "--max-update", 14]


def parts(*extra):
    return [*QUIET, *PARTS, *extra]


@pytest.mark.parametrize(
    ("measure", "options"),
    [
        ("macs", ["--relaxation", "projection"]),
        ("macs", ["--head-selection", "ste"]),
        ("macs", ["--head-selection", "hard-concrete"]),
        ("macs", ["--head-selection", "fixed"]),
        ("parameters", ["--relaxation", "projection", "--budget-schedule", "cubic"]),
        ("parameters", ["--relaxation", "projection", "--ffn-group", 4]),
    ],
)
def test_what_is_deployed_keeps_within_the_budget(measure, options, data: Path, tmp_path: Path):
    fixed = "fixed" in options
    extra = [*QUIET, "--max-update", 14, *(() if fixed else PARTS[:4])]
    counted = ["--sentence", "9,8,5"] if measure == "macs" else []
    train(data, tmp_path, *extra, "--budget", f"{measure}=0.85", *counted, *options)
    state = read_checkpoint(str(tmp_path / "checkpoint_last.pt"))
    layout = stored_layout(state)
    model = load_model(state)
    assert model.deployed_layout() == layout
    costs = costs_of(model, measure, Sentence(9, 8, 5))
    most = 0.85 * costs.dense
    assert costs.rest + costs.of(layout) <= most < costs.rest + costs.of(layout) + costs.cheapest_off(layout) + 1
    if not fixed:
        prune(tmp_path / "checkpoint_last.pt", tmp_path / "small.pt")
        assert load(tmp_path / "small.pt")["fairseq_dsp"]["layout"] == str(layout)
        masked = generate(data, tmp_path / "checkpoint_last.pt", folder=tmp_path).hypotheses()
        assert generate(data, tmp_path / "small.pt", folder=tmp_path).hypotheses() == masked


def costs_file(data: Path, folder: Path, rest: float = 0.05) -> Path:
    """Costs of the trainings of this file."""
    train(data, folder / "measured", *QUIET, "--max-update", 1, *PARTS[:4], "--unpruned-heads", 5)
    sizes = sizes_of(load_model(read_checkpoint(str(folder / "measured/checkpoint_last.pt"))))
    (folder / "costs.json").write_text(made_up_costs(sizes, rest=rest).text())
    return folder / "costs.json"


@pytest.mark.parametrize(
    "options", [[], ["--prune", "heads,ffn", "--ffn-group", 4], ["--head-selection", "ste", "--prune", "sublayers"]]
)
def test_measured_time_is_kept_within_while_the_fixed_cost_of_a_sublayer_is_not_counted_on(options, data, tmp_path):
    path = costs_file(data, tmp_path)
    relaxed = [] if "ste" in options else ["--relaxation", "projection"]
    asked = [*QUIET, *PARTS[:4], *relaxed, *options, "--costs", path]
    done = train(data, tmp_path / "save", *asked, "--budget", "latency=0.93", "--max-update", 14)
    assert re.search(r"is fixed, and costs [\d.]+% of the dense model's time of at most [\d.]+%", done.out)
    state = read_checkpoint(str(tmp_path / "save/checkpoint_last.pt"))
    layout, model = stored_layout(state), load_model(state)
    assert model.deployed_layout() == layout
    costs = measured_costs(model, read_costs(str(path)), layout)
    assert costs.rest + costs.of(layout) <= 0.93 * 2**16 + 20
    assert 0 < layout.count < layout.grid.total
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "small.pt")
    assert load(tmp_path / "small.pt")["fairseq_dsp"]["layout"] == str(layout)
    path.unlink()  # the checkpoint says what its budget came to
    assert generate(data, tmp_path / "small.pt", folder=tmp_path).hypotheses()


def test_a_training_by_measured_time_goes_on_with_the_same_costs_alone(data, tmp_path):
    path = costs_file(data, tmp_path)
    asked = [*QUIET, *PARTS[:4], "--relaxation", "projection", "--costs", path, "--budget", "latency=0.93"]
    train(data, tmp_path / "whole", *asked, "--max-update", 14)
    train(data, tmp_path / "cut", *asked, "--max-update", 5)
    train(data, tmp_path / "cut", *asked, "--max-update", 14)
    one, other = (load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "cut"))
    assert all(one[name].equal(other[name]) for name in one)
    costs_file(data, tmp_path, rest=0.06)
    done = train(data, tmp_path / "cut", *asked, "--max-update", 15, ok=False)
    assert_refused(done, f"`--costs` must stay {path}#")


def test_a_resumed_training_is_one_that_was_never_stopped(data: Path, tmp_path: Path):
    options = [*QUIET, *PARTS[:4], "--budget", "macs=0.85", "--relaxation", "projection"]
    train(data, tmp_path / "whole", *options, "--max-update", 14)
    train(data, tmp_path / "cut", *options, "--max-update", 5)
    train(data, tmp_path / "cut", *options, "--max-update", 14)
    one, other = (load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "cut"))
    assert all(one[name].equal(other[name]) for name in one)
    done = train(data, tmp_path / "cut", *options[:-4], "--budget", "macs=0.8", "--relaxation", "projection", "--max-update", 15, ok=False)  # fmt: skip
    assert_refused(done, "`--budget` must stay macs=0.85")


def test_a_budget_in_units_is_unpruned_heads(data: Path, tmp_path: Path):
    for name, options in (("k", ["--unpruned-heads", 5]), ("b", ["--budget", "0.42"])):
        train(data, tmp_path / name, *QUIET, *PARTS, *options, "--relaxation", "projection")
    one, other = (load(tmp_path / name / "checkpoint_last.pt") for name in ("k", "b"))
    assert all(one["model"][name].equal(other["model"][name]) for name in one["model"])
    assert str(other["cfg"]["model"].unpruned_heads) == "5"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "macs=0.01"], ["must be at least what no unit costs"]),
        (["--budget", "macs=0.85", "--head-selection", "lagrangian"], ["`--budget macs=0.85` belongs to dsp, ste, hard-concrete, function-norm, site-threshold, fixed"]),
        (["--budget", "macs=0.85", "--relaxation", "successive-softmax"], ["`--relaxation` must be projection"]),
        (["--budget", "macs=0.85", "--initial-temperature", "0.1", "--final-temperature", "1e-8"], ["`--relaxation` must be projection for `--budget macs=0.85`", "--recipe paper"]),
        (["--budget", "latency=0.5"], ["`--costs` must be given for `--budget latency=0.5`"]),
        (["--budget", "latency=0.5", "--costs", "none.json"], ["`--costs` must be a file, but none.json cannot be read"]),
        (["--budget", "0.5", "--costs", "none.json"], ["`--costs` must come with `--budget latency=`"]),
        (["--budget", "macs=0.85", "--unpruned-heads", "4"], ["must not be given together"]),
        (["--budget", "13"], ["between 0 and 12"]),
        (["--budget", "many"], ["`--budget` must have"]),
        (["--unpruned-heads", "4", "--sentence", "9,8,5"], ["`--sentence` must come with"]),
        (["--budget", "parameters=0.34", "--cross-floor", "4"], ["`--cross-floor 4` must fit `--budget parameters=0.34`"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, words, data: Path, tmp_path: Path):
    assert_refused(train(data, tmp_path / "save", *QUIET, *PARTS, *options, ok=False), *words)
