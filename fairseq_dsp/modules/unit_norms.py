"""`UnitNorms`: what units add to the residual stream while a model trains, for a method that `measures`. Built by `gates`.

A sublayer shows what its units computed to its gates (`SiteGates.see`), which hand it on to here; other methods have none of this. Nothing
is kept of a pass but a norm a unit: its mean over positions that are not padding, with gradient, until the loss has been made, and
sums without gradient until the update is over. Letters as in `attention`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_dsp.units.kinds import STACK_OF
from fairseq_dsp.units.layout import Grid, Site
from fairseq_dsp.units.norms import length_of_stream, norms_of_functions


class UnitNorms:
    """The norms of a model's units, pass by pass.

    Args:
        grid: the units.
        relative: divide by the norm of the stream that is added to.

    Attributes:
        counts: whether passes are of the update: not those of a dummy batch, which fairseq gives a process that has no other.
    """

    def __init__(self, grid: Grid, relative: bool) -> None:
        self.grid, self.relative, self.counts = grid, relative, True
        self._there: dict[str, Tensor] = {}  # of each side: [T, B] bool, false at padding
        self._streams: dict[Site, Tensor] = {}  # |x| / sqrt(C), [T, B]
        self._of_pass: dict[Site, Tensor] = {}  # mean norms, [n], with gradient
        self._sums: tuple[Tensor, Tensor] | None = None  # of an update: norms, positions, [H] float64

    def watch(self, model: nn.Module, streams: Mapping[Site, nn.Module]) -> None:
        """Hooks that see padding and, where norms are relative to it, the stream. The model's gates are there already.

        Args:
            streams: the module of every site whose first input is the stream, as `streams.streams` finds them.
        """
        model.register_forward_pre_hook(self.before_forward, with_kwargs=True)
        if self.relative:
            for site, module in streams.items():
                if self.grid.size(site):
                    module.register_forward_pre_hook(_StreamHook(self, site), prepend=True, with_kwargs=True)

    def unwatch(self, model: nn.Module) -> None:
        """Undoes `watch`."""
        for module in model.modules():
            hooks = module._forward_pre_hooks
            ours = [key for key, hook in hooks.items() if isinstance(hook, _StreamHook) or hook == self.before_forward]
            for key in ours:
                del hooks[key]

    def before_forward(self, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hook of the model: another pass begins."""
        self._streams, self._of_pass = {}, {}
        if model.training:
            given = {**dict(zip(("src_tokens", "src_lengths", "prev_output_tokens"), args, strict=False)), **kwargs}
            words = {"encoder": "src_tokens", "decoder": "prev_output_tokens"}
            self._there = {side: given[name].ne(getattr(model, side).padding_idx).T for side, name in words.items()}

    def see_stream(self, site: Site, x: Tensor) -> None:
        """The stream [T, B, C] that a site's sublayer adds to. A constant, or the model could pay a penalty by making it longer."""
        self._streams[site] = length_of_stream(_wide(x.detach()))

    def see(self, site: Site, computed: Tensor, weight: Tensor) -> None:
        """What a site's units computed, [T, B, n·d], and the map that reads it, [C, n·d]."""
        there, units = self._there[STACK_OF[site.stack].side], self.grid.size(site)
        with _full_precision(computed.device):
            found = norms_of_functions(_wide(computed), _wide(weight), units) / weight.size(0) ** 0.5
            # zeros and no choice of positions, for the device would have to say how many there are; before the division, for the
            # stream is zero at padding
            found = torch.where(there.unsqueeze(2), found, 0.0)
            if self.relative:
                length = self._streams[site].unsqueeze(2)
                found = found / length.clamp_min(torch.finfo(length.dtype).tiny)
            total, positions = found.sum(dim=(0, 1)), there.sum()
        self._of_pass[site] = total / positions.clamp_min(1)
        if not self.counts:
            return
        sums, counts = self._sums or (
            torch.zeros(self.grid.total, dtype=torch.float64, device=total.device) for _ in range(2)
        )
        span = dict(self.grid.spans())[site]
        sums[span] += total.detach().double()
        counts[span] += positions
        self._sums = sums, counts

    def of_pass(self) -> Tensor | None:
        """Mean norms of the pass that is over, [H], with gradient, once; of a site that it left out 0. None if it has measured none."""
        found, self._of_pass = self._of_pass, {}
        if not found:
            return None
        like = next(iter(found.values()))
        sites = self.grid.counts
        return torch.cat([found.get(site, like.new_zeros(count)) for site, count in sites if count])

    def of_update(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean norms since it was asked last, over the positions of all processes, and of which units there are any: [H], [H] bool.

        Every process must ask, for it waits for the others, whether it has measured anything or not. A norm that is not finite counts as none: half precision overflows now and then.
        """
        sums, counts = self._sums or torch.zeros(2, self.grid.total, dtype=torch.float64, device=device)
        self._sums = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            both = torch.stack([sums, counts])
            torch.distributed.all_reduce(both)
            sums, counts = both
        means = sums / counts.clamp_min(1)
        return means.nan_to_num(0.0, 0.0, 0.0), (counts > 0) & torch.isfinite(means)

    def __getstate__(self) -> dict[str, Any]:
        """A copy that is made in the middle of a pass measures for itself."""
        return {**self.__dict__, "_streams": {}, "_of_pass": {}}


class _StreamHook:
    """Shows a site's stream. An object and no closure, so that the hook of a model's copy is the copy's."""

    def __init__(self, norms: UnitNorms, site: Site) -> None:
        self.norms, self.site = norms, site

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if module.training:
            self.norms.see_stream(self.site, args[0] if args else kwargs["query"])


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Products are not made in half precision within, as `--amp` has it, on a device that could."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: squares overflow in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
