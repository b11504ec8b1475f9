"""Figures, one function each. matplotlib is imported when the first is drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fairseq_dsp.heads import STACK_NAMES, HeadLayout

# fairseq's imports leave the root logger at DEBUG, where matplotlib reports every font it considers
logging.getLogger("matplotlib").setLevel(logging.WARNING)

KEPT, REMOVED = "#1b5e8c", "#e3e6e8"


def kept_heads_grid(layouts: Mapping[str, HeadLayout], path: str) -> None:
    """Which heads are kept: a row of panels a layout, a panel an attention type, a row a layer, a column a head.

    Args:
        layouts: title of each row of panels -> layout.
        path: where to write; the suffix chooses the format (png, pdf, svg).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = list(STACK_NAMES)
    deepest = max((len(getattr(layout.grid, stack)) for layout in layouts.values() for stack in columns), default=1)
    widest = max(max(getattr(layout.grid, stack), default=1) for layout in layouts.values() for stack in columns)
    height = (0.42 * deepest + 0.9) * len(layouts)
    figure = Figure(figsize=(len(columns) * (0.42 * widest + 0.9) + 0.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(layouts), len(columns), squeeze=False)
    for row, (title, layout) in zip(axes, layouts.items(), strict=True):
        for axis, stack in zip(row, columns, strict=True):
            kept, total = layout.by_type()[stack]
            axis.set_title(f"{STACK_NAMES[stack]}  {kept}/{total}", fontsize=9)
            for site in (site for site in layout.grid.sites if site.stack == stack):
                for head, mark in enumerate(layout.marks(site)):
                    axis.add_patch(_cell(head, site.layer, mark))
            layers, heads = len(getattr(layout.grid, stack)), max(getattr(layout.grid, stack), default=1)
            axis.set(xlim=(-0.5, heads - 0.5), ylim=(layers - 0.5, -0.5), aspect="equal")
            axis.set_xticks(range(heads), [str(head + 1) for head in range(heads)], fontsize=7)
            axis.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)], fontsize=7)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(f"{title}\nlayer", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("head", fontsize=8)
    figure.savefig(path, dpi=160)


def _cell(head: int, layer: int, kept: bool):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    return Rectangle((head - 0.45, layer - 0.45), 0.9, 0.9, facecolor=KEPT if kept else REMOVED, edgecolor="none")
