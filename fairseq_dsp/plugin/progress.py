"""`HeadProgress`: what the log says of the heads while training. Kept by `task`, which hands its figures to fairseq's metrics.

Logged elsewhere: temperature and penalty by `criterion`, the norm of the importance's gradient by `optimizer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.modules.gates import HeadGates
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.options.kinds import chosen_of
from fairseq_dsp.plugin.signals import Signals
from fairseq_dsp.units.budget import COUNT, Budget
from fairseq_dsp.units.costs import LATENCY, TIME_PARTS
from fairseq_dsp.units.kinds import KINDS
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.prices import read_prices
from fairseq_dsp.units.request import written
from fairseq_dsp.units.sublayers import SUBLAYERS

if TYPE_CHECKING:
    from fairseq_dsp.plugin.model import DspTransformerModel

logger = logging.getLogger(__name__)


class HeadProgress:
    """Figures of the heads. Looks at the model only when asked to: it waits for the device.

    Attributes:
        figures: heads kept by attention type (`heads_enc`, `heads_dec`, `heads_cross`; where neurons are units too, groups kept of each
            side, `heads_ffn-enc` and `heads_ffn-dec`, and units of each kind, `kept_heads` and `kept_ffn`; `kept_sublayers` where these are chosen), the mean importance of all heads of
            a type (`importance_enc` and so on), and `heads_changed`, the number of heads that are kept and were not, or were
            and are not, since the last validation (before the first, since training started or was resumed). A swap of two
            heads counts as two. While heads are chosen also those of `signals`.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._before: Layout | None = None
        self._signals = Signals()
        self._told = False

    def start(self, gates: HeadGates) -> None:
        """Training starts, or goes on with another epoch."""
        if self._before is None:
            self._before = self.look(gates)

    def note(self, gates: HeadGates, gradient: Tensor | None, update: int) -> None:
        """Takes in an update that the importance has just made; does not wait for the device.

        Args:
            gradient: of the importance; None where it had none.
            update: number of updates done.
        """
        if gradient is not None and not gates.method.measures:
            self._signals.note(gradient, gates.decided_mask, update)

    def look(self, gates: HeadGates) -> Layout:
        """Takes the figures anew and returns the heads that the model would keep now."""
        layout = gates.layout()
        before = layout if self._before is None else self._before
        self.figures = {f"heads_{stack}": kept for stack, (kept, _) in layout.by_type().items()}
        if len(kinds := layout.by_kind()) > 1:
            self.figures |= {f"kept_{kind.name}": kinds[kind.noun][0] for kind in KINDS if kind.noun in kinds}
        self.figures |= {f"importance_{stack}": mean for stack, mean in gates.mean_importance().items()}
        self.figures["heads_changed"] = sum(a != b for a, b in zip(layout.kept, before.kept, strict=True))
        if gates.method.measures and layout.count:
            self.figures["norm_threshold"] = gates.ranking()[gates.decided_mask() > 0].min().item()
        if gates.chosen.whole:
            self.figures[f"kept_{SUBLAYERS.name}"] = int(gates.decided_mask().sum())
        if not gates.is_fixed:
            self.figures |= self._signals.read(gates.decided_mask())
        elif not self._told:
            self._tell(gates)
        return layout

    def _tell(self, gates: HeadGates) -> None:
        """Says once what a budget that is not of units has come to."""
        self._told = True
        _tell_of(gates.budget, gates.decided_mask().tolist())

    def validate(self, gates: HeadGates) -> None:
        """The heads that later figures are compared with; this validation's own are compared with the last one's."""
        self._before = self.look(gates)


def tell_what_is_given(model: DspTransformerModel, config: PruningConfig) -> None:
    """Says what a budget that is not of units has come to in a model that is built with what it keeps, and chooses nothing any more."""
    if model.head_gates is not None or config.prices is None or config.head_layout is None:
        return
    full = chosen_of(config, Layout.full(model.layout.grid))
    marks = [model.layout.marks(site) for site in full.grid.sites]
    kept = [float(any(each)) for each in marks] if full.whole else [float(mark) for each in marks for mark in each]
    _tell_of(read_prices(config.prices, full.grid), kept)


def _tell_of(budget: Budget | None, marks: Sequence[float]) -> None:
    if budget is None or budget.measure == COUNT:
        return
    slack, cheapest = budget.room(marks)
    off = "" if cheapest == float("inf") else f", the cheapest that is off costs {_said(cheapest, budget.measure)}"
    logger.info(
        "what is chosen among is fixed, and costs %s of at most %s; slack %s%s",
        _said(budget.limit - slack, budget.measure),
        _said(budget.limit, budget.measure),
        _said(slack, budget.measure),
        off,
    )


def _said(cost: float, measure: str) -> str:
    """A cost of a budget, for people; of measured time the share of what the dense model takes, for a checkpoint does not say how long that is."""
    return f"{cost / TIME_PARTS:.2%} of the dense model's time" if measure == LATENCY else written(cost, measure)


def at_each_budget(
    gates: NestedGates, step: Callable[[], tuple[Any, Any, dict[str, Any]]]
) -> tuple[Any, Any, dict[str, Any]]:
    """A batch's validation at every budget that is reported: sums, of which fairseq makes means over all budgets.

    Args:
        step: the validation of the batch, with the heads that the gates say.

    Returns:
        loss, sample size and log of fairseq; the log has the negative log-likelihood at each (`nll_k4`) too, and BLEU's counts of all
        translations.
    """
    loss, size, logs = 0.0, 0, {}
    for k in gates.nested.reported(gates.grid.total):
        with gates.at(k):
            one, tokens, logged = step()
        loss, size = loss + one, size + tokens
        for name, value in logged.items():
            logs[name] = value + logs.get(name, 0)
        logs[f"nll_k{k}"] = logged["nll_loss"]
        logs |= {"nsentences": logged["nsentences"], "budget_tokens": logged["ntokens"]}
    return loss, size, logs
