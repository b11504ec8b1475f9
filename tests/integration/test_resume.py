"""Resuming equals an uninterrupted run bit for bit, in float32 with dropout on: mid-epoch, mid-anneal, after the cooldown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import QUIET, budget, different, load, prune, train

from fairseq_dsp.units.floors import floors_of, top_k_above_floors
from fairseq_dsp.units.layout import Grid, Layout

GRID = Grid.of_heads((2, 2), (2, 2), (2, 2))
COOLDOWN, END = 10, 14  # 8 updates an epoch
SCHEDULE = [*QUIET, *budget(5, cooldown=COOLDOWN), "--save-interval-updates", 1]
METHODS = {name: ["--head-selection", name] for name in ("dsp", "ste", "simple", "lagrangian", "pass")}
METHODS["site-threshold"] = ["--head-selection", "site-threshold"]
METHODS["function-norm"] = ["--head-selection", "function-norm", "--norm", "relative", "--norm-penalty", 0.1]
METHODS["sampling"] = ["--keep-sampling"]
CUBIC = ["--budget-schedule", "cubic", "--budget-start-updates", 2]
METHODS["cubic"] = [*CUBIC, "--relaxation", "projection", "--initial-temperature", 1, "--final-temperature", 0.1]


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, with a checkpoint of every update."""
    save = tmp_path_factory.mktemp("resume") / "whole"
    train(data, save, *SCHEDULE, "--max-update", END)
    return save


def state_of(path: Path) -> dict:
    state = load(path)
    assert state["last_optimizer_state"]["state"]
    return {"model": state["model"], "optimizer": state["last_optimizer_state"]}


def importance(path: Path):
    return load(path)["model"]["head_gates.importance"]


@pytest.mark.parametrize("update", [5, 8, 12])
def test_resuming_from_any_update_equals_the_uninterrupted_run(
    update: int, uninterrupted: Path, data: Path, tmp_path: Path
):
    start = uninterrupted / f"checkpoint_{1 if update < 8 else 2}_{update}.pt"
    if update == 8:  # the end of the first epoch has no file of its own: interrupt there
        train(data, tmp_path / "save", *SCHEDULE, "--max-epoch", 1)
        start = tmp_path / "save/checkpoint_last.pt"
    train(data, tmp_path / "save", *SCHEDULE, "--max-update", END, "--restore-file", start)
    ours, theirs = (state_of(folder / "checkpoint_last.pt") for folder in (tmp_path / "save", uninterrupted))
    assert different(ours, theirs) == []


@pytest.mark.parametrize(
    ("method", "update"),
    [
        ("dsp", 11),
        ("ste", 3),
        ("sampling", 11),
        ("simple", 7),
        ("lagrangian", 7),
        ("pass", 7),
        ("cubic", 7),
        ("function-norm", 7),
        ("site-threshold", 7),
    ],
)
def test_a_run_that_was_stopped_and_started_again_equals_one_that_was_not(
    method: str, update: int, data: Path, tmp_path: Path
):
    schedule = [*QUIET, *budget(5, cooldown=COOLDOWN), *METHODS[method]]
    train(data, tmp_path / "whole", *schedule, "--max-update", END)
    train(data, tmp_path / "parts", *schedule, "--max-update", update)
    train(data, tmp_path / "parts", *schedule, "--max-update", END)
    ours, theirs = (state_of(tmp_path / folder / "checkpoint_last.pt") for folder in ("parts", "whole"))
    assert different(ours, theirs) == []


def test_importance_moves_until_the_cooldown_is_over_and_never_after(uninterrupted: Path):
    before = [
        importance(uninterrupted / f"checkpoint_{epoch}_{n}.pt") for epoch, n in ((1, 4), (1, 7), (2, 9), (2, 10))
    ]
    for one, other in zip(before, before[1:], strict=False):
        assert not one.equal(other)
    for update in (11, 12, 13):
        assert importance(uninterrupted / f"checkpoint_2_{update}.pt").equal(before[-1])


