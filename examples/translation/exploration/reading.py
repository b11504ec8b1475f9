"""What lines of an exploration say: means by arm, differences paired by seed, and whether early losses foretell the last."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from scipy import stats

from .running import DENSE

EARLY = ("cut", "at30", "at60")
NATS, BLEU = "nats", "bleu"
SHUFFLED = "-shuffled"
# Arms of the first scripts chose by scores of other sublayers: a name of their own keeps them apart from those that do as they say.
MISLABELLED = " \N{DAGGER}"
_MISLED_FAMILIES = ("oneshot", "fisher", "gradual", "race")
_OTHER_MODELS = ("small", "narrow")  # families that cut nothing
_FIRST_LR = 1e-3  # of phase 1, whose lines do not say it
Line = dict[str, Any]


def name_of(line: Line) -> str:
    """The arm's name; in lines of the first scripts, whose rules and draws share a name, it follows from their options."""
    arm, options = line["arm"], line.get("a", {})
    note = str(options.get("note", ""))
    if note.startswith("tune ") or note == "landscape":
        return note
    if arm == "strat":
        return f"strat{options['cross']}+{options['dec']}"
    if arm == "random" and "level" not in options:
        return f"random{options.get('draw', 0)}"
    by_first_scripts = "K" in line and "schedule" not in line
    misled = options.get("family") in _MISLED_FAMILIES or options.get("score") == "sentence" or "init" in options
    return arm + MISLABELLED if by_first_scripts and misled else arm


def budget_of(line: Line) -> float | None:
    """K, a whole number, or the share of what can go that stays; None of a dense model."""
    return line.get("share", line.get("K"))


def by_arm(lines: Iterable[Line], budget: float, figure: str = NATS) -> dict[str, dict[int, float]]:
    """Arm -> seed -> value, of one budget, the best mean first; the landscape, which has many lines a seed, is left out.

    Args:
        figure: `nats`, or `bleu`, which lines may lack.
    """
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        if budget_of(line) == budget and name_of(line) != "landscape" and figure in line:
            found.setdefault(name_of(line), {})[line["seed"]] = line[figure]
    return dict(sorted(found.items(), key=lambda item: statistics.mean(item[1].values()), reverse=figure == BLEU))


def best_of(arms: dict[str, dict[int, float]], names: Sequence[str]) -> str | None:
    """The one of these with the best mean; `arms` are in that order."""
    return next((name for name in arms if name in names), None)


def rules(arms: Iterable[str]) -> list[str]:
    """The arms that draw heads with counts by a rule."""
    return [name for name in arms if name.startswith("strat")]


def budgets(lines: Iterable[Line]) -> list[float]:
    """The budgets of the lines, in order."""
    return sorted({budget for line in lines if (budget := budget_of(line)) is not None})


def dense_nats(lines: Iterable[Line]) -> dict[int, float]:
    """Seed -> nats of the dense model."""
    return {line["seed"]: line["curve"][-1][1] for line in lines if line["arm"] == DENSE}


def rank_correlation(lines: Sequence[Line], early: str) -> float | None:
    """Spearman's correlation of an early loss with the last, ties at their mean rank; None for under three lines or equal losses."""
    pairs = [(line[early], line["nats"]) for line in lines if early in line]
    if len(pairs) < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None
    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


def from_scratch(line: Line) -> bool:
    """Whether the arm began with weights before their first update."""
    return bool(line.get("a", {}).get("scratch"))


def regime_of(line: Line) -> tuple[int | None, float]:
    """Updates in all and learning rate: arms that are compared have the same."""
    return line.get("U"), line.get("lr", _FIRST_LR)


def regimes(lines: Iterable[Line]) -> list[tuple[int | None, float]]:
    """Those of the arms, but for arms that compare learning rates, which say theirs in their names."""
    return sorted({regime_of(line) for line in lines if budget_of(line) is not None and not is_tuning(line)}, key=str)


def is_cut(line: Line) -> bool:
    """Whether the line has the loss of a trained model right after a cut, before anything was trained on."""
    return "cut" in line and not from_scratch(line) and line.get("a", {}).get("family") not in _OTHER_MODELS


def only_cuts(line: Line) -> bool:
    """Whether the arm cuts the trained model and moves no other weight before it is fine-tuned, without a teacher."""
    options = line.get("a", {})
    moved = options.get("recut") or options.get("kd")
    rescaled = options.get("family") in ("obs", "staged") and not options.get("cutonly")
    return is_cut(line) and not moved and not rescaled


def is_tuning(line: Line) -> bool:
    """Whether the line is of another learning rate than the others, for comparison of the rates."""
    return name_of(line).startswith("tune ") or " lr" in name_of(line)


def early_means(lines: Iterable[Line], budget: float) -> dict[str, list[float]]:
    """Arm -> means of the early losses and of the last, of the arms of one budget that only cut; the lowest after 60 updates first."""
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        if budget_of(line) == budget and only_cuts(line) and "at60" in line and not is_tuning(line):
            found.setdefault(name_of(line), []).append([line[name] for name in (*EARLY, "nats")])
    means = {name: [statistics.mean(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    return dict(sorted(means.items(), key=lambda item: item[1][2]))
