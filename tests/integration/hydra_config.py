"""The training run of `commands.training` as a config file for fairseq-hydra-train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commands import OURS, ROOT, STOCK
from omegaconf import OmegaConf

MODEL = {f"{side}_{name}": 16 for side in ("encoder", "decoder") for name in ("embed_dim", "ffn_embed_dim")}
MODEL |= {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}


def write_config(
    folder: Path, data: Path, save: Path, *overrides: str, stock: bool = False, max_update: int = 10, **parts: Any
) -> list[str]:
    """Writes `run.yaml` and returns the command's arguments. `parts` swaps task, arch, criterion or optimizer by name."""
    names = {**(STOCK if stock else OURS), **parts}
    ours = {"cooldown_updates": 4} if names["arch"].startswith("dsp") else {}
    budget = {"unpruned_heads": 5} if names["task"] == OURS["task"] else {}
    rates = {"importance_lr": 0.2} if names["optimizer"] == OURS["optimizer"] else {}
    model = {**MODEL, "share_decoder_input_output_embed": True, "dropout": 0.1, **ours}
    config = {
        "common": {"user_dir": str(ROOT / "fairseq_dsp"), "cpu": True, "seed": 3, "no_progress_bar": True}
        | {"log_interval": 1, "log_format": "simple"},
        "task": {"_name": names["task"], "data": str(data), "source_lang": "aa", "target_lang": "bb", **budget},
        "model": {"_name": names["arch"], **model},
        "criterion": {"_name": names["criterion"], "label_smoothing": 0.1},
        "optimizer": {"_name": names["optimizer"], "adam_betas": "(0.9, 0.98)", "weight_decay": 0.0001, **rates},
        "lr_scheduler": {"_name": "inverse_sqrt", "warmup_updates": 5},
        "optimization": {"lr": [0.01], "max_update": max_update, "clip_norm": 0.0},
        "dataset": {"batch_size": 25, "required_batch_size_multiple": 1, "num_workers": 0, "disable_validation": True},
        "checkpoint": {"save_dir": str(save), "no_epoch_checkpoints": True},
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text("# @package _group_\n\n" + OmegaConf.to_yaml(OmegaConf.create(config)))
    place = ["hydra.run.dir=" + str(folder / "hydra")]
    return ["--config-dir", str(folder), "--config-name", "run", *place, *overrides]
