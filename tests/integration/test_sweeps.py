"""fairseq-hydra-train -m over budgets, on the local launcher."""

from __future__ import annotations

from pathlib import Path

from commands import HYDRA, heads_in, load, prune, run
from hydra_config import write_config
from models import not_on_0_12_2

pytestmark = not_on_0_12_2


def test_a_sweep_over_budgets_leaves_a_best_checkpoint_for_each(data: Path, tmp_path: Path):
    options = write_config(tmp_path / "conf", data, tmp_path / "unused", max_update=16)
    options = [option for option in options if not option.startswith("hydra.run.dir")]
    options += ["-m", "task.unpruned_heads=2,4", "checkpoint.save_dir=checkpoints", "dataset.disable_validation=false"]
    done = run(HYDRA, *options, f"hydra.sweep.dir={tmp_path}/sweep", folder=tmp_path)
    assert done.code == 0, done.err[-3000:]
    for number, budget in enumerate((2, 4)):
        folder = tmp_path / "sweep" / str(number) / "checkpoints"
        prune(folder / "checkpoint_best.pt", tmp_path / f"{budget}.pt")
        assert heads_in(tmp_path / f"{budget}.pt") == budget
        assert load(folder / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 16


def test_a_run_of_a_sweep_is_the_run_alone(data: Path, tmp_path: Path):
    options = write_config(tmp_path / "conf", data, tmp_path / "alone", "dataset.disable_validation=false")
    assert run(HYDRA, *options, "task.unpruned_heads=4", folder=tmp_path).code == 0
    options = [option for option in options if not option.startswith("hydra.run.dir")]
    options += ["task.unpruned_heads=12,4", "checkpoint.save_dir=checkpoints", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = run(HYDRA, "-m", *options, folder=tmp_path)
    assert done.code == 0, done.err[-3000:]
    states = [load(folder / "checkpoint_best.pt") for folder in (tmp_path / "alone", tmp_path / "sweep/1/checkpoints")]
    assert all(value.equal(states[1]["model"][name]) for name, value in states[0]["model"].items())
    assert states[0]["extra_state"]["best"] == states[1]["extra_state"]["best"]
