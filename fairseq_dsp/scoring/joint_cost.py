"""The order in which units go when what they cost together decides. Called by `fisher` and `joint_fisher`."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def removal_by_joint_cost(information: Tensor, live: Tensor) -> list[int]:
    """All live units, each next one that which adds least to the cost 1_R^T F 1_R of the set R removed so far.

    Ties remove the higher index first, as everywhere.

    Args:
        information: F, [n, n] float64, symmetric and positive semidefinite, finite.
        live: [n], 1 for units that are there.
    """
    rows = information.cpu().numpy()
    added = np.where(live.cpu().numpy() > 0, rows.diagonal(), np.inf)  # of each unit, given the units removed so far
    order: list[int] = []
    for _ in range(int((added < np.inf).sum())):
        unit = len(added) - 1 - int(np.argmin(added[::-1]))
        order.append(unit)
        added = added + 2 * rows[unit]
        added[unit] = np.inf
    return order
