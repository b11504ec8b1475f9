"""`HeadGates`: the importance variables of a model and the gates they yield. Built by `model`, read by every site.

One module a model owns all variables; a sublayer holds a `SiteGates`, a plain object that asks it for a slice (a
shared module on every layer would appear in the state once a layer). In training the gates are drawn once a forward
pass of the model. In evaluation they are a pure function of the parameters, because `fairseq-generate` calls encoder
and decoder and never the model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_dsp.errors import Refusal, exit_on_refusal
from fairseq_dsp.methods import Method
from fairseq_dsp.methods.decision import decided
from fairseq_dsp.modules.unit_norms import UnitNorms
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.chosen import Chosen, default_kinds
from fairseq_dsp.units.floors import Floors
from fairseq_dsp.units.layout import Grid, Layout, Site
from fairseq_dsp.units.norms import RELATIVE

logger = logging.getLogger("fairseq_dsp.gates")  # as logs have always named it

# fairseq copies this attribute of a parameter into its float32 copies, so the optimizer can tell by it.
IMPORTANCE_GROUP = "head_importance"

# Names of importance variables and marks in a model's state begin so.
STATE_PREFIX = "head_gates."

_UNDECIDED = -1.0


class HeadGates(nn.Module):
    """Importance variables and gates of all heads of a model.

    Args:
        grid: the heads.
        budget: what those that the deployed model keeps cost together; None for the number that the method finds itself.
        method: how gates are made from importance while training.
        floors: groups of heads of which some must stay, whatever their importance; see `floors`.

    Attributes:
        chosen: what the grid is of a model: by default all of its units.
        importance: [H] float32, whatever the model's precision.
        norms: what units add to the residual stream; None for a method that does not measure it.
        fixed_mask: [H] float32, the chosen heads (0/1) once the cooldown is over, -1 everywhere before. A float, because
            fairseq's moving average multiplies every entry of the state.

    What a method declares as its `variables` and `records` are further parameters and buffers, named as there.
    """

    varies = False  # whether other heads may be on in another pass of the same update

    def __init__(self, grid: Grid, budget: Budget | None, method: Method, floors: Floors = ()) -> None:
        super().__init__()
        self.grid = grid
        self.chosen = Chosen(Layout.full(grid), default_kinds(grid))
        self.budget = budget
        self.norms: UnitNorms | None = None
        self.take(method)
        self.floors = floors
        self.update = 0
        self.importance = nn.Parameter(initial_importance(grid))
        self.importance.param_group = IMPORTANCE_GROUP  # type: ignore[attr-defined]
        self.register_buffer("fixed_mask", torch.full((grid.total,), _UNDECIDED))
        for name, value in self.method.variables().items():
            self.register_parameter(name, nn.Parameter(value))
            self.get_parameter(name).param_group = IMPORTANCE_GROUP  # type: ignore[attr-defined]
        for name, value in self.method.records().items():
            self.register_buffer(name, value)
        self._drawn: Tensor | None = None
        # what was read from the device, with the state of the tensors that it was read from
        self._fixed: tuple[Any, tuple[bool, ...]] | None = None
        self._evaluated: tuple[Any, tuple[bool, ...]] | None = None
        self._loaded = False

    def take(self, method: Method) -> None:
        """From now on the method makes gates; what it keeps beside the importance must be what the one before kept."""
        self.method = method.of_sites([count for _, count in self.grid.counts])
        if method.norm is not None and self.norms is None:
            self.norms = UnitNorms(self.grid, method.norm == RELATIVE)

    def set_num_updates(self, num_updates: int) -> None:
        """fairseq calls this before every micro-batch, and before it loads a checkpoint."""
        self.update = num_updates

    @property
    def is_fixed(self) -> bool:
        """Whether the kept heads are decided for good: the cooldown is over and the method fixes them then."""
        return self.method.fixes_at is not None and self.update >= self.method.fixes_at

    @property
    def budget_now(self) -> Budget | None:
        """What the heads that are on at this update cost: the budget once they are fixed, before that what the schedule says."""
        return self.budget if self.is_fixed else self.method.budget_at(self.budget, self.update)

    def decided_mask(self) -> Tensor:
        """The heads that evaluation and rewriting keep, exactly K where K was given: [H], 0/1, no gradient."""
        return decided(self.method, self.importance, self.fixed_mask, self.budget, self.floors, self.own_state())

    def ranking(self) -> Tensor:
        """What heads are ranked by: [H], no gradient."""
        return self.method.ranking(self.importance, **self.own_state()).detach()

    def layout(self) -> Layout:
        """What `decided_mask` leaves of the model's units, in original ids."""
        return self.chosen.keep(self.decided_mask())

    def own_state(self) -> dict[str, Tensor]:
        """What the method keeps beside the importance, by name; see `Method.variables` and `Method.records`."""
        return {name: getattr(self, name) for name in (*self.method.variables(), *self.method.records())}

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss of this update; None once heads are fixed, which cost nothing that could be saved."""
        if self.is_fixed:
            return None
        own = self.own_state()
        if self.norms is not None and (norms := self.norms.of_pass()) is not None:
            own["norms"] = norms
        return self.method.penalty(self.importance, self.budget, self.update, **own)

    def begin_batch(self, counts: bool) -> None:
        """A pass of training comes next.

        Args:
            counts: whether its batch is one of the update; of a dummy one nothing is measured.
        """
        if self.norms is not None:
            self.norms.counts = counts

    def end_update(self) -> None:
        """Whoever steps the optimizer calls this then, in every process: the method takes in what has been measured."""
        if self.norms is not None and not self.is_fixed:
            with torch.no_grad():
                self.method.note(*self.norms.of_update(self.importance.device), **self.own_state())

    def mean_importance(self) -> dict[str, float]:
        """Mean of what all heads of an attention type are ranked by; a type that has none is left out."""
        values = self.ranking().tolist()
        found: dict[str, list[float]] = {}
        for site, span in self.grid.spans():
            found.setdefault(site.stack, []).extend(values[span])
        return {stack: sum(some) / len(some) for stack, some in found.items() if some}

    def gates(self) -> Tensor:
        """The gates of the current pass: [H] float32, with gradient in training."""
        if not self.training:
            return self.decided_mask()
        return self._drawn if self._drawn is not None else self._draw()

    def _draw(self) -> Tensor:
        if not self.is_fixed:
            if self._loaded:  # heads that an earlier training had fixed are chosen anew: the cooldown is not over
                if are_marks(self.fixed_mask):
                    logger.warning(
                        "the %d heads that the checkpoint has fixed are chosen anew.", int(self.fixed_mask.sum())
                    )
                self.fixed_mask.fill_(_UNDECIDED)
                self._loaded = False
            with torch.no_grad():
                self.method.begin_update(self.importance, self.budget, self.update, **self.own_state())
            return self._in_graph(self.method.gates(self.importance, self.budget_now, self.update, **self.own_state()))
        if self._fixed is None or self._fixed[0] != stamp_of(self.fixed_mask):
            mask = self.decided_mask()
            before, marks = torch.stack([self.fixed_mask, mask]).tolist()
            self._refuse_other_number(before)
            self.fixed_mask.copy_(mask)
            self._fixed = stamp_of(self.fixed_mask), tuple(map(bool, marks))
        return self._in_graph(self.fixed_mask + 0.0 * self.importance)

    def _in_graph(self, gates: Tensor) -> Tensor:
        """Zero times a variable keeps it in the graph: DistributedDataParallel waits for its gradient."""
        for name in self.method.variables():
            gates = gates + 0.0 * self.get_parameter(name).sum()
        return gates

    def _refuse_other_number(self, fixed: list[float]) -> None:
        """Training goes on with the heads that a checkpoint had fixed: with as many as these."""
        if fixed and set(fixed) <= {0.0, 1.0} and self.budget is not None and not self.budget.is_met_by(fixed):
            with exit_on_refusal():
                if not self.budget.is_even:
                    raise Refusal(
                        "`--budget` must stay what it was, for the cooldown is over and the checkpoint's heads are fixed."
                    )
                raise Refusal(
                    f"`--unpruned-heads` must stay {int(sum(fixed))}, for the cooldown is over and the checkpoint's heads are "
                    f"fixed, but is {self.budget.count}."
                )

    def constant_marks(self, anew: bool) -> tuple[bool, ...] | None:
        """Marks of all heads while gates are constants: in evaluation, and in training once heads are fixed. None before.

        Reading them waits for the device, so they are kept: in training for good, in evaluation for one pass. A tensor's
        version tells of changes in place, but not of those by `.data`, which only a new pass sees.

        Args:
            anew: a pass begins.
        """
        if self.training and not self.is_fixed:
            return None
        tensors = (
            (self.fixed_mask,) if self.training else (self.fixed_mask, self.importance, *self.own_state().values())
        )
        known = self._fixed if self.training else self._evaluated
        stamp = stamp_of(*tensors)
        if known is None or known[0] != stamp or anew and not self.training:
            known = stamp, tuple(bool(mark) for mark in self.decided_mask().tolist())
            if self.training:
                self._fixed = known
            else:
                self._evaluated = known
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        """A copy that is made in the middle of a pass draws for itself: a draw belongs to the graph of its pass."""
        return {**super().__getstate__(), "_drawn": None}

    def train(self, mode: bool = True) -> HeadGates:
        """As in torch; an optimizer changes through `.data` what evaluation has read."""
        self._evaluated = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._fixed = self._evaluated = None
        self._loaded = True
        super()._load_from_state_dict(*args, **kwargs)

    def enter(self, model: nn.Module, streams: Mapping[Site, nn.Module]) -> None:
        """Hooks of the model that these gates are of.

        Args:
            streams: of the sites of the grid, as `streams.streams` finds them once these are gated.
        """
        model.register_forward_pre_hook(self.before_forward)
        model.register_forward_hook(self.after_forward, always_call=True)
        if self.norms is not None:
            self.norms.watch(model, streams)

    def leave(self, model: nn.Module) -> None:
        """Undoes `enter`."""
        if self.norms is not None:
            self.norms.unwatch(model)
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]

    def before_forward(self, model: nn.Module, inputs: Any) -> None:
        """Hook of the model: one draw serves all sites, and its gradient is computed once."""
        self._drawn = self._draw() if self.training else None

    def after_forward(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Hook of the model: forgets the draw, whose graph the backward pass frees."""
        self._drawn = None

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Moves between devices with the model, but stays in float32 where it is halved."""
        return super()._apply(lambda own: own.to(fn(torch.empty(0, device=own.device)).device), recurse)


def stamp_of(*tensors: Tensor) -> tuple[Any, ...]:
    """What changes with every change in place that torch counts; it counts none of inference tensors."""
    return tuple((tensor.data_ptr(), None if tensor.is_inference() else tensor._version) for tensor in tensors)


def are_marks(mask: Tensor) -> bool:
    """Whether a `fixed_mask` tells which heads are kept: exactly 0 or 1, of any heads at all."""
    return mask.numel() > 0 and bool(((mask == 0) | (mask == 1)).all())


def initial_importance(grid: Grid) -> Tensor:
    """Xavier-uniform values for a matrix of sites x heads (Li et al. 2021, official code): [H] float32."""
    sites = [site for site in grid.sites if grid.size(site)]
    widest = max((grid.size(site) for site in sites), default=0)
    bound = (6.0 / max(len(sites) + widest, 1)) ** 0.5
    return torch.empty(grid.total).uniform_(-bound, bound)
