"""Units of one module cut out and looked at: a loop over the slices that say what a unit owns. Called by attentions and `surgery`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from fairseq_dsp.units.kind import Slice, unit_places


def keep_units(module: nn.Module, slices: Sequence[Slice], units: Sequence[int]) -> None:
    """Removes every other unit from a site's module, for good.

    Args:
        module: the site's.
        slices: what a unit of it owns.
        units: which of the units that exist now to keep, in increasing order; may be empty.
    """
    # A parameter without elements gets no gradient, and DistributedDataParallel waits for every parameter that wants one.
    trainable = len(units) > 0
    for owned in slices:
        owner, _, name = owned.name.rpartition(".")
        linear = module.get_submodule(owner)
        parameter = getattr(linear, name)
        if parameter is None:
            continue
        # index_select copies: a view would drag the whole dense storage into the checkpoint
        chosen = parameter.detach().index_select(owned.dim, unit_places(units, owned.width).to(parameter.device))
        setattr(linear, name, nn.Parameter(chosen, requires_grad=trainable and parameter.requires_grad))
        setattr(linear, "in_features" if owned.dim else "out_features", chosen.size(owned.dim))


def owned_by_unit(module: nn.Module, slices: Sequence[Slice]) -> Iterator[Tensor]:
    """All that the units own of every tensor that the module has: [units, numbers that a unit owns of it]."""
    tensors = dict(module.named_parameters())
    for owned in slices:
        if owned.name in tensors:
            yield owned.by_unit(tensors[owned.name].detach())
