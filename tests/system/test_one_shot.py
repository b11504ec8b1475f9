"""The one-shot scorer on the sample corpus: trained on one model, it must cut another, of another size, better than chance."""

from __future__ import annotations

import dataclasses
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

import fairseq_dsp
from fairseq_dsp.checkpoints.batches import draw_batches, loss_per_token
from fairseq_dsp.plugin.building import ungated

EXAMPLE = Path(__file__).parents[2] / "examples" / "translation"
SEEDS = (1, 2, 3, 4, 5)
OTHER_LAYERS = 3
KEPT = 18  # of its 36 heads
FEW = {"batches": 20, "max_tokens": 800, "cpu": True}


def dense_models(folder: Path) -> tuple[Path, Path, Path]:
    """The data folder of the sample corpus, the demo's dense model of 2 + 2 layers, and one of 3 + 3 with another seed."""
    sys.path.insert(0, str(EXAMPLE))  # as running the script does
    try:
        names: dict[str, Any] = runpy.run_path(str(EXAMPLE / "demo.py"))
    finally:
        sys.path.remove(str(EXAMPLE))
    demo = names["Demo"](names["get_parser"]().parse_args(["--output", str(folder / "demo")]))
    demo._clear_folder()
    demo._prepare_text()
    one = demo._train("dense", demo._dense_options(), 1)
    demo.recipe = dataclasses.replace(demo.recipe, layers=OTHER_LAYERS)
    return folder / "demo/data-bin", one, demo._train("other", demo._dense_options(), 2)


def loss_of_cut(scores: fairseq_dsp.ScoreFile, model: Path, data: Path, folder: Path) -> float:
    """Nats a word on the validation set, of the model with its best heads by these scores and no update."""
    fairseq_dsp.prune(model, folder / "cut.pt", scores=scores, unpruned_heads=KEPT, force=True)
    cut, options, _ = ungated(str(folder / "cut.pt"))
    return loss_per_token(cut, draw_batches(cut, options, str(data), "valid", None, 2000, 1))


def losses_by_seed(data: Path, one: Path, other: Path, folder: Path) -> dict[int, tuple[float, float]]:
    """Loss of the other model cut by a scorer trained on the one, and by chance; both of the same seed."""
    losses = {}
    for seed in SEEDS:
        fairseq_dsp.train_scorer([one], data, folder / "scorer.json", steps=200, seed=seed, force=True, **FEW)
        network = {"scorer_model": folder / "scorer.json"}
        learned = fairseq_dsp.score(other, "one-shot", data, seed=seed, **network, **FEW)
        drawn = fairseq_dsp.score(other, "random", seed=seed)
        losses[seed] = tuple(loss_of_cut(scores, other, data, folder) for scores in (learned, drawn))
    return losses


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_scorer_cuts_a_model_that_it_never_saw_better_than_chance(tmp_path: Path) -> None:
    losses = losses_by_seed(*dense_models(tmp_path), tmp_path)
    # one draw in five may be a lucky one
    assert sum(learned < drawn for learned, drawn in losses.values()) >= 4, losses
    learned, drawn = (statistics.mean(column) for column in zip(*losses.values(), strict=True))
    assert learned < 0.8 * drawn, losses
