"""Importance by the diagonal Fisher information of a unit's gate (Kwon et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.scoring.joint_cost import removal_by_joint_cost
from fairseq_dsp.scoring.sentence_gates import information_by_site, mean_over_sentences

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject


class FisherScorer:
    """The expected square of the loss's derivative by a gate on the unit; where neurons are units, rearranged at every site.

        f_u = E_x (dL(x) / d xi_u)^2;     of heads alone score_u = f_u

    (Kwon et al. 2022: the diagonal of the empirical Fisher information.) Near an optimum of the weights half of it
    is what the loss of a sentence grows by, to second order, when the unit goes. x is one sentence pair and L(x) the sum
    of its target tokens' negative log-likelihood, without label smoothing and dropout. The square is taken sentence by
    sentence, where the authors' code takes that of a batch's mean, which depends on the batch. Nothing is normalised: the
    scores of all sites and kinds are in the same unit, nats squared, and so comparable.

    The diagonal takes no notice of units that do the same, and among neurons there are many. So where neurons are units, a site's
    values f_u, smallest first, are given to its units in the order in which these go when each time the one goes that adds least to
    what all of the site's removed units cost together, 1_R^T F_site 1_R with F_site = E_x [d(x) d(x)^T] (see `joint_fisher`). A site
    thus keeps as many units as the diagonal says, whatever the budget, and those that F_site says. Kwon et al. rearrange likewise
    after they have counted; they start from the diagonal's choice for one count and exchange units, where an order serves every
    budget. Scores of heads alone are not rearranged, and are what they have always been.
    """

    name: ClassVar[str] = "fisher"
    comparable: ClassVar[bool] = True
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        if subject.grid.noun == "heads":
            return (
                mean_over_sentences(subject, live, lambda derivatives: derivatives.double().square().sum(dim=0)) * live
            )
        scores = torch.zeros(subject.grid.total, dtype=torch.float64)
        information = information_by_site(subject, live)
        for site, span in subject.grid.spans():
            if not bool(torch.isfinite(information[site]).all()):
                scores[span] = torch.nan  # an order would hide it
                continue
            order = removal_by_joint_cost(information[site], live[span])
            scores[span][order] = information[site].diagonal()[order].sort().values
        return scores
