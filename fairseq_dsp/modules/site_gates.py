"""`SiteGates`: the gates of one site, and the record of its live units that its sublayer computes with.

Gates are constant 0 or 1 in evaluation, and in training once the cooldown is over. Then a unit whose gate is 0 need not be computed:
the sublayer computes with selections of the rows and columns of the live units in place of its own weights. A masked model then
costs what the rewritten one costs, while its parameters and the optimizer's state keep their shapes.

A record is made for a pass, or kept among the caches of a search, and never on a module: nothing outlives a change of weights, and no
copy of the model finds a tensor in the middle of a graph.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_dsp.modules.gates import HeadGates
from fairseq_dsp.modules.idle import tie
from fairseq_dsp.units.kind import Slice, unit_places
from fairseq_dsp.units.layout import Site

# What a sublayer computes with in place of its own tensors, by their names, without biases that it does not have.
Record = dict[str, Tensor]

# All caches of a search, fairseq's `incremental_state`; None outside of one.
Search = dict[str, dict[str, Any]] | None


class Gates(Protocol):
    """What a sublayer asks for its gates, anew in every forward pass."""

    def __call__(self) -> Tensor:
        """The gates of the site's units: [n], float32."""

    def live(self, sublayer: Any, search: Search, begins: bool = True) -> Record | None:
        """What the sublayer computes with where all gates are constant 0 or 1 and units of 0 need not be computed; None where it
        computes with its own tensors.

        Args:
            sublayer: its `slices` say what a unit owns of which of its tensors.
            search: where the record is kept, under the sublayer's `cache_key`; its source has been encoded with the same units.
            begins: a pass may begin with this question; not with one that a sublayer of two modules asks again for its second.
        """

    def see(self, computed: Tensor, weight: Tensor) -> None:
        """What the site's units computed, before their gates, [T, B, n·d], and the map that reads it, [C, n·d]; asked for by nobody but a method
        that `measures`.
        """


