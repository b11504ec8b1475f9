"""What all figures share: size, type, colours that the colour-blind tell apart, a look for every method, the axis of budgets.

Colours are those of Okabe and Ito (2008); a marker and a dash say the same again, for print without colour.
"""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# fairseq's imports leave the root logger at DEBUG, where matplotlib reports every font it considers
logging.getLogger("matplotlib").setLevel(logging.WARNING)
logging.getLogger("fontTools").setLevel(logging.WARNING)

COLUMN = 3.35  # inches: the column of a two-column page
TEXT_WIDTH = 6.3
DOTS_PER_INCH = 300  # of PNG
_NOTE_SIZE, _NOTE_LINE, _NOTE_LETTERS = 6, 0.12, 20  # points; inches a line; letters an inch
INK, FAINT = "#222222", "#d9dcdf"
KEPT, REMOVED = "#1b5e8c", "#e3e6e8"
# colour, marker, dash of each attention type
TYPE_LOOKS = {"enc": ("#0072B2", "o", "-"), "dec": ("#D55E00", "s", "--"), "cross": ("#009E73", "^", "-.")}

FFN_LOOKS = {"ffn-enc": ("#56B4E9", "p", ":"), "ffn-dec": ("#E69F00", "D", ":")}

# The first word that a method's name contains chooses its look; the controls, which nothing chose, are grey.
_FAMILIES = {
    "dense": (INK, "None"),
    "pipelined": ("#56B4E9", "s"),
    "ste": ("#009E73", "^"),
    "hard": ("#E69F00", "D"),
    "gradient": ("#D55E00", "v"),
    "magnitude": ("#CC79A7", "P"),
    "fixed": ("#555555", "X"),
    "random": ("#9a9a9a", "x"),
    "dsp": ("#0072B2", "o"),
    "joint": ("#0072B2", "o"),
}
_OTHERS = [("#882255", "p"), ("#44AA99", "h"), ("#999933", "*"), ("#332288", "<"), ("#AA4499", ">")]
_DASHES = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5))]

_RC = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ea",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.8,
    "pdf.fonttype": 42,  # text stays text
}


@dataclass(frozen=True)
class Look:
    """How the line of a method is drawn."""

    color: str
    marker: str
    dash: Any


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for every method: a known one always has the same, a second of a family is dashed, an unknown one gets what is left."""
    found: dict[str, Look] = {}
    seen: dict[tuple[str, str], int] = {}
    others = 0
    for method in methods:
        words = method.lower().replace("_", "-").replace(" ", "-").split("-")
        look = next((look for word, look in _FAMILIES.items() if word in words), None)
        if look is None:
            look = _OTHERS[others % len(_OTHERS)]
            others += 1
        count = seen[look] = seen.get(look, -1) + 1
        found[method] = Look(*look, _DASHES[count % len(_DASHES)])
    return found


def drawing() -> Any:
    """A context in which matplotlib has our settings, whatever its configuration file says."""
    import matplotlib

    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    return matplotlib.rc_context({**defaults, **_RC})


def new_figure(width: float, height: float, note: str = "") -> Any:
    """A figure of this size in inches, which no window and no global list knows.

    Args:
        note: small print above it, for which it grows: what must go wherever the figure goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = textwrap.wrap(note, max(int(width * _NOTE_LETTERS), 20))
    figure = Figure(figsize=(width, height + _NOTE_LINE * len(lines)), layout="constrained")
    FigureCanvasAgg(figure)
    if lines:
        figure.suptitle("\n".join(lines), fontsize=_NOTE_SIZE, color="#666666", parse_math=False)
    return figure


def save(figure: Any, paths: Sequence[str]) -> None:
    """Writes the figure; the same figure gives the same bytes."""
    for path in paths:
        undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(path.rpartition(".")[2])
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata=undated)


def budget_axis(axis: Any, budgets: Iterable[int], total: int, width: float) -> None:
    """The axis of K from 0 to H, a tick a budget.

    Its scale is the square root: the budgets of interest are small ones, and a logarithm has no 0.

    Args:
        width: of the axis in inches; ticks whose labels would touch are left out.
    """
    import numpy as np

    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    total = max(total, 1)
    axis.set_xlim(0, total)
    ticks: list[int] = []
    space = 0.075 + 0.055 * len(str(total))
    # the ends first, then the small budgets
    for budget in [0, total, *sorted({*budgets} - {0, total})]:
        place = [width * math.sqrt(tick / total) for tick in (budget, *ticks)]
        if all(abs(place[0] - other) >= space for other in place[1:]):
            ticks.append(budget)
    axis.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axis.minorticks_off()


def legend_below(figure: Any, handles: Sequence[Any], columns: int) -> None:
    """A legend under the axes, where it hides nothing."""
    for handle in handles:
        if handle.get_label().startswith("_"):  # matplotlib would leave it out
            handle.set_label(" " + handle.get_label())
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.4, handletextpad=0.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a method may be called $x$
