"""Makes a model, or a state, have a given layout. Called by `plugin`, `checkpoints` and `export`.

Works on a built model by named sites, so one function serves loading, rewriting and tests, and fairseq's builders, which
know no layer index, stay untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.attention import PrunableAttention
from fairseq_dsp.modules.gates import STATE_PREFIX, ConstantGates, GatedCheckpoint, HeadGates, SiteGates
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kind import Slice, unit_places
from fairseq_dsp.units.kinds import KIND_OF, STACK_OF
from fairseq_dsp.units.layout import Grid, Layout, Site

KEPT_MASK = HEADS.marks


def site_name(site: Site) -> str:
    """Name of the site's module in the model and its state, such as `decoder.layers.3.encoder_attn`."""
    return STACK_OF[site.stack].module_name(site.layer)


def marks_name(site: Site) -> str:
    """Name of the site's marks in a state."""
    return f"{site_name(site)}.{KIND_OF[site.stack].marks}"


def places_within(site: Site, layout: Layout, current: Layout | None) -> list[int]:
    """Which of the units that a site has now the layout keeps, counted among these.

    Args:
        current: units that there are now; all of the grid's if None.
    """
    existing, keep = (current or Layout.full(layout.grid)).units(site), set(layout.units(site))
    return [place for place, unit in enumerate(existing) if unit in keep]


def make_prunable(model: nn.Module) -> Grid:
    """Puts a `PrunableAttention` with the same parameters at every site, in place.

    Returns:
        the grid of heads that the model has.
    """
    for stack in HEADS.stacks:
        for layer in _layers(model, stack.side):
            setattr(layer, stack.module, PrunableAttention(getattr(layer, stack.module)))
    return grid_of(model)


def grid_of(model: nn.Module) -> Grid:
    """The heads that a transformer has, ours or fairseq's own."""
    counts = {
        stack.name: tuple(getattr(layer, stack.module).num_heads for layer in _layers(model, stack.side))
        for stack in HEADS.stacks
    }
    return Grid.of_heads(**counts)


def attentions(model: nn.Module, grid: Grid) -> Iterator[tuple[Site, PrunableAttention]]:
    """Every site of the grid with its attention."""
    for site in grid.sites:
        yield site, model.get_submodule(site_name(site))


def shrink_model(model: nn.Module, layout: Layout, current: Layout | None = None) -> None:
    """Removes from the model, in place, all heads that the layout does not keep, and marks the kept ones in its state.

    The marks are a 0/1 buffer at every site, `kept_mask` over the original heads: fairseq's averaging of checkpoints
    compares names only, and would otherwise mix models with different heads of equal number in silence.

    Args:
        model: prunable.
        layout: heads to keep, in original ids; within `current`.
        current: heads that the model has now; all of them if None.
    """
    for site, attention in attentions(model, layout.grid):
        places = places_within(site, layout, current)
        if len(places) < attention.num_heads:
            attention.keep_heads(places)
        marks = torch.tensor(layout.marks(site), dtype=torch.float32, device=attention.out_proj.weight.device)
        attention.register_buffer(KEPT_MASK, marks)


def shrink_state(state: dict[str, Tensor], layout: Layout, current: Layout | None = None) -> dict[str, Tensor]:
    """The state of the model that `shrink_model` would make, in the same precision. Gates are dropped.

    Args:
        state: a model's state, upgraded to today's parameter names.
        layout: heads to keep, in original ids.
        current: heads that the state has; all of them if None.

    Returns:
        a new dict; tensors that change are copies, so that no dense storage is saved with them.
    """
    shrunk = {name: value for name, value in state.items() if not name.startswith(STATE_PREFIX)}
    for site in layout.grid.sites:
        places = places_within(site, layout, current)
        for name, owned in _slices_in_state(state, site, len((current or Layout.full(layout.grid)).units(site))):
            rows = unit_places(places, owned.width).to(state[name].device)
            shrunk[name] = state[name].index_select(owned.dim, rows)
        shrunk[marks_name(site)] = torch.tensor(layout.marks(site), dtype=torch.float32, device=rows.device)
    return shrunk