class SiteGates:
    """The gates of one site, as its sublayer asks for them.

    Args:
        owner: the model's gates.
        site: of the owner's grid.
        span: the site's slice of the flat order: a gate for each of its units, or one for all.
        units: n, that the site has.
        leads: the site is the first that a pass comes to, in the encoder or in the decoder, which may be called alone.
    """

    def __init__(self, owner: HeadGates, site: Site, span: slice, units: int, leads: bool) -> None:
        self.owner = owner
        self.site = site
        self.span = span
        self.units = units
        self.leads = leads
        self.handed: Tensor | None = None
        # where the live units lie, with what that follows from; no weights, so never stale
        self._rows: tuple[Any, Tensor] | None = None

    def __call__(self) -> Tensor:
        return self.handed if self.handed is not None else self.owner.gates()[self.span].expand(self.units)

    def see(self, computed: Tensor, weight: Tensor) -> None:
        """Shows it to the method that measures it, in training; see `Gates`."""
        if self.owner.norms is not None and self.owner.training:
            self.owner.norms.see(self.site, computed, weight)

    def __getstate__(self) -> dict[str, Any]:
        """A copy that is made in the middle of a pass leaves to that pass what belongs to its graph."""
        return {**self.__dict__, "handed": None}

    def live(self, sublayer: Any, search: Search, begins: bool = True) -> Record | None:
        """Selections of the units that are decided to be kept, once that is decided; see `Gates`."""
        if self.handed is not None and self.owner.varies:
            return None  # activations are recomputed, maybe while others are on than in that pass
        record = None if search is None else search.get(f"{sublayer.cache_key}.live")
        if record is None:
            marks = self.owner.constant_marks(anew=self.leads and begins and search is None)
            if marks is None:
                return None
            of_units = marks[self.span]
            record = self._select(sublayer, of_units * (self.units // len(of_units)))
            if search is not None:
                search[f"{sublayer.cache_key}.live"] = record
        return self._tie(sublayer, record) if torch.is_grad_enabled() else record

    def _select(self, sublayer: Any, marks: tuple[bool, ...]) -> Record:
        record: Record = {}
        for owned in sublayer.slices:
            linear, part = _place(sublayer, owned)
            if (tensor := getattr(linear, part)) is not None:
                if not all(marks):
                    tensor = tensor.index_select(owned.dim, self._rows_of(marks, owned.width, tensor.device))
                record[owned.name] = tensor
            if owned.dim == 1 and linear.bias is not None:  # of no unit
                record[_bias_of(owned)] = linear.bias
        return record

    def _rows_of(self, marks: tuple[bool, ...], width: int, device: torch.device) -> Tensor:
        of = marks, width, device
        if self._rows is None or self._rows[0] != of:
            with torch.inference_mode(False):  # for an evaluation may make what training uses
                units = [unit for unit, mark in enumerate(marks) if mark]
                self._rows = of, unit_places(units, width).to(device)
        return self._rows[1]

    def _tie(self, sublayer: Any, record: Record) -> Record:
        """The record with an output bias through which all that is not computed gets a gradient of zero, as from a gate of 0."""
        tied = dict(record)
        for owned in sublayer.slices:
            if owned.dim == 1 and (bias := record.get(_bias_of(owned))) is not None:
                idle = [self()] if sublayer.training else []  # constants elsewhere
                if record[owned.name].numel() == 0:
                    idle += [parameter for parameter in sublayer.parameters() if parameter is not bias]
                tied[_bias_of(owned)] = tie(bias, *idle) if idle else bias
        return tied


def _place(sublayer: nn.Module, owned: Slice) -> tuple[Any, str]:
    """The linear map of the sublayer that has the tensor, and which of its parts that is."""
    name, _, part = owned.name.rpartition(".")
    return sublayer.get_submodule(name), part


def _bias_of(columns: Slice) -> str:
    """The bias of a linear map of which units own columns."""
    return columns.name.removesuffix("weight") + "bias"


class GatedCheckpoint:
    """Forward of a layer whose activations are recomputed (`--checkpoint-activations`).

    fairseq's checkpointing runs the layer twice and backpropagates the second run by itself. Gates read from outside
    would lead every layer's private backward pass into the one draw they share. So they are handed in as an input:
    the layer sees the same values in both runs, and the draw gets one gradient.

    Args:
        forward: the layer's checkpointed forward, a partial of fairseq's wrapper over (inner forward, offload).
        sites: the gates of the layer's sublayers.
    """

    def __init__(self, forward: functools.partial, sites: list[SiteGates]) -> None:
        self.sites = sites
        self.wrapper = forward.func
        self.inner, *self.rest = forward.args

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.sites[0].owner.training:  # constants, which every run reads alike and nothing differentiates
            return self.ungated()(*args, **kwargs)
        return self.wrapper(self._forward_with, *self.rest, *(site() for site in self.sites), *args, **kwargs)

    def ungated(self) -> functools.partial:
        """The checkpointed forward as fairseq made it."""
        return functools.partial(self.wrapper, self.inner, *self.rest)

    def _forward_with(self, *args: Any, **kwargs: Any) -> Any:
        count = len(self.sites)
        for site, gates in zip(self.sites, args[:count], strict=True):
            site.handed = gates
        try:
            return self.inner(*args[count:], **kwargs)
        finally:
            for site in self.sites:
                site.handed = None


class ConstantGates:
    """Gates that never change: the masked model that a rewritten one is compared with."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self) -> Tensor:
        return self.mask

    def live(self, sublayer: Any, search: Search, begins: bool = True) -> None:
        """None: all units are computed and multiplied, so that a comparison compares two computations."""

    def see(self, computed: Tensor, weight: Tensor) -> None:
        """Nothing is measured."""


def linear_of(x: Tensor, record: Record, name: str) -> Tensor:
    """The linear map of that name, by what the record has in place of its weight and bias."""
    return F.linear(x, record[name + ".weight"], record.get(name + ".bias"))
