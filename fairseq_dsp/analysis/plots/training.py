"""What happened to temperature, importance and heads while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairseq_dsp.analysis.plots import style
from fairseq_dsp.analysis.training_log import TrainingLog
from fairseq_dsp.units.layout import STACK_NAMES

_FEW = 20  # points that are marked


def training_courses(logs: Mapping[str, TrainingLog], *paths: str, note: str = "") -> None:
    """A column a run: temperature, mean importance by type, norm of its gradient, heads kept by type and heads changed.

    A vertical line marks the update at which the heads were fixed. At most four runs fit a page's width.

    Args:
        logs: title of each column -> its log.
        paths: where to write.
        note: small print above the figure.
    """
    from matplotlib.lines import Line2D

    there = {name for log in logs.values() for name in log.figures}
    looks = style.TYPE_LOOKS | {stack: look for stack, look in style.FFN_LOOKS.items() if f"heads_{stack}" in there}
    with style.drawing():
        columns = len(logs)
        width = max(0.5 + 1.9 * columns, style.COLUMN)
        figure = style.new_figure(width, 6.0, note)
        axes = figure.subplots(5, columns, sharex="col", squeeze=False)
        for row in (*axes[:1], *axes[2:]):  # but importance: each method has a scale of its own
            for axis in row[1:]:
                axis.sharey(row[0])
                axis.tick_params(which="both", labelleft=False)
        for column, (title, log) in zip(axes.T, logs.items(), strict=True):
            column[0].set_title(title, parse_math=False)
            _course(column[0], log, "temperature", positive=True)
            for stack, (color, _, _) in looks.items():
                _course(column[1], log, f"importance_{stack}", color=color)
                _course(column[3], log, f"heads_{stack}", color=color, drawstyle="steps-post")
            _course(column[2], log, "importance_gnorm")
            _course(column[4], log, "heads_changed", drawstyle="steps-post")
            for axis in column:
                axis.grid(axis="y")
                if log.fixed_at is not None:
                    axis.axvline(log.fixed_at, color=style.INK, linewidth=0.7, linestyle=":")
            if log.fixed_at is not None:
                column[0].annotate(
                    "heads fixed",
                    (log.fixed_at, 1),
                    (-2, -1),
                    xycoords=("data", "axes fraction"),
                    textcoords="offset points",
                    fontsize=6,
                    ha="right",
                    va="top",
                    rotation=90,
                )
            column[-1].set_xlabel("updates")
            column[-1].locator_params(axis="x", nbins=4)
        names = (
            "temperature", "mean\nimportance", "gradient norm\nof importance", "units kept" if len(looks) > len(style.TYPE_LOOKS) else "heads kept", "heads changed\nsince validation",
        )  # fmt: skip
        for axis, name in zip(axes[:, 0], names, strict=True):
            axis.set_ylabel(name)
        if any(value > 0 for log in logs.values() for _, value in log.figures.get("temperature", [])):
            axes[0, 0].set_yscale("log")
        axes[2, 0].set_yscale("symlog", linthresh=0.01)  # methods differ by orders of magnitude, and fixed heads have 0
        for row in axes[2:]:
            row[0].set_ylim(bottom=0)
        figure.align_ylabels(axes[:, 0])
        handles = [Line2D([], [], color=color, label=STACK_NAMES[stack]) for stack, (color, _, _) in looks.items()]
        style.legend_below(figure, handles, columns=3)
        style.save(figure, paths)


def _course(axis: Any, log: TrainingLog, name: str, positive: bool = False, **look: Any) -> None:
    points = [(update, value) for update, value in log.figures.get(name, []) if value > 0 or not positive]
    if points:
        # a line through one point is nothing to see
        marks = {"marker": "o", "markersize": 2.5} if len(points) <= _FEW else {}
        axis.plot(*zip(*points, strict=True), **{"color": style.INK, "linewidth": 1.0} | marks | look)
