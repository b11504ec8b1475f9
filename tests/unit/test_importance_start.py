"""Importance that begins with scores: in which order, where units cost differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import build, build_gated

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.options.records import TrainingOptions
from fairseq_dsp.plugin.importance_start import start_importance
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.score_file import ScoreFile

FULL = "enc:111.111/dec:111.111/cross:111.111"
NEURONS = {7: "/ffn-enc:11.11/ffn-dec:11.11", 2: "/ffn-enc:1111111.1111111/ffn-dec:1111111.1111111"}
_FACTS: dict[str, Any] = {
    "version": "1", "order": None, "iterative": None, "subset": None, "batches": None, "max_tokens": None, "sentences": None, "seed": 1,
    "checkpoint": "dense.pt",
}  # fmt: skip


def started(folder: Path, budget: str, prune: str, group: int, scorer: str = "fisher") -> tuple[Any, ScoreFile]:
    """A model whose importance has begun with scores, and these."""
    options = {"budget": budget, "prune": prune, "ffn_group": group, "sentence": "9,8,5" if "macs" in budget else None}
    model = build_gated("dsp", None, relaxation="projection", importance_from=str(folder / "scores.json"), **options)
    count = model.head_gates.grid.total
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(group)).tolist()
    scores = (
        tuple(float(place) for place in torch.tensor(drawn).argsort()) if scorer == "joint-fisher" else tuple(drawn)
    )
    layout, kinds = Layout.parse(FULL + NEURONS[group]), tuple(prune.split(","))
    file = ScoreFile(scorer=scorer, layout=layout, scores=scores, units=kinds, **_FACTS)
    (folder / "scores.json").write_text(file.text())
    torch.save({"model": build(head_layout=FULL).state_dict()}, folder / "dense.pt")
    training = TrainingOptions(save_dir=str(folder / "none"), finetune_from_model=str(folder / "dense.pt"))
    start_importance(training, PruningConfig.from_model_cfg(model.args), model)
    return model, file


@pytest.mark.parametrize("prune", ["heads,ffn", "sublayers"])
@pytest.mark.parametrize("budget", ["parameters=0.8", "macs=0.8"])
@pytest.mark.parametrize("group", [7, 2])
def test_it_is_worth_per_cost_where_units_cost_differently(group, budget, prune, tmp_path):
    model, file = started(tmp_path, budget, prune, group)
    importance, costs = model.head_gates.importance.tolist(), model.head_gates.budget.costs
    assert len(set(costs)) > 1
    worth = [score / cost for score, cost in zip(file.scores, costs, strict=True)]
    order = sorted(range(len(worth)), key=lambda unit: -worth[unit])
    assert order == sorted(range(len(worth)), key=lambda unit: -importance[unit])


@pytest.mark.parametrize(("budget", "scorer"), [("12", "fisher"), ("heads=9,ffn=0.5", "fisher"), ("parameters=0.8", "joint-fisher")])  # fmt: skip
def test_it_is_in_the_order_of_scores_that_are_none_or_where_units_are_counted(budget, scorer, tmp_path):
    model, file = started(tmp_path, budget, "heads,ffn", 2, scorer)
    importance = model.head_gates.importance.tolist()
    by_score = sorted(range(len(importance)), key=lambda unit: (-file.scores[unit], unit))
    assert by_score == sorted(range(len(importance)), key=lambda unit: -importance[unit])
