"""Importance by a small network over attention maps, trained once on other models (after SMP, Zhang et al., AI Open 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.scoring.map_features import FEATURES, map_features
from fairseq_dsp.scoring.passes import refuse_other_than_heads
from fairseq_dsp.units.scorer_model import ScorerModel, read_scorer_model

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject


NUMBERS = ("means", "scales", "hidden", "biases", "output")  # of a network, as a `ScorerModel` names them


def network(features: Tensor, means: Tensor, scales: Tensor, hidden: Tensor, biases: Tensor, output: Tensor) -> Tensor:
    """v^T tanh(W (x - mean) / scale + b) of every head: [H].

    Args:
        features: x, [H, F].
        means, scales: by which they are standardised, [F] each.
        hidden: W, [N, F].
        biases: b, [N].
        output: v, [N].
    """
    return torch.tanh((features - means) / scales @ hidden.T + biases) @ output


class OneShotScorer:
    """What a network trained by `fairseq-dsp-train-scorer` says of the head's features.

        score_h = v^T tanh(W (x_h - mean) / scale + b)

    x_h are the features of the head's attention over all sentences (`map_features`), which do not depend on their length, nor on the number
    of layers and heads; so a network scores models that it never saw. One pass, and no gradient. After Zhang et al. (2020), whose
    network is a convolution over maps of 128 x 128 of BERT; what is ours is in design note 17.

    Args:
        scorer_model: the network's file.

    Raises:
        Refusal: it is missing, of another kind, damaged, or of other features than this version's.
    """

    name: ClassVar[str] = "one-shot"
    comparable: ClassVar[bool] = False
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True
    heads_alone: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("scorer_model",)

    def __init__(self, scorer_model: str | None = None) -> None:
        if scorer_model is None:
            raise Refusal("`--scorer-model` must be given for `--scorer one-shot`: a file of fairseq-dsp-train-scorer.")
        self.model: ScorerModel = read_scorer_model(scorer_model)
        if self.model.features != FEATURES:
            raise Refusal(
                f"`--scorer-model` must be of the features of this version, {', '.join(FEATURES)}, but {scorer_model} is of "
                f"{', '.join(self.model.features)}."
            )

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        refuse_other_than_heads(subject, self.name)
        numbers = {name: torch.tensor(getattr(self.model, name), dtype=torch.float64) for name in NUMBERS}
        return network(map_features(subject, live), **numbers) * live
