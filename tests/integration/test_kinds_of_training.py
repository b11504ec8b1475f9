"""Trainings that choose among heads, neurons, both, or sublayers (`--prune`): budgets met by every kind, resumed, rewritten, or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUIET, assert_refused, different, generate, load, prune, train
from test_score_units import score

from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.options.costing import costs_of
from fairseq_dsp.options.stored_layout import stored_layout
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.costs import Sentence
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.request import written
from fairseq_dsp.units.score_file import read_scores

PROJECTION = ["--relaxation", "projection"]
LEARNING = ["--importance-lr", 0.2, "--cooldown-updates", 8, "--max-update", 12]
# 12 heads of 8, and 16 neurons in each of 4 networks: one group of 16 each
NEURONS = "enc:11.11/dec:11.11/cross:11.11/ffn-enc:1010.1000/ffn-dec:1111.0001"


def trained(data: Path, folder: Path, *options: Any, learned: bool = True) -> tuple[Any, dict[str, Any]]:
    """What a training leaves: the layout that it deploys, and the checkpoint."""
    train(data, folder, *QUIET, *(LEARNING if learned else LEARNING[4:]), *options)
    state = read_checkpoint(str(folder / "checkpoint_last.pt"))
    layout = stored_layout(state)
    assert load_model(state).deployed_layout() == layout
    return layout, load(folder / "checkpoint_last.pt")


def assert_translates_alike(data: Path, folder: Path, layout: Any) -> None:
    """The checkpoint, masked, and what is left of it when it is rewritten, in plain fairseq-generate."""
    prune(folder / "checkpoint_last.pt", folder / "small.pt")
    assert load(folder / "small.pt")["fairseq_dsp"]["layout"] == str(layout)
    masked = generate(data, folder / "checkpoint_last.pt", folder=folder)
    small = generate(data, folder / "small.pt", folder=folder)
    assert small.hypotheses() == masked.hypotheses()
    assert small.scores() == pytest.approx(masked.scores(), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        (["--prune", "heads,ffn", "--ffn-group", 4, "--budget", "heads=5,ffn=0.5", *PROJECTION], (5, 8)),
        (["--prune", "heads,ffn", "--ffn-group", 4, "--budget", "heads=0.25,ffn=3", "--head-selection", "ste", "--budget-schedule", "cubic"], (3, 3)),
        (["--prune", "heads,ffn", "--ffn-group", 4, "--budget", "heads=5,ffn=3", "--head-selection", "fixed"], (5, 3)),
        (["--prune", "heads,ffn", "--ffn-group", 4, "--budget", "heads=5,ffn=3", "--head-selection", "hard-concrete"], (5, 3)),
        (["--prune", "heads,ffn", "--ffn-group", 4, "--budget", "heads=5,ffn=3", "--head-selection", "site-threshold"], (5, 3)),
        (["--prune", "ffn", "--ffn-group", 2, "--budget", "7", "--head-selection", "function-norm"], (12, 7)),
        (["--prune", "ffn", "--ffn-group", 2, "--budget", "7", *PROJECTION], (12, 7)),
        (["--prune", "heads,ffn", "--ffn-group", 4, "--budget", "ffn=3,heads=0", *PROJECTION], (0, 3)),
        (["--prune", "ffn", "--budget", "ffn=0.5", "--head-selection", "fixed"], (12, 2)),
    ],
)  # fmt: skip
def test_every_kind_keeps_what_its_budget_says(options, counts, data: Path, tmp_path: Path):
    layout, _ = trained(data, tmp_path, *options, learned="fixed" not in options)
    assert tuple(kept for kept, _ in layout.by_kind().values()) == counts
    if "fixed" not in options:
        assert_translates_alike(data, tmp_path, layout)


@pytest.mark.parametrize("budget", ["parameters=0.8", "heads=7"])
def test_units_that_are_drawn_under_a_budget_are_those_of_a_seed(budget, data: Path, tmp_path: Path):
    trained(data, tmp_path, "--budget", budget, "--head-selection", "fixed", "--seed", 3, learned=False)
    prune(tmp_path / "checkpoint_last.pt", tmp_path / "small.pt")
    found = load(tmp_path / "small.pt")["fairseq_dsp"]
    assert (found["method"], found["seed"]) == ("fixed", 3)


@pytest.mark.parametrize(
    "options",
    [
        ["--budget", "6", *PROJECTION],
        ["--budget", "sublayers=0.6", "--head-selection", "ste"],
        ["--budget", "6", "--head-selection", "fixed"],
        ["--budget", "6", "--relaxation", "successive-softmax"],
        ["--budget", "macs=0.8", "--sentence", "9,8,5", *PROJECTION],
        ["--budget", "parameters=0.7", "--head-selection", "hard-concrete"],
        ["--budget", "6", "--head-selection", "function-norm", "--norm", "relative"],
    ],
)
def test_whole_sublayers_are_kept(options, data: Path, tmp_path: Path):
    learned = "fixed" not in options
    layout, state = trained(data, tmp_path, "--prune", "sublayers", *options, learned=learned)
    kept = [len(layout.units(site)) for site in layout.grid.sites]
    assert all(count in (0, there) for count, (_, there) in zip(kept, layout.grid.counts, strict=True))
    measure, _, amount = options[1].rpartition("=")
    if measure in ("", "sublayers"):
        assert sum(count > 0 for count in kept) == 6
    else:
        costs = costs_of(
            load_model(state | {"cfg": read_checkpoint(str(tmp_path / "checkpoint_last.pt"))["cfg"]}),
            measure,
            Sentence(9, 8, 5),
        )
        spent, off = costs.rest + costs.of(layout), [t[-1] for t, n in zip(costs.tables, kept, strict=True) if not n]
        assert spent <= float(amount) * costs.dense < spent + min(off) + 1
    assert any(layout.by_type()["cross"][:1])  # the floor of one
    if learned:
        assert_translates_alike(data, tmp_path, layout)


def test_heads_and_neurons_share_the_parameters_of_the_issues_command(data: Path, tmp_path: Path):
    """`--prune heads,ffn --budget parameters=…` with nothing else, as the page says it."""
    options = ["--prune", "heads,ffn", "--budget", "parameters=0.5"]
    layout, state = trained(data, tmp_path, *options, learned=True)
    assert state["cfg"]["model"].ffn_group == 16  # twice a head
    assert state["cfg"]["model"].relaxation == "projection"
    costs = costs_of(load_model(read_checkpoint(str(tmp_path / "checkpoint_last.pt"))), "parameters")
    spent = costs.rest + costs.of(layout)
    assert spent <= 0.5 * costs.dense < spent + costs.cheapest_off(layout) + 1
    assert_translates_alike(data, tmp_path, layout)
    small = load(tmp_path / "small.pt")["model"]
    shared = ("decoder.output_projection.weight",)
    assert spent == sum(v.numel() for n, v in small.items() if n.endswith(("weight", "bias")) and n not in shared)


@pytest.mark.parametrize(
    "options",
    [
        ["--prune", "heads,ffn", "--budget", "parameters=0.8"],
        ["--prune", "heads,ffn", "--ffn-group", 4, "--budget", "heads=5,ffn=8"],
        ["--prune", "sublayers", "--budget", "6"],
    ],
)
def test_a_resumed_training_is_one_that_was_never_stopped(options, data: Path, tmp_path: Path):
    train(data, tmp_path / "whole", *QUIET, *LEARNING, *options)
    train(data, tmp_path / "cut", *QUIET, *LEARNING[:4], *options, "--max-update", 5)
    train(data, tmp_path / "cut", *QUIET, *LEARNING, *options)
    one, other = (load(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "cut"))
    assert all(one["model"][name].equal(other["model"][name]) for name in one["model"])
    assert one["model"]["head_gates.fixed_mask"].min() == 0
    change = options[2:] if "sublayers" in options else [*options, "--ffn-group", 8]
    done = train(data, tmp_path / "cut", *QUIET, *LEARNING, *change, ok=False)
    assert_refused(
        done,
        "`--ffn-group` must",
        "`--prune` must" if "sublayers" in options else "8",
        "`--save-dir`",
        reasons=len(done.refusals),
    )


def test_heads_with_a_number_are_unpruned_heads_to_the_last_bit(data: Path, tmp_path: Path):
    ways = (["--unpruned-heads", 5], ["--prune", "heads", "--budget", 5], ["--prune", "heads", "--unpruned-heads", 5])
    ways = (*ways, ["--prune", "heads", "--budget", "heads=0.42"])
    states = []
    for number, options in enumerate(ways):
        train(data, tmp_path / str(number), *QUIET, *LEARNING, *options)
        states.append(load(tmp_path / str(number) / "checkpoint_last.pt"))
    for other in states[1:]:
        assert all(states[0]["model"][name].equal(other["model"][name]) for name in states[0]["model"])
        ours, theirs = (
            {
                name: str(value)
                for name, value in vars(state["cfg"]["model"]).items()
                if value is not None and name != "save_dir"
            }
            for state in (states[0], other)
        )
        assert ours == theirs


def test_a_group_alone_still_means_heads_and_neurons(data: Path, tmp_path: Path):
    for name, options in (("old", []), ("new", ["--prune", "heads,ffn"])):
        train(data, tmp_path / name, *QUIET, *LEARNING, *PROJECTION, "--ffn-group", 4, "--budget", 14, *options)
    one, other = (load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("old", "new"))
    assert one["head_gates.importance"].shape == (12 + 16,)
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prune", "neurons", "--budget", "4"], ["`--prune` must be kinds of units (heads, ffn, sublayers)", "neurons"]),
        (["--prune", "heads,sublayers", "--budget", "4"], ["`--prune` must not name sublayers beside other kinds"]),
        (["--prune", "ffn", "--ffn-group", "3", "--budget", "4"], ["`--ffn-group` must divide the 16 neurons", "3"]),
        (["--prune", "heads", "--ffn-group", "4", "--budget", "4"], ["`--ffn-group` must come with `--prune ffn`", "4"]),
        (["--prune", "ffn", "--encoder-ffn-embed-dim", "24", "--budget", "2"], ["`--ffn-group` must be given where", "16, 24"]),
        (["--prune", "heads,ffn", "--unpruned-heads", "4"], ["`--unpruned-heads` must be for `--prune heads`"]),
        (["--ffn-group", "4", "--unpruned-heads", "4"], ["`--unpruned-heads` must be for `--prune heads`, but is 4 with `--ffn-group 4`: use `--budget`"]),
        (["--unpruned-heads", "4", "--head-layout", NEURONS], ["`--unpruned-heads` must be for `--prune heads`", "a `--head-layout` that names neurons"]),
        (["--unpruned-heads", "4", "--head-layout", NEURONS, "--head-selection", "fixed"], ["`--unpruned-heads` must be for `--prune heads`", "names neurons"]),
        (["--unpruned-heads", "20", "--head-layout", NEURONS, "--head-selection", "fixed"], ["`--unpruned-heads` must be for `--prune heads`", "names neurons"]),
        (["--prune", "heads,ffn", "--budget", "heads=4"], ["`--budget` must name the kinds that are chosen", "heads, ffn", "heads=4"]),
        (["--budget", "heads=4,ffn=2"], ["`--budget` must name the kinds that are chosen", "heads=4,ffn=2"]),
        (["--prune", "sublayers", "--budget", "11"], ["`--budget` must be between 0 and 10"]),
        (["--prune", "heads,ffn", "--budget", "heads=0,ffn=2", "--cross-floor", "1"], ["`--cross-floor 1` must fit `--budget heads=0,ffn=2`"]),
        (["--prune", "heads,ffn", "--budget", "heads=13,ffn=2"], ["`--budget` must be between 0 and 12"]),
        (["--prune", "heads,ffn", "--budget", "heads=3,ffn=2", "--head-selection", "simple"], ["`--budget heads=3,ffn=2` belongs to dsp"]),
        (["--prune", "sublayers", "--budget", "macs=0.9", "--sentence", "9,8,5", "--relaxation", "successive-softmax"], ["`--relaxation` must be projection"]),
        (["--prune", "heads,ffn", "--ffn-group", "1", "--encoder-ffn-embed-dim", "128", "--decoder-ffn-embed-dim", "128", "--budget", "201", "--relaxation", "successive-softmax"], ["`--relaxation` must be projection for more than 200 units", "for 201"]),
        (["--prune", "ffn", "--budget", "4", "--head-selection", "stratified"], ["`--prune` must be heads for `--head-selection stratified`", "`--unpruned-heads` must be given"]),
        (["--prune", "ffn", "--budget", "4", "--head-layout", "enc:11.11/dec:11.11/cross:11.11"], ["`--ffn-group` must be given for `--prune ffn`"]),
        (["--prune", "sublayers", "--budget", "2", "--cross-floor", "3"], ["`--cross-floor` must be at most 2 (the cross-attention sublayers)"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, words, data: Path, tmp_path: Path):
    done = train(
        data,
        tmp_path / "save",
        *QUIET,
        *(LEARNING if not {"stratified", "fixed"} & {*options} else LEARNING[4:]),
        *options,
        ok=False,
    )
    assert_refused(done, *words, reasons=1 + ("stratified" in options))


@pytest.mark.parametrize(
    ("options", "budget", "count"),
    [
        (["--prune", "ffn", "--ffn-group", 4, "--budget", 9], "5", lambda layout: layout.by_kind()["neuron groups"][0] == 5),
        (["--prune", "ffn", "--ffn-group", 4, "--budget", 9], "ffn=0.25", lambda layout: layout.by_kind()["neuron groups"][0] == 4),
        (["--prune", "heads,ffn", "--ffn-group", 4, "--budget", 9], "heads=4,ffn=6", lambda layout: [kept for kept, _ in layout.by_kind().values()] == [4, 6]),
        (["--prune", "sublayers", "--budget", 6], "4", lambda layout: sum(1 for site in layout.grid.sites if layout.units(site)) == 4),
        (["--prune", "sublayers", "--budget", 6], "parameters=0.7", None),
    ],
)  # fmt: skip
def test_another_budget_is_cut_by_the_same_importance(options, budget, count, data: Path, tmp_path: Path):
    trained(data, tmp_path, *options, *PROJECTION)
    done = prune(tmp_path / "checkpoint_last.pt", tmp_path / "other.pt", "--budget", budget)
    layout = Layout.parse(load(tmp_path / "other.pt")["fairseq_dsp"]["layout"])
    if count is not None:
        assert count(layout)
        assert "slack 0 units, the cheapest unit that is off costs 1 units" in done.out
        return
    model = load_model(read_checkpoint(str(tmp_path / "checkpoint_last.pt")))
    costs = costs_of(model, "parameters", layout=Layout.full(layout.grid))
    off = [table[-1] for site, table in zip(layout.grid.sites, costs.tables, strict=True) if not layout.units(site)]
    spent = costs.rest + costs.of(layout)
    assert all(len(layout.units(site)) in (0, count) for site, count in layout.grid.counts)
    assert spent <= 0.7 * costs.dense < spent + min(off) + 1
    slack, cheapest = math.floor(0.7 * costs.dense) - spent, written(min(off), "parameters")
    assert f"slack {slack} parameters, the cheapest unit that is off costs {cheapest}" in done.out


def test_a_number_of_heads_is_for_a_checkpoint_that_chose_among_heads_alone(data: Path, tmp_path: Path):
    trained(data, tmp_path, "--prune", "sublayers", "--budget", 6, *PROJECTION)
    done = prune(tmp_path / "checkpoint_last.pt", tmp_path / "other.pt", "--unpruned-heads", 3, ok=False)
    assert_refused(done, "`--unpruned-heads` must be for a checkpoint that chose among heads alone", "sublayers", "3")
    assert not (tmp_path / "other.pt").exists()


class TestLearningRatesOfKinds:
    OPTIONS = ["--prune", "heads,ffn", "--ffn-group", 4, "--budget", "heads=5,ffn=8", *PROJECTION]

    def importance(self, data: Path, folder: Path, *options: Any) -> torch.Tensor:
        train(data, folder, *QUIET, "--cooldown-updates", 8, "--max-update", 4, *self.OPTIONS, *options)
        return load(folder / "checkpoint_last.pt")["model"]["head_gates.importance"]

    def test_the_same_rate_for_all_is_one_rate_to_the_last_bit(self, data: Path, tmp_path: Path):
        one = self.importance(data, tmp_path / "one", "--importance-lr", 0.2)
        for name, options in (("two", ["--importance-lr-of", "heads=0.2,ffn=0.2"]), ("three", ["--importance-lr", 0.2, "--importance-lr-of", "ffn=0.2"])):  # fmt: skip
            assert self.importance(data, tmp_path / name, *options).equal(one)

    def test_a_kind_whose_rate_is_0_stands_still_and_the_other_moves(self, data: Path, tmp_path: Path):
        train(data, tmp_path / "none", *QUIET, *LEARNING[2:4], *self.OPTIONS, "--max-update", 1, "--importance-lr", 0)
        start = load(tmp_path / "none" / "checkpoint_last.pt")["model"]["head_gates.importance"]
        heads = self.importance(data, tmp_path / "heads", "--importance-lr", 0.1, "--importance-lr-of", "ffn=0")
        assert heads[12:].equal(start[12:])
        assert (heads[:12] != start[:12]).any()
        ffn = self.importance(data, tmp_path / "ffn", "--importance-lr-of", "ffn=0.2,heads=0")
        assert ffn[:12].equal(start[:12])
        assert (ffn[12:] != start[12:]).any()

    def test_a_resumed_training_is_one_that_was_never_stopped(self, data: Path, tmp_path: Path):
        options = [*QUIET, "--cooldown-updates", 6, *self.OPTIONS, "--importance-lr-of", "heads=0.3,ffn=0.05"]
        train(data, tmp_path / "whole", *options, "--max-update", 9)
        for updates in (4, 9):
            train(data, tmp_path / "cut", *options, "--max-update", updates)
        one, other = (load(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "cut"))
        assert not different(one["model"], other["model"])
        assert not different(one["last_optimizer_state"], other["last_optimizer_state"])

    @pytest.mark.parametrize(
        ("rates", "words"),
        [
            ("sublayers=0.1", "must name kinds that are chosen (heads, ffn), but names sublayers"),
            ("0.1", "must read KIND=RATE"),
            ("heads=-1", "must read KIND=RATE"),
            ("heads=nan", "must read KIND=RATE"),
            ("heads=0.1,heads=0.2", "must read KIND=RATE"),
        ],
    )
    def test_others_are_refused(self, rates, words, data: Path, tmp_path: Path):
        done = train(data, tmp_path, *QUIET, *LEARNING, *self.OPTIONS, "--importance-lr-of", rates, ok=False)
        assert_refused(done, "`--importance-lr-of` ", words)


@pytest.mark.parametrize(
    ("kinds", "units"), [("heads,ffn", ["--ffn-group", 16]), ("sublayers", []), ("ffn", ["--ffn-group", 16])]
)
def test_importance_begins_with_scores_of_the_same_kinds(kinds, units, data: Path, dense: Path, tmp_path: Path):
    score(data, dense, tmp_path / "scores.json", "--units", kinds, *units, scorer="fisher")
    start = ["--finetune-from-model", dense, "--importance-from", tmp_path / "scores.json"]
    options = [*QUIET, *LEARNING[:4], "--importance-lr", 0, "--max-update", 1, *PROJECTION, *start]
    train(data, tmp_path / "save", *options, "--prune", kinds, "--budget", 4)
    importance = load(tmp_path / "save" / "checkpoint_last.pt")["model"]["head_gates.importance"].tolist()
    ranking = read_scores(str(tmp_path / "scores.json")).ranking().tolist()
    assert sorted(range(len(ranking)), key=lambda unit: (-ranking[unit], unit)) == sorted(range(len(ranking)), key=lambda unit: -importance[unit])  # fmt: skip
    others = "ffn" if kinds == "sublayers" else "sublayers"
    done = train(data, tmp_path / "no", *options, "--prune", others, "--budget", 4, ok=False)
    assert_refused(done, "`--importance-from` must be scores of all units that are gated")


def test_importance_alone_is_trained_over_all_kinds(data: Path, dense: Path, tmp_path: Path):
    """`--pipelined`: frozen weights scale what they read, in one network as in another."""
    for kinds, count in (("heads,ffn", 16), ("sublayers", 10)):
        options = ["--pipelined", "--finetune-from-model", dense, "--prune", kinds, "--budget", 5, *PROJECTION]
        layout, state = trained(data, tmp_path / kinds, *options)
        before = load(dense)["model"]
        assert not [n for n, v in before.items() if n in state["model"] and not v.equal(state["model"][n])]
        assert state["model"]["head_gates.importance"].shape == (count,)
        assert_translates_alike(data, tmp_path / kinds, layout)


def test_importance_of_one_kind_is_no_start_for_another(data: Path, tmp_path: Path):
    trained(data, tmp_path / "heads", "--budget", 6, *PROJECTION)
    start = tmp_path / "heads/checkpoint_last.pt"
    for options, now in (
        (["--prune", "ffn", "--ffn-group", 4, "--budget", 5], "ffn, in groups of 4"),
        (["--prune", "heads,ffn", "--budget", 9], "heads,ffn, in groups of 16"),
        (["--prune", "sublayers", "--budget", 6], "sublayers, in groups of 16"),
    ):
        done = train(
            data, tmp_path / "other", *QUIET, *LEARNING, *PROJECTION, *options, "--finetune-from-model", start, ok=False
        )
        assert_refused(
            done, f"`--prune` must be heads, which {start} chose among", f"but is {now}", "fairseq-dsp-prune"
        )
    train(data, tmp_path / "more", *QUIET, *LEARNING, *PROJECTION, "--budget", 5, "--finetune-from-model", start)
    assert stored_layout(read_checkpoint(str(tmp_path / "more/checkpoint_last.pt"))).count == 5
