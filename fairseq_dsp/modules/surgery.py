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
from fairseq_dsp.modules.gates import STATE_PREFIX, HeadGates
from fairseq_dsp.modules.site_gates import ConstantGates, GatedCheckpoint, SiteGates
from fairseq_dsp.units.layout import Grid, Layout, Site, head_rows

KEPT_MASK = "kept_mask"

_ATTENTION = {"enc": ("encoder", "self_attn"), "dec": ("decoder", "self_attn"), "cross": ("decoder", "encoder_attn")}


def site_name(site: Site) -> str:
    """Name of the site's attention in the model and its state, such as `decoder.layers.3.encoder_attn`."""
    stack, attention = _ATTENTION[site.stack]
    return f"{stack}.layers.{site.layer}.{attention}"


def make_prunable(model: nn.Module) -> Grid:
    """Puts a `PrunableAttention` with the same parameters at every site, in place.

    Returns:
        the grid of heads that the model has.
    """
    for side, name in _ATTENTION.values():
        for layer in _layers(model, side):
            setattr(layer, name, PrunableAttention(getattr(layer, name)))
    return grid_of(model)


def grid_of(model: nn.Module) -> Grid:
    """The heads that a transformer has, ours or fairseq's own."""
    counts = {
        stack: tuple(getattr(layer, name).num_heads for layer in _layers(model, side))
        for stack, (side, name) in _ATTENTION.items()
    }
    return Grid.of_heads(**counts)


def attentions(model: nn.Module, grid: Grid) -> Iterator[tuple[Site, PrunableAttention]]:
    """Every site of the grid with its attention."""
    for site in grid.sites:
        side, name = _ATTENTION[site.stack]
        yield site, getattr(getattr(model, side).layers[site.layer], name)


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
        here = layout.grid.size(site) if current is None else current.marks(site)
        existing = list(range(here)) if isinstance(here, int) else [head for head, mark in enumerate(here) if mark]
        keep = set(layout.units(site))
        positions = [position for position, head in enumerate(existing) if head in keep]
        if len(positions) < len(existing):
            attention.keep_heads(positions)
        marks = torch.tensor(layout.marks(site), dtype=torch.float32, device=attention.out_proj.weight.device)
        attention.register_buffer(KEPT_MASK, marks)


def shrink_state(
    state: dict[str, Tensor], layout: Layout, head_dims: dict[Site, int], current: Layout | None = None
) -> dict[str, Tensor]:
    """The state of the model that `shrink_model` would make, in the same precision. Gates are dropped.

    Args:
        state: a model's state, upgraded to today's parameter names.
        layout: heads to keep, in original ids.
        head_dims: size of a head at every site.
        current: heads that the state has; all of them if None.

    Returns:
        a new dict; tensors that change are copies, so that no dense storage is saved with them.
    """
    shrunk = {name: value for name, value in state.items() if not name.startswith(STATE_PREFIX)}
    for site in layout.grid.sites:
        name = site_name(site)
        existing = (current or Layout.full(layout.grid)).units(site)
        keep = set(layout.units(site))
        rows = head_rows([i for i, head in enumerate(existing) if head in keep], head_dims[site])
        output = shrunk[f"{name}.out_proj.weight"]
        rows = rows.to(output.device)
        for projection in ("q_proj", "k_proj", "v_proj"):
            for kind in ("weight", "bias"):
                if (key := f"{name}.{projection}.{kind}") in shrunk:
                    shrunk[key] = shrunk[key].index_select(0, rows)
        shrunk[f"{name}.out_proj.weight"] = output.index_select(1, rows)
        shrunk[f"{name}.{KEPT_MASK}"] = torch.tensor(layout.marks(site), dtype=torch.float32, device=output.device)
    return shrunk


def layout_of_state(state: dict[str, Any], grid: Grid) -> Layout | None:
    """The layout that a state's marks give; None for a state without marks (a dense one).

    Raises:
        Refusal: marks that are no marks, or not this grid's: an average of different layouts, or another model.
    """
    names = [f"{site_name(site)}.{KEPT_MASK}" for site in grid.sites]
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
    model.register_forward_hook(gates.after_forward, always_call=True)
    by_layer: dict[nn.Module, list[SiteGates]] = {}
    sites = dict(attentions(model, grid))
    begun: set[str] = set()
    for attention in sites.values():
        gates.to(attention.out_proj.weight.device)
        break
    for site, span in grid.spans():
        if span.stop == span.start:
            continue
        side = _ATTENTION[site.stack][0]
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
        attention.gates = None
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
