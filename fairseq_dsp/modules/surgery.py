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
from fairseq_dsp.modules.feed_forward import gate_neurons, keep_neurons, ungate_neurons
from fairseq_dsp.modules.gates import STATE_PREFIX, HeadGates
from fairseq_dsp.modules.site_gates import ConstantGates, GatedCheckpoint, Gates, SiteGates
from fairseq_dsp.modules.streams import streams
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kind import Slice, unit_places
from fairseq_dsp.units.kinds import KIND_OF, STACK_OF
from fairseq_dsp.units.layout import Grid, Layout, Site
from fairseq_dsp.units.neurons import NEURONS


def site_name(site: Site) -> str:
    """Name of the site's module in the model and its state, such as `decoder.layers.3.encoder_attn`."""
    return STACK_OF[site.stack].module_name(site.layer)


def marks_name(site: Site) -> str:
    """Name of the site's marks in a state."""
    return f"{site_name(site)}.{KIND_OF[site.stack].marks}"


def reader_name(site: Site) -> str:
    """Name of the map that reads what the site's units computed, such as `decoder.layers.3.encoder_attn.out_proj`."""
    return f"{site_name(site)}.{KIND_OF[site.stack].readers[0]}"


def is_marked(model: nn.Module, grid: Grid) -> bool:
    """Whether a model has marks: it has been given a layout, which may keep all."""
    return any(hasattr(model.get_submodule(site_name(site)), KIND_OF[site.stack].marks) for site in grid.sites)


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
    """Every site of heads of the grid with its attention."""
    for site in grid.sites:
        if KIND_OF[site.stack] is HEADS:
            yield site, model.get_submodule(site_name(site))


def modules_at(model: nn.Module, grid: Grid) -> dict[Site, nn.Module]:
    """The module of every site of the grid: an attention, or the layer that a feed-forward network belongs to."""
    return {site: model.get_submodule(site_name(site)) for site in grid.sites}


def neurons_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """F of every layer of a transformer, ours or fairseq's own, by stack."""
    return {
        stack.name: tuple(layer.fc1.out_features for layer in _layers(model, stack.side)) for stack in NEURONS.stacks
    }