def widen_state(state: dict[str, Tensor], layout: Layout, widths: dict[Site, int]) -> dict[str, Tensor]:
    """The inverse of `shrink_state`, with zeros for what is gone: a dense state that computes the same.

    Args:
        state: has the layout's units.
        layout: units of the state, in original ids.
        widths: places of a unit at every site: d, the size of a head.

    Returns:
        a new dict without marks; tensors of empty or partial sites are new, others the state's own.
    """
    marks = {marks_name(site) for site in layout.grid.sites}
    wide = {name: value for name, value in state.items() if name not in marks}
    for site in layout.grid.sites:
        kept, there = layout.units(site), layout.grid.size(site)
        if len(kept) == there:
            continue
        for owned in KIND_OF[site.stack].slices(widths[site]):
            if (name := f"{site_name(site)}.{owned.name}") in wide:
                shape = list(wide[name].shape)
                shape[owned.dim] = there * owned.width
                zeros = torch.zeros(shape, dtype=wide[name].dtype)
                wide[name] = zeros.index_copy(owned.dim, unit_places(kept, owned.width), wide[name])
    return wide


def _slices_in_state(state: dict[str, Tensor], site: Site, units: int) -> Iterator[tuple[str, Slice]]:
    """What the units of a site own of the tensors that the state has, by their names there."""
    kind, name = KIND_OF[site.stack], site_name(site)
    width = state[f"{name}.{kind.readers[0]}.weight"].size(1) // max(units, 1)
    for owned in kind.slices(width):
        if f"{name}.{owned.name}" in state:
            yield f"{name}.{owned.name}", owned


def layout_of_state(state: dict[str, Any], grid: Grid) -> Layout | None:
    """The layout that a state's marks give; None for a state without marks (a dense one).

    Raises:
        Refusal: marks that are no marks, or not this grid's: an average of different layouts, or another model.
    """
    names = [marks_name(site) for site in grid.sites]
    if not any(name in state for name in names):
        return None
    if not all(
        name in state and state[name].numel() == grid.size(site) for name, site in zip(names, grid.sites, strict=True)
    ):
        raise Refusal("the checkpoint's kept heads do not fit this model: another number of layers or heads.")
    marks = torch.cat([state[name].float().cpu() for name in names]) if names else torch.zeros(0)
    if ((marks - marks.round()).abs() > 0.02).any():  # bfloat16 is within; one stranger among 49 checkpoints is not
        raise Refusal("the checkpoint mixes models that keep different heads: average checkpoints of one layout only.")
    return Layout.of_mask(grid, marks.round())


def install_gates(model: nn.Module, grid: Grid, gates: HeadGates) -> None:
    """Makes every site ask `gates` for its slice. `grid` counts the heads that the model has now."""
    model.head_gates = gates
    model.register_forward_pre_hook(gates.before_forward)
    model.register_forward_hook(gates.after_forward)
    by_layer: dict[nn.Module, list[SiteGates]] = {}
    sites = dict(attentions(model, grid))
    begun: set[str] = set()
    for attention in sites.values():
        gates.to(attention.out_proj.weight.device)
        break
    for site, span in grid.spans():
        if span.stop == span.start:
            continue
        side = STACK_OF[site.stack].side
        sites[site].gates = SiteGates(gates, span, leads=side not in begun)
        begun.add(side)
        layer = getattr(model, side).layers[site.layer]
        by_layer.setdefault(layer, []).append(sites[site].gates)
    for layer, site_gates in by_layer.items():
        if hasattr(layer, "precheckpoint_forward"):
            layer.forward = GatedCheckpoint(layer.forward, site_gates)


def remove_gates(model: nn.Module, grid: Grid) -> None:
    """Undoes `install_gates`. The model keeps its heads, ungated. `grid` names the sites."""
    for _, attention in attentions(model, grid):
        attention.gates = attention.live = None
    for side in ("encoder", "decoder"):
        for layer in _layers(model, side):
            if isinstance(layer.__dict__.get("forward"), GatedCheckpoint):
                layer.forward = layer.forward.ungated()
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is model.head_gates]:
            del hooks[key]
    model.head_gates = None


def mask_heads(model: nn.Module, layout: Layout, current: Layout) -> None:
    """Gates the model, in place, by constants: the layout's heads 1, others 0. The model keeps its size.

    Args:
        layout: heads to leave on, in original ids; within `current`.
        current: heads that the model has.
    """
    for site, attention in attentions(model, layout.grid):
        keep = set(layout.units(site))
        marks = [float(head in keep) for head in current.units(site)]
        attention.gates = ConstantGates(torch.tensor(marks, device=attention.out_proj.weight.device)) if marks else None


def _layers(model: nn.Module, side: str) -> list[nn.Module]:
    # by index: iterating over fairseq's LayerDropModuleList drops layers at random
    layers = getattr(model, side).layers
    return [layers[index] for index in range(len(layers))]
