"""`--recipe` in fairseq's commands: what is derived, where it is kept, and that going on does not shift it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import HYDRA, QUIET, UPDATES_AN_EPOCH, assert_refused, budget, different, load, prune, run, train
from hydra_config import write_config
from models import not_on_0_12_2

from fairseq_dsp.config import get_option

K = ["--unpruned-heads", 5]
END = 10
STOPPED = ["--stop-time-hours", 1e-9]  # after an update
DERIVED = {"relaxation": "projection", "initial_temperature": 1.0, "final_temperature": 0.1, "cooldown_updates": 4}


def options(path: Path) -> dict:
    """Options of the choice in a checkpoint."""
    model = load(path)["cfg"]["model"]
    names = (*DERIVED, "recipe", "importance_lr", "derived")
    return {name: get_option(model, name) for name in names}


def tensors_of(path: Path) -> dict:
    state = load(path)
    return {"model": state["model"], "optimizer": state["last_optimizer_state"]}


@pytest.mark.parametrize(
    ("limits", "updates"),
    [
        (["--max-update", END], END),
        (["--max-epoch", 2], 2 * UPDATES_AN_EPOCH),
        (["--max-update", 99, "--max-epoch", 1], UPDATES_AN_EPOCH),
        (["--max-update", 3, "--max-epoch", 2], 3),
    ],
)
def test_the_number_of_heads_alone_is_enough(limits: list, updates: int, data: Path, tmp_path: Path):
    done = train(data, tmp_path / "save", *QUIET, *K, *limits)
    window = round(0.4 * updates)
    found = options(tmp_path / "save/checkpoint_last.pt")
    assert found == {
        **DERIVED,
        "cooldown_updates": window,
        "recipe": "auto",
        "importance_lr": 0.5,
        "derived": found["derived"],
    }
    assert set(found["derived"].split(",")) == {*DERIVED, "importance_lr"}
    assert f"of {updates} updates" in done.out
    assert done.logged("temperature")[:1] == [1.0]
    state = load(tmp_path / "save/checkpoint_last.pt")
    assert state["last_optimizer_state"]["param_groups"][1]["lr"] == 0.5
    if window < updates:
        assert state["model"]["head_gates.fixed_mask"].sum() == 5
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "small.pt")


def test_going_on_keeps_what_was_derived_whatever_the_length_is_now(data: Path, tmp_path: Path):
    flags = [*QUIET, *K, "--lr-scheduler", "fixed", "--warmup-updates", 0]
    train(data, tmp_path / "whole", *flags, "--max-update", END)
    train(data, tmp_path / "parts", *flags, "--max-update", END, "--stop-time-hours", 1e-9)
    assert load(tmp_path / "parts/checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] < END
    train(data, tmp_path / "parts", *flags, "--max-update", 3 * END)
    done = train(
        data, tmp_path / "longer", *flags, "--max-update", 3 * END, "--cooldown-updates", 4, "--importance-lr", 0.5
    )
    assert "`--recipe auto`: `--relaxation` projection, `--initial-temperature` 1.0" in done.out
    ours, theirs = (tmp_path / name / "checkpoint_last.pt" for name in ("parts", "longer"))
    assert different(tensors_of(ours), tensors_of(theirs)) == []
    assert options(ours) == options(tmp_path / "whole/checkpoint_last.pt")


@pytest.fixture(scope="module")
def ended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training with the number of heads alone, at its end; read-only."""
    save = tmp_path_factory.mktemp("ended") / "save"
    train(data, save, *QUIET, *K, "--max-update", END)
    return save


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--cooldown-updates", 9], "`--cooldown-updates` must stay 4"),
        (["--recipe", "paper"], "`--recipe` must stay auto"),
        (["--relaxation", "successive-softmax"], "`--relaxation` must stay projection"),
    ],
)
def test_another_recipe_is_refused_in_the_same_folder(flags: list, words: str, data: Path, ended: Path):
    done = train(data, ended, *QUIET, *K, "--max-update", 2 * END, *flags, ok=False)
    assert_refused(done, words, reasons=len(done.refusals))


