"""The installed console commands in processes of their own, from the checkout, as the README prints them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from commands import ROOT, SHAPE, heads_in

RECIPE = ["--user-dir", "fairseq_dsp", "--task", "translation_dsp", "--arch", "dsp_transformer_tiny"]
RECIPE += ["--share-decoder-input-output-embed", "--criterion", "label_smoothed_cross_entropy_dsp"]
RECIPE += ["--label-smoothing", "0.1", "--optimizer", "dsp_adam", "--adam-betas", "(0.9, 0.98)", "--lr", "5e-3"]
RECIPE += ["--lr-scheduler", "inverse_sqrt", "--warmup-updates", "4", "--importance-lr", "0.2"]
RECIPE += ["--initial-temperature", "0.1", "--final-temperature", "1e-8", "--cooldown-updates", "4"]
RECIPE += ["--dropout", "0.3", "--weight-decay", "0.0001", "--max-tokens", "600", "--max-epoch", "3"]
RECIPE += ["--eval-bleu", "--eval-bleu-remove-bpe", "--best-checkpoint-metric", "bleu", "--num-workers", "0"]
RECIPE += ["--maximize-best-checkpoint-metric", "--eval-bleu-args", '{"max_len_b": 12}', "--cpu", *SHAPE]


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_recipe_runs_from_training_to_translation_without_a_warning(data: Path, tmp_path: Path):
    save = tmp_path / "checkpoints"
    train = command("fairseq-train", data, *RECIPE, "--unpruned-heads", 5, "--save-dir", save)
    assert train.returncode == 0, train.stderr
    assert "Warning" not in train.stderr + train.stdout
    prune = command("fairseq-dsp-prune", save / "checkpoint_best.pt", tmp_path / "pruned.pt")
    assert prune.returncode == 0, prune.stderr
    assert "Warning" not in prune.stderr
    assert heads_in(tmp_path / "pruned.pt") == 5
    options = ["--user-dir", "fairseq_dsp", "--path", tmp_path / "pruned.pt", "--beam", 5, "--remove-bpe", "--cpu"]
    generate = command("fairseq-generate", data, *options, "--required-batch-size-multiple", 1, "--max-len-b", 12)
    assert generate.returncode == 0, generate.stderr
    assert sum(line.startswith("H-") for line in generate.stdout.splitlines()) == 37
    assert "Warning" not in generate.stderr


def test_a_refusal_is_exit_code_2_and_one_line_on_stderr(data: Path, tmp_path: Path):
    done = command("fairseq-train", data, *RECIPE, "--unpruned-heads", 80, "--save-dir", tmp_path / "save")
    assert done.returncode == 2
    sentence = "`--unpruned-heads` must be between 0 and 12 (the heads of this model), but is 80."
    assert done.stderr == f"fairseq_dsp: error: {sentence}\n"
