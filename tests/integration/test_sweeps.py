"""fairseq-hydra-train -m over budgets, by the commands that the documentation gives, with a tiny model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from commands import HYDRA, ROOT, heads_in, load, prune, run
from hydra_config import write_config
from models import not_on_0_12_2
from omegaconf import OmegaConf

pytestmark = not_on_0_12_2

EXAMPLE = ROOT / "examples/translation"


def documented(launcher: str) -> list[str]:
    """Arguments of the sweep that docs/hydra.md starts with the launcher; of the local one where it names none."""
    text = (ROOT / "docs/hydra.md").read_text(encoding="utf-8").replace("\\\n", " ")
    sweeps = [shlex.split(line) for line in text.splitlines() if line.startswith("fairseq-hydra-train -m ")]
    chosen = {"".join(word for word in words if word.startswith("hydra/launcher=")): words[1:] for words in sweeps}
    assert sorted(chosen) == ["", "hydra/launcher=submitit_slurm"]
    return chosen[launcher]


def replaced(words: list[str], **values: Any) -> list[str]:
    """The arguments with other values; each must be there."""
    for name, value in values.items():
        (place,) = [n for n, word in enumerate(words) if word.startswith(f"{name}=")]
        words = [*words[:place], f"{name}={value}", *words[place + 1 :]]
    return [str(EXAMPLE / "conf") if word == "examples/translation/conf" else word for word in words]


def test_a_sweep_of_the_recipe_over_budgets_leaves_a_best_checkpoint_for_each(data: Path, tmp_path: Path):
    words = replaced(documented(""), **{"task.data": data, "task.unpruned_heads": "2,4"})
    words += [f"+model.{side}_{name}=16" for side in ("encoder", "decoder") for name in ("embed_dim", "ffn_embed_dim")]
    words += ["+model.encoder_layers=1", "+model.decoder_layers=1", "common.cpu=true", "optimization.max_update=8"]
    words += ["dataset.max_tokens=200", "optimization.max_epoch=1", f"common.user_dir={ROOT / 'fairseq_dsp'}"]
    words += ["lr_scheduler.warmup_updates=2", "model.cooldown_updates=4"]
    done = run(HYDRA, *words, f"hydra.sweep.dir={tmp_path}/sweep", folder=tmp_path)
    assert done.code == 0, done.err[-3000:]
    for number, budget in enumerate((2, 4)):
        folder = tmp_path / "sweep" / str(number) / "checkpoints"
        prune(folder / "checkpoint_best.pt", tmp_path / f"{budget}.pt")
        assert heads_in(tmp_path / f"{budget}.pt", head_dim=4) == budget
        state = load(folder / "checkpoint_last.pt")
        assert state["optimizer_history"][-1]["num_updates"] == 8
        assert state["cfg"]["checkpoint"]["best_checkpoint_metric"] == "bleu"


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


def test_the_sweep_on_slurm_asks_its_launcher_for_what_the_documentation_says(data: Path, tmp_path: Path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher needs hydra 1.1")
    words = replaced(documented("hydra/launcher=submitit_slurm"), **{"task.data": data, "task.unpruned_heads": 4})
    done = run(
        HYDRA, *words[1:], "--cfg", "hydra", "--package", "hydra.launcher", folder=tmp_path
    )  # composes and stops
    assert done.code == 0, done.err[-3000:]
    launcher = OmegaConf.create(done.out[done.out.index("# @package hydra.launcher") :])
    assert launcher._target_.endswith("SlurmLauncher")
    asked = {"partition": "gpu", "gpus_per_node": 1, "cpus_per_task": 4, "timeout_min": 600}
    assert {name: launcher[name] for name in asked} == asked
