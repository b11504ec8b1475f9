"""Importance by the whole Fisher information of the units' gates: what units cost together (after Kwon et al., 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.scoring.joint_cost import removal_by_joint_cost
from fairseq_dsp.scoring.sentence_gates import mean_over_sentences

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject

MOST_UNITS = 8192  # whose pairs take half a gigabyte


class JointFisherScorer:
    """The place of a unit in the order in which units go, each time the one without which the loss grows least.

        F = E_x [ d(x) d(x)^T ],  d(x)_u = dL(x) / d xi_u;     cost of removing the set R = 1_R^T F 1_R;
        score_u = how many units have gone when u goes, itself included, of the greedy order of removal

    Half the cost is, to second order near an optimum of the weights, what the loss of a sentence grows by when all of R go
    (Kwon et al. 2022). Their rearrangement minimises it within a layer after the diagonal has decided how many
    units a layer keeps; here it decides over the whole model at once. Heads that do the same have derivatives that go
    together, so the second of them is dear once the first has gone, where the diagonal (`fisher`) would remove both. x, L and
    xi are those of `fisher`. Scores are ranks: they order units, of all kinds alike, and have no unit of measure; all are NaN where a
    derivative is not finite. F has a number for each pair of units.
    """

    name: ClassVar[str] = "joint-fisher"
    comparable: ClassVar[bool] = True
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        units = subject.grid.total
        if units > MOST_UNITS:
            raise Refusal(
                f"`--scorer {self.name}` must have at most {MOST_UNITS} units, for it keeps a number for each pair, but there are "
                f"{units}: take larger groups with `--ffn-group`."
            )
        information = mean_over_sentences(subject, live, _outer_products).expand(units, units)
        if not bool(torch.isfinite(information).all()):
            return torch.full((units,), torch.nan, dtype=torch.float64)  # ranks would hide it
        scores = torch.zeros(units, dtype=torch.float64)
        order = removal_by_joint_cost(information, live)
        scores[order] = torch.arange(1, len(order) + 1, dtype=torch.float64)
        return scores


def _outer_products(derivatives: Tensor) -> Tensor:
    wide = derivatives.double()
    return wide.T @ wide
