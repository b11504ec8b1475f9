"""`--importance-from`: importance that begins with the scores of the weights that training starts from. Called by `task`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.spectral import folded, plain_names
from fairseq_dsp.methods import METHODS, method_class
from fairseq_dsp.options.records import TrainingOptions
from fairseq_dsp.options.starting import Start, starting_point
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.fingerprint import fingerprint

if TYPE_CHECKING:
    from fairseq_dsp.units.score_file import ScoreFile

_OPTION = flag("importance_from")

# Standard deviation of the importance at the start: differences of importance against Gumbel noise, whose own is 1.28.
DEVIATION = 2.0


def objections_to_importance_from(training: TrainingOptions, config: PruningConfig) -> list[str]:
    """Sentences on `--importance-from` that need no model; empty if it may be used, or is not given."""
    path = config.importance_from
    if path is None:
        return []
    if not method_class(config).learned or method_class(config).measures:
        owners = ", ".join(name for name, method in METHODS.items() if method.learned and not method.measures)
        return [f"{_OPTION} belongs to {owners}, which learn importance, but is {path}."]
    start = starting_point(training)
    if start is None:
        return [
            f"{_OPTION} must be scores of what training starts from (`--finetune-from-model`), but nothing is given."
        ]
    if start.chooses_heads and not _goes_on(start, path):
        return [f"{_OPTION} must be for a start without importance, but {start.path} has its own, and it is {path}."]
    return []


def start_importance(training: TrainingOptions, config: PruningConfig, model: DspTransformerModel) -> None:
    """Gives a fresh model's importance the order of the scores, in place; a training that goes on has it in its checkpoint.

    Raises:
        Refusal: the file is no score file, or of other heads or weights.
    """
    start = starting_point(training)
    gates = model.head_gates
    if config.importance_from is None or gates is None or start is None or start.chooses_heads:
        return
    from fairseq_dsp.units.score_file import read_scores  # what a plug-in imports, it imports for every fairseq command

    scores = read_scores(config.importance_from, _OPTION)
    if scores.layout != model.layout:
        noun = model.layout.grid.noun
        raise Refusal(
            f"{_OPTION} must be of a model with the same {noun} ({model.layout}), but are of {scores.layout}."
        )
    if scores.chosen != gates.chosen or len(scores.units) > 1 and not scores.comparable:
        raise Refusal(
            f"{_OPTION} must be scores of all units that are gated, and of kinds that can be compared, but are of "
            f"{' and '.join(scores.units)} by `--scorer {scores.scorer}`."
        )
    weights = dict(start.state["model"])
    model.upgrade_state_dict(weights)
    weights = folded(weights)
    named = [(name, weights[name]) for name in plain_names(name for name, _ in model.weights()) if name in weights]
    if (objection := scores.objection_to_weights(fingerprint(named), _OPTION, start.path)) is not None:
        raise Refusal(objection)
    with torch.no_grad():
        gates.importance.copy_(importance_of(_densities(scores, gates.budget)))


def _densities(scores: ScoreFile, budget: Budget | None) -> Tensor:
    """What units are ordered by, [H] float64: importance is worth per cost (`units/weighted`), and so are places in an order, where units are cut by
    them. Other scores are worth, and costs have to be divided by.
    """
    ranking = scores.ranking()
    if budget is None or budget.is_even or not scores.is_sum:
        return ranking
    return ranking / torch.tensor(budget.costs, dtype=torch.float64)


def importance_of(scores: Tensor) -> Tensor:
    """Importance in the order of the scores, as even as a normal distribution's quantiles, whatever the scale of a scorer is.

        w_h = 2 · Phi^-1((H - r_h - 1/2) / H),   r_h the heads that matter more

    Args:
        scores: [H]; of equal ones the first counts as the larger, as where heads are cut.

    Returns:
        [H] float64.
    """
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[torch.sort(-scores.double(), stable=True).indices] = torch.arange(len(scores), dtype=torch.float64)
    return DEVIATION * torch.special.ndtri((len(scores) - ranks - 0.5) / len(scores))


def _goes_on(start: Start, path: str) -> bool:
    """Whether the checkpoint was trained with this start, so that going on needs none."""
    return start.options is not None and PruningConfig.from_model_cfg(start.options).importance_from == path