def test_the_paper_s_endless_sampling_goes_on_moving_importance(data: Path, tmp_path: Path):
    schedule = [*QUIET, *budget(5, cooldown=2), "--keep-sampling", "--save-interval-updates", 1, "--max-update", 7]
    train(data, tmp_path / "save", *schedule)
    steps = [importance(tmp_path / f"save/checkpoint_1_{update}.pt") for update in (2, 4, 6)]
    assert not steps[0].equal(steps[1])
    assert not steps[1].equal(steps[2])


def test_the_layout_is_in_the_state_once_the_cooldown_is_over_and_stays(uninterrupted: Path):
    masks = [load(uninterrupted / f"checkpoint_2_{update}.pt")["model"]["head_gates.fixed_mask"] for update in (11, 13)]
    assert masks[0].equal(masks[1])
    assert sorted(masks[0].tolist()) == [0.0] * 7 + [1.0] * 5
    assert (load(uninterrupted / "checkpoint_1_5.pt")["model"]["head_gates.fixed_mask"] == -1).all()


def test_the_layout_that_was_fixed_is_the_one_that_is_rewritten(uninterrupted: Path, tmp_path: Path):
    fixed = load(uninterrupted / "checkpoint_2_11.pt")["model"]["head_gates.fixed_mask"]
    prune(uninterrupted / "checkpoint_last.pt", tmp_path / "pruned.pt")
    layout = load(tmp_path / "pruned.pt")["cfg"]["model"].head_layout
    assert [float(mark) for mark in layout if mark in "01"] == fixed.tolist()


@pytest.mark.parametrize(("lr", "moves"), [(0.0, False), (0.2, True)])
def test_a_changed_importance_lr_takes_effect_on_resuming(
    lr: float, moves: bool, uninterrupted: Path, data: Path, tmp_path: Path
):
    start = uninterrupted / "checkpoint_1_5.pt"
    schedule = [*QUIET, *budget(5, cooldown=COOLDOWN, lr=lr), "--max-update", 7, "--restore-file", start]
    train(data, tmp_path / "save", *schedule)
    end = tmp_path / "save/checkpoint_last.pt"
    assert importance(end).equal(importance(start)) is not moves
    assert load(end)["last_optimizer_state"]["param_groups"][1]["lr"] == lr


def test_importance_lr_follows_the_scheduler_only_when_asked(data: Path, tmp_path: Path):
    rates = {}
    for name, extra in (("constant", []), ("following", ["--importance-lr-follows-scheduler"])):
        train(data, tmp_path / name, *QUIET, *budget(5), "--max-update", 3, *extra)
        groups = load(tmp_path / name / "checkpoint_last.pt")["last_optimizer_state"]["param_groups"]
        rates[name] = groups[1]["lr"] / 0.2, groups[0]["lr"] / 1e-2, groups[1]["weight_decay"]
    assert rates["constant"] == (1.0, pytest.approx(rates["following"][1]), 0.0)
    assert rates["following"][0] == pytest.approx(rates["following"][1])
    assert rates["following"][0] < 1


@pytest.mark.parametrize("flags", [["--memory-efficient-fp16"], ["--bf16"]], ids=lambda flags: flags[0])
def test_in_half_precision_a_resumed_run_has_the_same_temperature_and_layout(flags, data: Path, tmp_path: Path):
    schedule = [*QUIET, *budget(5, cooldown=COOLDOWN), *flags, "--max-update"]
    whole = train(data, tmp_path / "whole", *schedule, END)
    train(data, tmp_path / "parts", *schedule, 5)
    resumed = train(data, tmp_path / "parts", *schedule, END)
    masks = [
        load(tmp_path / f"{name}/checkpoint_last.pt")["model"]["head_gates.fixed_mask"] for name in ("whole", "parts")
    ]
    assert masks[0].equal(masks[1])
    temperatures = resumed.logged("temperature")
    assert temperatures
    assert temperatures == whole.logged("temperature")[-len(temperatures) :]


