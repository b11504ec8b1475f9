"""Which units are kept: grids of heads, widths of feed-forward networks, and the share of each attention type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairseq_dsp.analysis.groups import Group, grouped
from fairseq_dsp.analysis.plots import style
from fairseq_dsp.analysis.records import Record
from fairseq_dsp.units.groups import has_neurons
from fairseq_dsp.units.layout import FFN_STACKS, HEAD_STACKS, STACK_NAMES, Layout

_BESIDE = dict(zip(FFN_STACKS, HEAD_STACKS, strict=False))  # an attention of the same side, for its number of layers


def kept_heads_grid(layouts: Mapping[str, Layout], *paths: str) -> None:
    """Which heads are kept: a row of panels a layout, a panel an attention type, a row a layer, a column a head.

    Where neurons are units of a layout there are two panels more, of encoder and decoder: a bar a layer, as wide as the share kept.

    Args:
        layouts: title of each row of panels -> layout.
        paths: where to write; the suffix chooses the format (png, pdf, svg).
    """
    stacks = _stacks(layouts)
    deepest = max((len(layout.grid.of(stack)) for layout in layouts.values() for stack in stacks), default=1)
    widest = max(_width(layout, stack) for layout in layouts.values() for stack in HEAD_STACKS)
    with style.drawing():
        figure = style.new_figure(
            len(stacks) * (0.21 * widest + 0.4) + 0.4, (0.21 * max(deepest, 1) + 0.5) * len(layouts)
        )
        axes = figure.subplots(len(layouts), len(stacks), squeeze=False)
        for row, (title, layout) in zip(axes, layouts.items(), strict=True):
            for axis, stack in zip(row, stacks, strict=True):
                _title(axis, layout, stack)
                _draw(axis, layout, stack)
                layers, heads = len(layout.grid.of(stack)) or deepest, _width(layout, stack)
                if stack in HEAD_STACKS:
                    axis.set_xticks(range(heads), [str(head + 1) for head in range(heads)])
                axis.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
            row[0].set_ylabel(f"{title}\nlayer", parse_math=False)
        for axis, stack in zip(axes[-1], stacks, strict=True):
            axis.set_xlabel("head" if stack in HEAD_STACKS else "share of neurons")
        style.save(figure, paths)


def kept_heads_by_budget(layouts: Mapping[str, Layout], *paths: str, note: str = "") -> None:
    """The same, small, for many budgets side by side: a column a layout, a row an attention type, and of neurons a row a side.

    Args:
        layouts: title of each column -> layout.
        paths: where to write.
        note: small print above the figure.
    """
    widest = max(_width(layout, stack) for layout in layouts.values() for stack in HEAD_STACKS)
    stacks = _stacks(layouts)
    depths = [max(*(len(layout.grid.of(stack)) for layout in layouts.values()), 1) for stack in stacks]
    # the smallest cells that fill a page's width, within what the eye can take
    cell = min(max((style.TEXT_WIDTH - 0.5) / len(layouts) / (widest + 1), 0.05), 0.13)
    with style.drawing():
        width = 0.75 + len(layouts) * max(cell * (widest + 1), 0.4)
        figure = style.new_figure(width, 0.3 + sum(depths) * cell + 0.32 * len(stacks), note)
        axes = figure.subplots(len(stacks), len(layouts), squeeze=False, height_ratios=depths)
        for column, (title, layout) in enumerate(layouts.items()):
            for axis, stack, layers in zip(axes[:, column], stacks, depths, strict=True):
                _draw(axis, layout, stack)
                axis.set_xticks([])
                axis.set_yticks([0, layers - 1] if column == 0 and layers > 1 else [])
                if column == 0:
                    axis.set_yticklabels(["1", str(layers)] if layers > 1 else [])
                    axis.set_ylabel(STACK_NAMES[stack].replace(" ", "\n"), rotation=0, ha="right", va="center")
                kept, _ = layout.by_type().get(stack, ("all", 0))
                axis.set_xlabel(str(kept), fontsize=6.5, labelpad=1.5)
            axes[0, column].set_title(title, parse_math=False)
        style.save(figure, paths)


def attention_type_shares(records: Sequence[Record], *paths: str, note: str = "") -> None:
    """The share of each attention type among the heads kept, against the budget, a number of heads: a panel a method.

    Lines go through the mean over seeds, bars from the lowest seed to the highest; dotted is the type's share among all heads.
    Nothing is drawn at K = 0, where there is nothing to share, nor for dense models. `note` is small print above the figure.
    """
    from matplotlib.lines import Line2D

    counted = [record for record in records if record.is_counted]
    groups = [group for group in grouped(counted) if not group.records[0].has_all_heads and group.kept]
    methods = list(dict.fromkeys(group.method for group in groups))
    total = max(record.total for record in counted)
    columns = min(max(len(methods), 1), 3)
    rows = max(-(-len(methods) // columns), 1)
    with style.drawing():
        figure = style.new_figure(max(0.45 + 1.95 * columns, style.COLUMN), 0.6 + 1.4 * rows, note)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        budgets = {group.kept for group in groups}
        panel = (max(0.45 + 1.95 * columns, style.COLUMN) - 0.5) / columns - 0.15
        for number, (axis, method) in enumerate(zip(axes, methods, strict=False)):
            style.budget_axis(axis, budgets, total, width=panel)
            axis.set_title(method, parse_math=False)
            axis.set(ylim=(0, 100), yticks=[0, 25, 50, 75, 100])
            axis.grid(axis="y")
            axis.tick_params(labelbottom=number + columns >= len(methods))
            for stack in HEAD_STACKS:
                _shares(axis, [group for group in groups if group.method == method], stack)
        for axis in axes[len(methods) :]:
            axis.set_visible(False)
        for axis in axes[max(len(methods) - columns, 0) : max(len(methods), 1)]:
            axis.set_xlabel(f"heads kept, of {total}")
        for axis in axes[::columns]:
            axis.set_ylabel("share (%)")
        handles = [
            Line2D([], [], color=color, marker=marker, linestyle=dash, label=STACK_NAMES[stack])
            for stack, (color, marker, dash) in style.TYPE_LOOKS.items()
        ]
        style.legend_below(figure, handles, columns=3)
        style.save(figure, paths)


def _shares(axis: Any, groups: Sequence[Group], stack: str) -> None:
    color, marker, dash = style.TYPE_LOOKS[stack]
    counts = [total for _, total in groups[0].records[0].layout.by_type().values()]
    everywhere = 100 * counts[HEAD_STACKS.index(stack)] / groups[0].records[0].total
    axis.axhline(everywhere, color=color if len({*counts}) > 1 else style.INK, linewidth=0.7, linestyle=":", zorder=1)
    kept, means = [], []
    for group in groups:
        shares = [100 * record.layout.by_type()[stack][0] / record.kept for record in group.records]
        kept.append(group.kept)
        means.append(sum(shares) / len(shares))
        if len(shares) > 1:
            axis.vlines(group.kept, min(shares), max(shares), color=color, linewidth=2.6, alpha=0.35, clip_on=False)
    axis.plot(kept, means, color=color, marker=marker, linestyle=dash, markersize=3, clip_on=False, zorder=3)


def _stacks(layouts: Mapping[str, Layout]) -> tuple[str, ...]:
    """The stacks that a figure shows: those of neurons where they are units of any layout."""
    return HEAD_STACKS + (FFN_STACKS if any(has_neurons(layout.grid) for layout in layouts.values()) else ())


def _title(axis: Any, layout: Layout, stack: str) -> None:
    kept, total = layout.by_type().get(stack, (None, None))
    axis.set_title(STACK_NAMES[stack] + ("  all" if kept is None else f"  {kept}/{total}"))


def _draw_widths(axis: Any, layout: Layout, stack: str) -> None:
    """The share of neurons that every layer keeps, as bars; whole ones where neurons are no units of the layout."""
    marks = [layout.marks(site) for site in layout.grid.sites if site.stack == stack]
    shares = [sum(each) / max(len(each), 1) for each in marks] or [1.0] * len(layout.grid.of(_BESIDE[stack]))
    layers = range(len(shares))
    axis.barh(layers, [1.0] * len(shares), height=0.88, color=style.REMOVED)
    axis.barh(layers, shares, height=0.88, color=style.KEPT)
    axis.set(xlim=(0, 1), ylim=(max(len(shares), 1) - 0.5, -0.5), xticks=[0, 1])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _draw(axis: Any, layout: Layout, stack: str) -> None:
    """One attention type's heads as cells, or the widths of a side's networks; without a frame."""
    if stack in FFN_STACKS:
        _draw_widths(axis, layout, stack)
        return
    from matplotlib.patches import Rectangle

    for site in (site for site in layout.grid.sites if site.stack == stack):
        for head, kept in enumerate(layout.marks(site)):
            color = style.KEPT if kept else style.REMOVED
            axis.add_patch(Rectangle((head - 0.44, site.layer - 0.44), 0.88, 0.88, facecolor=color, edgecolor="none"))
    layers = max(len(layout.grid.of(stack)), 1)
    axis.set(xlim=(-0.5, _width(layout, stack) - 0.5), ylim=(layers - 0.5, -0.5), aspect="equal")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _width(layout: Layout, stack: str) -> int:
    return max(1, *layout.grid.of(stack), 1)
