"""`Signals`: whether the importance learns, read off its gradients. Kept by `progress`.

What an update adds stays on the device. It is read where the log is written, which waits for the device anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 100  # updates that figures are about

_LIVING = 0.01  # of the largest gradient


class Signals:
    """Figures of blocks of 100 updates, by the number of the update; of the block under way until the first is complete.

    They begin anew when a training is resumed.

        importance_live    mean share of heads whose gradient is above a hundredth of the largest
        importance_snr     median over heads of |mean| / root mean square of the gradient; of pure noise about 0.07 in 100 updates
        heads_swapped      heads that are kept at the end of the block and were not at its begin (the first one's: after its first update)
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._kept: Tensor | None = None
        self._complete: Tensor | None = None

    def note(self, gradient: Tensor, kept: Callable[[], Tensor], update: int) -> None:
        """Adds an update.

        Args:
            gradient: of the importance, [H], at any scale that is constant; one that is not finite does not count.
            kept: tells the heads that would be kept now, 0/1 [H]; asked twice a block.
            update: number of updates done with this one.
        """
        gradient = gradient.detach().double()
        finite = torch.isfinite(gradient).all()
        gradient = gradient.where(finite, 0.0)
        size = gradient.abs()
        live = ((size > _LIVING * size.max()) & finite).double().mean()
        added = (finite.double(), gradient, gradient.square(), live)
        self._sums = added if self._sums is None else tuple(map(torch.add, self._sums, added))  # type: ignore[assignment]
        if self._kept is None:
            self._kept = kept().clone()
        if update % BLOCK == 0:
            now = kept().clone()
            self._complete = self._figures(now)
            self._sums, self._kept = None, now

    def read(self, kept: Tensor) -> dict[str, float]:
        """The figures by name; none before the first update. Waits for the device."""
        found = self._complete
        if found is None and self._sums is not None:
            found = self._figures(kept)
        if found is None:
            return {}
        return dict(zip(("importance_live", "importance_snr", "heads_swapped"), found.tolist(), strict=True))

    def _figures(self, kept: Tensor) -> Tensor:
        assert self._sums is not None
        assert self._kept is not None
        updates, total, squares, live = self._sums
        mean = total / updates.clamp(min=1)
        spread = (squares / updates.clamp(min=1)).sqrt()
        ratio = (mean.abs() / spread.clamp(min=torch.finfo(torch.float64).tiny)).quantile(0.5)
        swapped = ((kept > 0) & (self._kept == 0)).sum()
        return torch.stack([live / updates.clamp(min=1), ratio, swapped.to(ratio)])
