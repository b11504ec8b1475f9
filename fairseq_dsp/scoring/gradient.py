"""Importance by the gradient of a unit's gate (Michel, Levy and Neubig, NeurIPS 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fairseq_dsp.scoring.sentence_gates import mean_over_sentences

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject


class GradientScorer:
    """The expected size of the loss's derivative by a gate on the unit, normalised at every site.

        I_u = E_x |dL(x) / d xi_u|,    score_u = I_u / sqrt(sum of I_j^2 over the units j of the site)

    (Michel et al. 2019, eq. 2 and section 3.3.) x is one sentence pair, L(x) the sum of its target tokens' negative
    log-likelihood, without label smoothing and dropout; the absolute value is taken sentence by sentence and the
    expectation is the mean over sentences. The normalisation gives every site the same sum of squares, however many units it has:
    among four heads a score is large, among a thousand neurons small. So scores of different kinds are not comparable. Of whole
    sublayers, one a site, nothing is normalised.
    """

    name: ClassVar[str] = "gradient"
    comparable: ClassVar[bool] = False
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True
    heads_alone: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        scores = mean_over_sentences(subject, live, lambda derivatives: derivatives.abs().sum(dim=0)) * live
        for _, span in () if subject.sublayers else subject.grid.spans():
            norm = scores[span].norm()
            if norm > 0:
                scores[span] /= norm
        return scores