def test_a_checkpoint_from_before_recipes_goes_on_as_it_began(data: Path, tmp_path: Path):
    papers = ["--recipe", "paper"]
    train(data, tmp_path / "whole", *QUIET, *K, *papers, "--max-update", END)
    train(data, tmp_path / "old", *QUIET, *K, *papers, "--max-update", 4)
    path = tmp_path / "old/checkpoint_last.pt"
    state = load(path)
    for name in ("recipe", "derived", "importance_lr"):
        delattr(state["cfg"]["model"], name)
    torch.save(state, path)
    done = train(data, tmp_path / "old", *QUIET, *K, "--recipe", "auto", "--max-update", END, ok=False)
    assert_refused(done, "`--recipe` must not be given", reasons=len(done.refusals))
    train(data, tmp_path / "old", *QUIET, *K, *papers, "--max-update", 6)
    for name in ("recipe", "derived", "importance_lr"):
        setattr((state := load(path))["cfg"]["model"], name, None)
    torch.save(state, path)
    train(data, tmp_path / "old", *QUIET, *K, "--max-update", END)
    assert different(tensors_of(path), tensors_of(tmp_path / "whole/checkpoint_last.pt")) == []
    assert load(path)["model"]["head_gates.fixed_mask"].eq(-1).all()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["`--max-update` or `--max-epoch` must be given", "`--cooldown-updates`"]),
        (["--recipe", "auto", "--cooldown-updates", 20, "--max-update", 20], ["must be below `--max-update` 20"]),
        (
            ["--recipe", "auto", "--cooldown-updates", 16, "--max-epoch", 2],
            ["`--cooldown-updates` must be below the 16 updates of `--max-epoch` 2"],
        ),
        (["--recipe", "auto", "--relaxation", "successive-softmax", "--max-update", 9], ["which is another"]),
        (["--recipe", "auto", "--head-selection", "fixed", "--max-update", 9], ["`--recipe` belongs to dsp"]),
    ],
)
def test_what_cannot_be_derived_is_one_sentence(flags: list, words: list[str], data: Path, tmp_path: Path):
    assert_refused(train(data, tmp_path / "save", *QUIET, *K, *flags, ok=False), *words)
    assert not list(tmp_path.glob("save/*.pt"))


def test_a_start_that_does_not_fit_the_derived_window_is_refused_before_the_first_update(data: Path, tmp_path: Path):
    late = ["--budget-schedule", "cubic", "--budget-start-updates", 6, "--max-epoch", 1]
    done = train(data, tmp_path / "save", *QUIET, *K, *late, ok=False)
    assert_refused(done, "`--budget-start-updates` must be at least 0 and below `--cooldown-updates` (3), but is 6.")


def test_temperatures_without_a_relaxation_are_what_they_always_were(data: Path, tmp_path: Path):
    told = ["--initial-temperature", 0.5, "--final-temperature", 0.01, "--max-update", 4]
    for name, more in (("old", []), ("named", ["--recipe", "paper"])):
        train(data, tmp_path / name, *QUIET, *budget(5, cooldown=3), *told, *more)
    ours, theirs = (tensors_of(tmp_path / name / "checkpoint_last.pt") for name in ("old", "named"))
    assert different(ours, theirs) == []


def test_dense_weights_start_a_window_of_their_own(data: Path, tmp_path: Path):
    train(data, tmp_path / "dense", *QUIET, "--max-update", 6, stock=True)
    start = ["--finetune-from-model", tmp_path / "dense/checkpoint_last.pt"]
    train(data, tmp_path / "save", *QUIET, *K, *start, "--max-update", END)
    found = options(tmp_path / "save/checkpoint_last.pt")
    assert found["cooldown_updates"] == 4


@not_on_0_12_2
def test_hydra_derives_and_goes_on_as_the_command_line_does(dense: Path, data: Path, tmp_path: Path):
    """Its options of model, optimizer and criterion are apart: what is derived must reach all of them."""
    without = [
        "~model.cooldown_updates",
        "~optimizer.importance_lr",
        "task.unpruned_heads=3..12",
        "+model.sandwich=true",
    ]
    start = [f"checkpoint.finetune_from_model={dense}", f"+criterion.teacher={dense}", "+criterion.distillation=0.3"]
    for updates in (4, END):
        limit = [] if updates == END else ["optimization.stop_time_hours=1e-9"]
        config = write_config(tmp_path / "run", data, tmp_path / "run/save", *without, *start, *limit, max_update=END)
        done = run(HYDRA, *config, folder=tmp_path)
        assert done.code == 0, done.err[-3000:]
    words = ["--unpruned-heads", "3..12", "--sandwich", "--teacher", dense, "--distillation", 0.3]
    train(data, tmp_path / "save", *QUIET, *words, "--finetune-from-model", dense, "--max-update", END)
    paths = [tmp_path / "run/save/checkpoint_last.pt", tmp_path / "save/checkpoint_last.pt"]
    assert different(*(tensors_of(path) for path in paths)) == []
    assert options(paths[0]) == options(paths[1])


@pytest.mark.parametrize(
    ("flags", "option", "value"),
    [
        (["--recipe", "auto", "--final-temperature", 0.2], "final_temperature", 0.2),
        (["--relaxation", "projection", "--final-temperature", 0.2], "final_temperature", 0.2),
        (
            ["--budget-schedule", "cubic", "--budget-start-updates", 15001, "--max-update", 50000, *STOPPED],
            "budget_start_updates",
            15001,
        ),
        (
            ["--head-selection", "lagrangian", "--lagrangian-warmup", 15001, "--max-update", 50000, *STOPPED],
            "lagrangian_warmup",
            15001,
        ),
    ],
)
def test_what_is_given_must_fit_what_is_derived_and_not_the_paper_s(
    flags: list, option: str, value: float, data: Path, tmp_path: Path
):
    train(data, tmp_path / "save", *QUIET, *K, "--max-update", 1, *flags)
    assert get_option(load(tmp_path / "save/checkpoint_last.pt")["cfg"]["model"], option) == value
