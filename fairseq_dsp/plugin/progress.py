"""`HeadProgress`: what the log says of the heads while training. Kept by `task`, which hands its figures to fairseq's metrics.

Logged elsewhere: temperature and penalty by `criterion`, the norm of the importance's gradient by `optimizer`.
"""

from __future__ import annotations

from fairseq_dsp.modules.gates import HeadGates
from fairseq_dsp.units.layout import Layout


class HeadProgress:
    """Figures of the heads. Looks at the model only when asked to: it waits for the device.

    Attributes:
        figures: heads kept by attention type (`heads_enc`, `heads_dec`, `heads_cross`), the mean importance of all heads of
            a type (`importance_enc` and so on), and `heads_changed`, the number of heads that are kept and were not, or were
            and are not, since the last validation (before the first, since training started or was resumed). A swap of two
            heads counts as two.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._before: Layout | None = None

    def start(self, gates: HeadGates) -> None:
        """Training starts, or goes on with another epoch."""
        if self._before is None:
            self._before = self.look(gates)

    def look(self, gates: HeadGates) -> Layout:
        """Takes the figures anew and returns the heads that the model would keep now."""
        layout = gates.layout()
        before = layout if self._before is None else self._before
        self.figures = {f"heads_{stack}": kept for stack, (kept, _) in layout.by_type().items()}
        self.figures |= {f"importance_{stack}": mean for stack, mean in gates.mean_importance().items()}
        self.figures["heads_changed"] = sum(a != b for a, b in zip(layout.kept, before.kept, strict=True))
        return layout

    def validate(self, gates: HeadGates) -> None:
        """The heads that later figures are compared with; this validation's own are compared with the last one's."""
        self._before = self.look(gates)
