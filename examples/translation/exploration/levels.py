"""Do heads and neurons together make a better small model than either alone? Choices of one size, in parameters.

All choices follow from one scoring of the trained model (`fisher`, which compares units of all kinds) and from the exact knapsack; what
is kept is fitted to what all units said, and then trained like every other arm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fairseq_dsp.api.score_work import subject_of
from fairseq_dsp.options.costing import costs_of
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.scoring import SCORERS
from fairseq_dsp.units.costs import PARAMETERS, Costs
from fairseq_dsp.units.floors import floors_of, meets
from fairseq_dsp.units.groups import part_of, with_groups, with_part
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import KIND_OF
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.neurons import NEURONS
from fairseq_dsp.units.selection import keep_best

from .data import Batch, Data
from .models import build
from .setting import Job, Setting
from .training import Training

GROUP = 16  # neurons of a unit
LEVELS = ("joint", "heads", "ffn", "split", "random")
SMALL, HALF = "dense-small", 0.5
_KINDS = (HEADS.name, NEURONS.name)


def all_units(model: DspTransformerModel) -> Layout:
    """All heads of a dense model and all its neurons, in groups."""
    return Layout.full(with_groups(model.layout.grid, model.neurons, GROUP))


def choose(model: DspTransformerModel, batches: Sequence[Batch], seed: int, share: float, level: str) -> Layout:
    """What stays of a dense model.

    Args:
        share: of the parameters of all units, which what stays has at most.
        level: `heads` or `ffn`, which go alone; `split`, of each kind the same share stays; `joint`, the best of both together; `random`,
            of each kind as many units as in `joint`, drawn uniformly, with at least one head of cross-attention.
    """
    full = all_units(model)
    costs = costs_of(model, PARAMETERS, layout=full)
    limit = int(share * costs.prunable)
    subject = subject_of(model, batches, seed, full.grid)
    scores = SCORERS["fisher"]().score(subject, torch.ones(full.grid.total)).double().tolist()
    if level in ("joint", "random"):
        best = keep_best(scores, full, costs, limit, floors_of(full.grid, 1))
        return best if level == "joint" else _drawn(best, seed)
    whole = {kind: costs.counting(lambda site, kind=kind: KIND_OF[site.stack].name == kind).prunable for kind in _KINDS}
    layout = full
    for kind in _KINDS if level == "split" else (level,):
        room = int(share * whole[kind]) if level == "split" else limit - (costs.prunable - whole[kind])
        layout = with_part(layout, _best_of(kind, scores, full, costs, room))
    return layout


def _best_of(kind: str, scores: Sequence[float], full: Layout, costs: Costs, limit: int) -> Layout:
    """The best units of a kind that such a limit buys."""
    part = part_of(full, [kind])
    own = [score for site, span in full.grid.spans() if site in part.grid.sites for score in scores[span]]
    return keep_best(own, part, costs.of_part(full, part.grid), limit, floors_of(part.grid, 1))


def _drawn(like: Layout, seed: int) -> Layout:
    layout = like
    for kind in _KINDS:
        part, draw = part_of(like, [kind]), 1000 * seed
        floors = floors_of(part.grid, 1)
        while True:
            drawn = Layout.full(part.grid).random_subset(part.count, draw)
            if meets(drawn.kept, floors):
                break
            draw += 1
        layout = with_part(layout, drawn)
    return layout


def train_small(setting: Setting, data: Data, seed: int) -> DspTransformerModel:
    """A dense model of another setting, trained from scratch with as many updates as the larger one had before an arm began."""
    model = build(setting, data, seed)
    training = Training(model, data, seed, setting.dense_updates, setting.lr, setting.warmup, "isqrt")
    for _ in range(setting.dense_updates):
        training.step()
    return model


def parameters_of_share(model: DspTransformerModel, share: float) -> int:
    """Of a model that such a share of the parameters of all units is left of."""
    costs = costs_of(model, PARAMETERS, layout=all_units(model))
    return costs.dense - costs.prunable + int(share * costs.prunable)


def share_of_layers(setting: Setting, layers: int) -> float:
    """Share of the parameters of all units that a model of fewer layers has: every layer has the same."""
    return layers / setting.layers


def levels(setting: Setting, seeds: Sequence[int], lr: float) -> Iterator[Job]:
    """Every level, at the size of a dense model that has a layer less, and at half; smaller dense models of these sizes. Two seeds.

    Neurons alone do not make up half.
    """
    layers = setting.layers - 1
    most = share_of_layers(setting, layers)
    for share, some in ((most, LEVELS), (HALF, [level for level in LEVELS if level != "ffn"])):
        for seed in seeds[:2]:
            for level in some:
                yield Job(level, None, seed, "levels", {"level": level, "recut": 1}, lr, share=share)
    for seed in seeds[:2]:
        yield Job(SMALL, None, seed, "small", {"layers": layers}, lr, share=most)
        yield Job(SMALL, None, seed, "small", {}, lr, share=HALF)