def shrink_model(model: nn.Module, layout: Layout, current: Layout | None = None) -> None:
    """Removes from the model, in place, all heads that the layout does not keep, and marks the kept ones in its state.

    The marks are a 0/1 buffer at every site, `kept_mask` over the original heads: fairseq's averaging of checkpoints
    compares names only, and would otherwise mix models with different heads of equal number in silence.

    Args:
        model: prunable.
        layout: heads to keep, in original ids; within `current`.
        current: heads that the model has now; all of them if None.
    """
    for site in layout.grid.sites:
        module, kind = model.get_submodule(site_name(site)), KIND_OF[site.stack]
        there = len((current or Layout.full(layout.grid)).units(site))
        places = places_within(site, layout, current)
        reader = module.get_submodule(kind.readers[0])
        if len(places) < there:
            if isinstance(module, PrunableAttention):
                module.keep_heads(places)
            else:
                keep_neurons(module, reader.in_features // there, places)
        marks = torch.tensor(layout.marks(site), dtype=torch.float32, device=reader.weight.device)
        module.register_buffer(kind.marks, marks)


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

    Of a kind of unit that is not marked there are all: a state of marked heads has all its neurons, whether the grid has them or
    not. Neurons that are marked are read in the state's own groups.

    Raises:
        Refusal: marks that are no marks, or not this grid's: an average of different layouts, or another model.
    """
    neurons = _marked_neurons(state)
    marked = (
        {HEADS} if any(marks_name(site) in state for site, _ in grid.counts if KIND_OF[site.stack] is HEADS) else set()
    )
    if neurons:
        marked.add(NEURONS)
        grid = Grid((*(item for item in grid.counts if KIND_OF[item[0].stack] is HEADS), *neurons))
    if not marked:
        return None
    found = [torch.zeros(0)]
    for site, count in grid.counts:
        marks = state.get(marks_name(site)) if KIND_OF[site.stack] in marked else torch.ones(count)
        if marks is None or marks.numel() != count:
            raise Refusal("the checkpoint's kept heads do not fit this model: another number of layers or heads.")
        found.append(marks.float().cpu().flatten())
    marks = torch.cat(found)
    if ((marks - marks.round()).abs() > 0.02).any():  # bfloat16 is within; one stranger among 49 checkpoints is not
        raise Refusal("the checkpoint mixes models that keep different heads: average checkpoints of one layout only.")
    return Layout.of_mask(grid, marks.round())


def _marked_neurons(state: dict[str, Any]) -> tuple[tuple[Site, int], ...]:
    """The sites of neurons that a state marks, with the number of groups of each.

    Raises:
        Refusal: of a side some layers are marked, and some before them are not.
    """
    marked = {name for name in state if name.endswith(f".{NEURONS.marks}")}
    sites = [Site(stack.name, layer) for stack in NEURONS.stacks for layer in range(len(marked))]
    found = [(site, state[marks_name(site)].numel()) for site in sites if marks_name(site) in marked]
    for stack in NEURONS.stacks:
        layers = [site.layer for site, _ in found if site.stack == stack.name]
        if len(found) != len(marked) or layers != list(range(len(layers))):
            raise Refusal(
                "the checkpoint must mark the kept neurons of all layers or of none, but marks those of some."
            )
    return tuple(found)


def install_gates(model: nn.Module, grid: Grid, gates: HeadGates) -> None:
    """Makes every site that is chosen among ask `gates` for its slice. `grid` counts the units that the model has now."""
    model.head_gates = gates
    gates.to(next(model.encoder.parameters()).device)
    by_layer: dict[nn.Module, list[SiteGates]] = {}
    begun: set[str] = set()
    # as a pass of each side comes to them
    for site, span in sorted(gates.grid.spans(), key=lambda item: item[0].layer):
        if span.stop == span.start:
            continue
        side = STACK_OF[site.stack].side
        of_site = SiteGates(gates, site, span, grid.size(site), leads=side not in begun)
        _gate(model, site, of_site, of_site.units)
        begun.add(side)
        by_layer.setdefault(getattr(model, side).layers[site.layer], []).append(of_site)
    for layer, site_gates in by_layer.items():
        if hasattr(layer, "precheckpoint_forward"):
            layer.forward = GatedCheckpoint(layer.forward, site_gates)
    gates.enter(model, streams(model, gates.grid))


def remove_gates(model: nn.Module, grid: Grid) -> None:
    """Undoes `install_gates`. The model keeps its heads, ungated. `grid` names the sites."""
    for _, attention in attentions(model, grid):
        attention.gates = None
    for side in ("encoder", "decoder"):
        for layer in _layers(model, side):
            ungate_neurons(layer)
            if isinstance(layer.__dict__.get("forward"), GatedCheckpoint):
                layer.forward = layer.forward.ungated()
    model.head_gates.leave(model)
    model.head_gates = None


def mask_heads(model: nn.Module, layout: Layout, current: Layout) -> None:
    """Gates the model, in place, by constants: the layout's heads 1, others 0. The model keeps its size.

    Args:
        layout: heads to leave on, in original ids; within `current`.
        current: heads that the model has.
    """
    device = next(model.encoder.parameters()).device
    for site in layout.grid.sites:
        keep, there = set(layout.units(site)), current.units(site)
        marks = torch.tensor([float(unit in keep) for unit in there], device=device)
        _gate(model, site, ConstantGates(marks) if there else None, len(there))


def _gate(model: nn.Module, site: Site, gates: Gates | None, units: int) -> None:
    """Makes a site ask for its gates, in place of whatever it asked before."""
    module = model.get_submodule(site_name(site))
    if isinstance(module, PrunableAttention):
        module.gates = gates
    elif gates is None:
        ungate_neurons(module)
    else:
        gate_neurons(module, gates, units)


def _layers(model: nn.Module, side: str) -> list[nn.Module]:
    # by index: iterating over fairseq's LayerDropModuleList drops layers at random
    layers = getattr(model, side).layers
    return [layers[index] for index in range(len(layers))]
