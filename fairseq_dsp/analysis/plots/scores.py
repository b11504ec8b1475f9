"""A score against the number of heads kept, and against what the deployed model costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fairseq_dsp.analysis.groups import Group, grouped
from fairseq_dsp.analysis.plots import style
from fairseq_dsp.analysis.records import COSTS, SCORES, Record


def score_against_heads(records: Sequence[Record], *paths: str, score: str = "bleu_tok", note: str = "") -> None:
    """A line a method through the mean over seeds, bars from the lowest seed to the highest; dense is a level line.

    Args:
        records: runs of one model whose budgets are numbers of heads.
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
            _line(
                axis,
                [group for group in groups if group.method == method],
                looks[method],
                score,
                lambda group: group.kept,
            )
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


def score_against_costs(records: Sequence[Record], *paths: str, score: str = "bleu_tok", note: str = "") -> None:
    """A panel a cost that runs say (parameters, multiply-adds, measured seconds): a line a method, through the means over seeds.

    Bars reach from the lowest seed's score to the highest; dense is a level line, and a vertical one at what it costs.

    Args:
        records: runs of one model, of any budgets.
        paths, score, note: as of `score_against_heads`.
    """
    groups = grouped(records)
    methods = list(dict.fromkeys(group.method for group in groups))
    shown = [name for name in COSTS if any(group.values(name) for group in groups)]
    with style.drawing():
        width = min(style.COLUMN * len(shown), style.TEXT_WIDTH)
        rows = -(-len(methods) // 4)
        figure = style.new_figure(width, 2.35 + 0.15 * rows, note)
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        looks = style.looks(methods)
        for axis, name in zip(axes, shown, strict=True):
            what, scale = COSTS[name]

            def cost(group: Group, name: str = name, scale: float = scale) -> float | None:
                values = group.values(name)
                return scale * sum(values) / len(values) if values else None

            handles = []
            for method in methods:
                own = [group for group in groups if group.method == method]
                handles.append(
                    _line(axis, sorted(own, key=lambda group: cost(group) or 0.0), looks[method], score, cost)
                )
                if own[0].records[0].is_dense and (whole := cost(own[0])) is not None:
                    axis.axvline(whole, color=looks[method].color, linewidth=0.7, linestyle=":", zorder=1)
            axis.set(xlabel=what)
            axis.set_ylim(bottom=0)
            axis.locator_params(axis="x", nbins=5)
            axis.grid(axis="y")
        axes[0].set_ylabel(SCORES[score])
        style.legend_below(figure, handles, 4 if len(shown) > 1 else 2)
        style.save(figure, paths)


def _line(
    axis: Any, groups: Sequence[Group], look: style.Look, score: str, place: Callable[[Group], float | None]
) -> Any:
    """Draws a method; returns what stands for it in the legend.

    Args:
        place: where a group stands on the axis; None where that is not known.
    """
    from matplotlib.lines import Line2D

    method = groups[0].method
    points = [(x, group.values(score)) for group in groups if (x := place(group)) is not None]
    if groups[0].records[0].is_dense:
        values = groups[0].values(score)
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
