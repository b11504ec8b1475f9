"""A score against the number of heads kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairseq_dsp.analysis.groups import Group, grouped
from fairseq_dsp.analysis.plots import style
from fairseq_dsp.analysis.records import SCORES, Record


def score_against_heads(records: Sequence[Record], *paths: str, score: str = "bleu_tok", note: str = "") -> None:
    """A line a method through the mean over seeds, bars from the lowest seed to the highest; dense is a level line.

    Args:
        records: runs of one model.
        paths: where to write.
        score: `bleu_tok`, `sacrebleu` or `chrf`.
        note: small print above the figure.
    """
    groups = grouped(records)
    methods = list(dict.fromkeys(group.method for group in groups))
    total = max(record.total for record in records)
    columns = 3 if len(methods) > 4 else 2
    rows = -(-len(methods) // columns)
    with style.drawing():
        figure = style.new_figure(style.COLUMN, 2.35 + 0.15 * rows, note)
        axis = figure.subplots()
        style.budget_axis(axis, {group.kept for group in groups}, total, width=2.8)
        looks = style.looks(methods)
        handles = [
            _line(axis, [group for group in groups if group.method == method], looks[method], score)
            for method in methods
        ]
        axis.set(xlabel=f"heads kept, of {total} (square-root scale)", ylabel=SCORES[score])
        axis.set_ylim(bottom=0)
        axis.margins(y=0.06)
        axis.grid(axis="y")
        # a marker at K = 0 or K = H stands on the edge of the axes, whole
        for artist in [*axis.lines, *axis.collections]:
            artist.set_clip_on(False)
        style.legend_below(figure, handles, columns)
        style.save(figure, paths)


def _line(axis: Any, groups: Sequence[Group], look: style.Look, score: str) -> Any:
    """Draws a method; returns what stands for it in the legend."""
    from matplotlib.lines import Line2D

    method = groups[0].method
    points = [(group.kept, group.values(score)) for group in groups]
    if groups[0].records[0].is_dense:
        values = points[0][1]
        axis.axhspan(min(values), max(values), color=look.color, alpha=0.15, linewidth=0, zorder=1)
        axis.axhline(sum(values) / len(values), color=look.color, linewidth=1.0, zorder=2)
        return Line2D([], [], color=look.color, linewidth=1.0, label=method)
    kept = [k for k, _ in points]
    means = [sum(values) / len(values) for _, values in points]
    hollow = {"markerfacecolor": "white"} if look.dash != "-" else {}
    marks = {"color": look.color, "marker": look.marker, "linestyle": look.dash, **hollow}
    axis.plot(kept, means, **marks, zorder=3)
    for k, values in points:
        if len(values) > 1:
            axis.vlines(k, min(values), max(values), color=look.color, linewidth=2.6, alpha=0.35, zorder=2.5)
    return Line2D([], [], **marks, label=method)