def test_what_a_method_keeps_beside_the_importance_is_trained_until_the_cooldown_is_over(data: Path, tmp_path: Path):
    schedule = [*QUIET, *budget(5, cooldown=4), *METHODS["lagrangian"], "--save-interval-updates", 1, "--max-update", 7]
    train(data, tmp_path / "save", *schedule)
    values = [
        load(tmp_path / f"save/checkpoint_1_{update}.pt")["model"]["head_gates.multipliers"] for update in (1, 3, 4, 6)
    ]
    assert not values[0].equal(values[1])
    assert values[2].any()
    assert values[3].equal(values[2])


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        ([], 2, ["`--head-selection` must stay", "has 1 variables", "has 2"]),
        (["--reset-optimizer"], 0, []),
    ],
)
def test_going_on_with_a_method_of_other_variables_needs_a_new_optimizer(
    extra: list[str], code: int, words: list[str], uninterrupted: Path, data: Path, tmp_path: Path
):
    start = uninterrupted / "checkpoint_1_5.pt"
    schedule = [
        *QUIET,
        *budget(5, cooldown=COOLDOWN),
        *METHODS["lagrangian"],
        "--max-update",
        7,
        "--restore-file",
        start,
    ]
    done = train(data, tmp_path / "save", *schedule, *extra, ok=False)
    assert done.code == code, done.err
    assert all(word in done.refusals[0] for word in words)


def test_a_budget_that_changed_after_the_cooldown_is_refused(uninterrupted: Path, data: Path, tmp_path: Path):
    schedule = [*QUIET, *budget(6, cooldown=COOLDOWN), "--max-update", 15]
    start = uninterrupted / "checkpoint_last.pt"
    done = train(data, tmp_path / "save", *schedule, "--restore-file", start, ok=False)
    assert done.code == 2, done.err
    assert done.refusals[0].startswith("`--unpruned-heads` must stay 5")


@pytest.mark.parametrize(
    ("start", "later"),
    [
        ("--finetune-from-model", "before the cooldown is over"),
        ("--finetune-from-model", "after it"),
        ("--restore-file", "after it"),
        ("--restore-file", "sampling"),
        ("--finetune-from-model", "another number"),
    ],
)
def test_heads_that_were_fixed_are_chosen_anew_by_a_training_with_a_later_cooldown(
    start: str, later: str, uninterrupted: Path, data: Path, tmp_path: Path
):
    state = load(uninterrupted / "checkpoint_last.pt")
    old = state["model"]["head_gates.fixed_mask"]
    state["model"]["head_gates.importance"] = 3 * (1 - old)  # they would not choose these again
    torch.save(state, tmp_path / "start.pt")
    done = END if start == "--restore-file" else 0
    kept = 6 if later == "another number" else 5
    cooldown = done + (2 if later in ("after it", "another number") else 90)
    sampling = ["--keep-sampling"] if later == "sampling" else []
    flags = [*QUIET, *budget(kept, cooldown=cooldown), *sampling, "--importance-lr", 0, start, tmp_path / "start.pt"]
    train(data, tmp_path / "save", *flags, "--max-update", done + 4)
    model = load(tmp_path / "save/checkpoint_last.pt")["model"]
    chosen = top_k_above_floors(model["head_gates.importance"], kept, floors_of(GRID, 1))
    assert not torch.equal(chosen, old)
    expected = chosen if cooldown < done + 4 else torch.full_like(old, -1)
    assert torch.equal(model["head_gates.fixed_mask"], expected)
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    grid = Layout.parse(load(tmp_path / "pruned.pt")["fairseq_dsp"]["layout"])
    assert torch.equal(torch.tensor(grid.kept).float(), chosen)
