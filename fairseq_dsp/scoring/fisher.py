"""Importance by the diagonal Fisher information of a head's gate (Kwon et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fairseq_dsp.scoring.sentence_gates import mean_over_sentences

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject


class FisherScorer:
    """The expected square of the loss's derivative by a gate on the head.

        score_h = E_x (dL(x) / d xi_h)^2

    (Kwon et al. 2022: the diagonal of the empirical Fisher information.) Near an optimum of the weights half of it
    is what the loss of a sentence grows by, to second order, when the head goes. x is one sentence pair and L(x) the sum
    of its target tokens' negative log-likelihood, without label smoothing and dropout. The square is taken sentence by
    sentence, where the authors' code takes that of a batch's mean, which depends on the batch. Nothing is normalised: the
    scores of all sites are in the same unit, nats squared, and so comparable.
    """

    name: ClassVar[str] = "fisher"
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ()

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        return mean_over_sentences(subject, live, lambda derivatives: derivatives.double().square().sum(dim=0)) * live
