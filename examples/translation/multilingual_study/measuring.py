"""From what finished runs left to lines of results, and to figures of rankings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from reproduction.steps import Run
from sacrebleu.metrics import BLEU, CHRF
from scipy import stats
from torch import Tensor

from fairseq_dsp.analysis.translations import read_translations
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.floors import floors_of
from fairseq_dsp.units.score_file import ScoreFile, read_scores

from .text import reference


def measure(run: Run, out: Path, stored: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A line for every pair that a run was tested on.

    Args:
        stored: the texts' name of a directed pair.
    """
    direction, seed = run.name.split("-")[:2]
    model = load_model(read_checkpoint(str(out / run.deployed)))
    layout = model.deployed_layout()
    for step in run.steps:
        if not step.name.startswith("generate."):
            continue
        pair = step.name.removeprefix("generate.")
        references = reference(out, stored[pair], pair.split("-")[1]).read_text(encoding="utf-8").splitlines()
        printed = read_translations(
            (out / f"runs/{run.name}/{step.name}.log").read_text(encoding="utf-8"), len(references)
        )
        tuned = run.name.partition("-on-")[2] or None
        metrics = {"bleu": BLEU(), "chrf": CHRF()}
        scores = {name: metric.corpus_score(printed.hypotheses, [references]).score for name, metric in metrics.items()}
        yield {
            "direction": direction,
            "seed": int(seed[1:]),
            "arm": run.method,
            "tuned": tuned,
            "pair": pair,
            "kept": layout.count,
            "total": layout.grid.total,
            "parameters": model.weight_count(),
            **{name: round(score, 3) for name, score in scores.items()},
            "signatures": {name: str(metric.get_signature()) for name, metric in metrics.items()},
            "layout": str(layout),
            "run": run.name,
        }


def lowest_layout(scores: ScoreFile, k: int) -> str:
    """The k heads that matter least, but for the one of cross-attention that stays whatever chooses."""
    least = ScoreFile(**{**vars(scores), "scores": tuple(-score for score in scores.scores)})
    return str(least.keep_top(k, floors_of(scores.layout.surviving, 1)))


@dataclass(frozen=True)
class Likeness:
    """How alike two rankings are.

    Attributes:
        rho: Spearman's, over all heads by their place.
        sorted_rho: likewise after the scores of every sublayer are sorted: of what a sublayer is worth, whatever its heads' order, which
            says nothing where the models were trained apart.
        chance: what `sorted_rho` is on the mean where the sublayers of one model are shuffled. It is far above 0: in every sublayer the
            heads go from the least to the most important.
        overlap: the share of K that the top K of both have in common.
    """

    rho: float
    sorted_rho: float
    chance: float
    overlap: float


def likeness(one: ScoreFile, other: ScoreFile, k: int) -> Likeness:
    """How alike two rankings of models of one size are, all of whose sublayers have as many heads."""
    values = [torch.tensor(file.scores, dtype=torch.float64) for file in (one, other)]
    sites = len(one.layout.surviving.sites)
    ordered = [each.view(sites, -1).sort().values for each in values]
    tops = [set(each.topk(k).indices.tolist()) for each in values]
    # every sublayer meets every other one once: the mean over all orders of the sublayers
    shuffled = [_rho(ordered[0], ordered[1].roll(shift, 0)) for shift in range(sites)]
    return Likeness(_rho(*values), _rho(*ordered), sum(shuffled) / sites, len(tops[0] & tops[1]) / k)


def _rho(one: Tensor, other: Tensor) -> float:
    return float(stats.spearmanr(one.flatten().tolist(), other.flatten().tolist()).statistic)


def mean_likeness(found: Sequence[Likeness]) -> Likeness | None:
    if not found:
        return None
    return Likeness(*(sum(each) / len(found) for each in zip(*map(astuple, found), strict=True)))


def rankings(out: Path, direction: str, seed: int, pairs: Sequence[str], folder: str = "pairs") -> dict[str, ScoreFile]:
    """The score files of a model, by pair; those that are there.

    Args:
        folder: `pairs`, or a half of the data.
    """
    paths = {pair: out / f"runs/{direction}-s{seed}-scores/{folder}/scores.{pair}.json" for pair in pairs}
    return {pair: read_scores(str(path)) for pair, path in paths.items() if path.is_file()}
