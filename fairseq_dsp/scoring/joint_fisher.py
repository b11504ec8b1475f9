"""Importance by the whole Fisher information of the heads' gates: what heads cost together (after Kwon et al., 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fairseq_dsp.scoring.sentence_gates import mean_over_sentences

if TYPE_CHECKING:
    from fairseq_dsp.scoring.subject import Subject


class JointFisherScorer:
    """The place of a head in the order in which heads go, each time the one without which the loss grows least.

        F = E_x [ d(x) d(x)^T ],  d(x)_h = dL(x) / d xi_h;     cost of removing the set R = 1_R^T F 1_R;
        score_h = how many heads have gone when h goes, itself included, of the greedy order of removal

    Half the cost is, to second order near an optimum of the weights, what the loss of a sentence grows by when all of R go
    (Kwon et al. 2022). Their rearrangement minimises it within a layer after the diagonal has decided how many
    heads a layer keeps; here it decides over the whole model at once. Heads that do the same have derivatives that go
    together, so the second of them is dear once the first has gone, where the diagonal (`fisher`) would remove both. x, L and
    xi are those of `fisher`. Scores are ranks: they order heads and have no unit; all are NaN where a
    derivative is not finite.
    """

    name: ClassVar[str] = "joint-fisher"
    reads_data: ClassVar[bool] = True
    takes_seed: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ()

    def score(self, subject: Subject, live: Tensor) -> Tensor:
        heads = subject.grid.total
        information = mean_over_sentences(subject, live, _outer_products).expand(heads, heads)
        if not bool(torch.isfinite(information).all()):
            return torch.full((subject.grid.total,), torch.nan, dtype=torch.float64)  # ranks would hide it
        scores = torch.zeros(subject.grid.total, dtype=torch.float64)
        order = removal_by_joint_cost(information, live)
        scores[order] = torch.arange(1, len(order) + 1, dtype=torch.float64)
        return scores


def _outer_products(derivatives: Tensor) -> Tensor:
    wide = derivatives.double()
    return wide.T @ wide


def removal_by_joint_cost(information: Tensor, live: Tensor) -> list[int]:
    """All live heads, each next one that which adds least to the cost 1_R^T F 1_R of the set R removed so far.

    Ties remove the higher index first, as everywhere.

    Args:
        information: F, [H, H] float64, symmetric and positive semidefinite.
        live: [H], 1 for heads that are there.
    """
    left = [head for head in range(len(live)) if live[head]]
    added = information.diagonal().clone()  # of each head, given the heads removed so far
    order: list[int] = []
    while left:
        head = min(left, key=lambda each: (float(added[each]), -each))
        left.remove(head)
        order.append(head)
        added += 2 * information[head]
    return order
