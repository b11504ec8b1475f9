"""The arms of `choice`: methods by name with their options, and controls that tell what a method has won.

    [LABEL=]NAME[:option=value,…]

NAME is one of `--head-selection`; a scorer, which cuts a dense model above a `cross_floor` (1) and takes its own options beside that,
`cut:NAME` where a method has its name; or a control: `dense`, `sufficient`, `cross-first`, or `shuffled:ARM`, which draws anew which heads of every site another arm of the list keeps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from fairseq_dsp.benchmark.lookup import Head, sufficient_layout
from fairseq_dsp.config import PruningConfig, flag
from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.methods import METHODS
from fairseq_dsp.methods.stratified import counts_of_layout, draw_stratified
from fairseq_dsp.scoring import SCORER_OPTIONS, SCORERS, make_scorer
from fairseq_dsp.units.layout import Grid, Layout, Site

DENSE, SUFFICIENT, CROSS_FIRST, SHUFFLED, CUT = "dense", "sufficient", "cross-first", "shuffled", "cut"
CONTROLS = (DENSE, SUFFICIENT, CROSS_FIRST, SHUFFLED)
# Of the optimizer; all others are the model's.
OPTIMIZER_OPTIONS = ("importance_lr", "importance_lr_follows_scheduler")
FLOOR = "cross_floor"
_OF_METHODS = {option.name for option in fields(PruningConfig)}
_OPTIONS = _OF_METHODS - {"head_selection", "unpruned_heads", "seed", "derived"}
# Of a start from the dense model (`--start dense`): the share that is learned from it, and the scorer whose order importance begins with.
DISTILLATION, IMPORTANCE_FROM = "distillation", "importance_from"
FROM_THE_DENSE = (DISTILLATION, IMPORTANCE_FROM)
OF_THE_TRAINING = (*OPTIMIZER_OPTIONS, *FROM_THE_DENSE)
# a budget of its own must be a range, of which the arm deploys `--kept`
_OPTIONS |= {*OF_THE_TRAINING, *SCORER_OPTIONS, "unpruned_heads"}


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        label: what the table calls it.
        name: of a method, a scorer or a control.
        options: of the method, as text.
        source: of `shuffled`: the arm whose counts by site it takes.
        is_scorer: whether the name is a scorer's.
    """

    label: str
    name: str
    options: tuple[tuple[str, str], ...] = ()
    source: Arm | None = None
    is_scorer: bool = False

    @property
    def spec(self) -> str:
        """The text that gives this arm, without a label; what a line of results is found by."""
        if self.source is not None:
            return f"{SHUFFLED}:{self.source.spec}"
        prefix = f"{CUT}:" * (self.is_scorer and self.name in METHODS)
        return (
            prefix + self.name + ":" * bool(self.options) + ",".join(f"{name}={value}" for name, value in self.options)
        )


def parse_arm(text: str) -> Arm:
    """Reads `[LABEL=]NAME[:option=value,…]`.

    Raises:
        Refusal: no such name, or an option that is none; all reasons.
    """
    head, _, rest = text.partition(":")
    label, named, name = head.rpartition("=")
    label = label if named else text
    asked_to_cut = name == CUT
    if asked_to_cut:
        name, _, rest = rest.partition(":")
    if name == SHUFFLED:
        source = parse_arm(rest)
        if source.name in (SHUFFLED, DENSE):
            raise Refusal(f"`{SHUFFLED}` must take the counts of an arm that cuts heads, but is {text}.")
        return Arm(label, SHUFFLED, source=source)
    known = tuple(SCORERS) if asked_to_cut else tuple(dict.fromkeys((*METHODS, *SCORERS, *CONTROLS)))
    reasons = []
    if name not in known:
        reasons.append(f"`--methods` must name one of {', '.join(known)}, but is {text}.")
    # a comma inside a value is none before an option
    parts = re.split(r",(?=(?:" + "|".join(_OPTIONS) + r")=)", rest) if rest else []
    options = [(option, value) for option, _, value in (part.partition("=") for part in parts)]
    reasons += [
        f"`--methods` must give options of a method as option=value, but {part!r} in {text} is none."
        for part, (option, value) in zip(parts, options, strict=True)
        if option not in _OPTIONS or not value
    ]
    cuts = name in SCORERS and (asked_to_cut or name not in METHODS)
    taken = (
        {FLOOR, *SCORERS[name].options}
        if cuts
        else _OPTIONS - ({*SCORER_OPTIONS} - _OF_METHODS)
        if name in METHODS
        else set()
    )
    if alien := [option for option, _ in options if option in _OPTIONS - taken]:
        what = f"no options but {' and '.join(sorted(taken))}" if cuts else "no options"
        what = f"no {alien[0]}" if name in METHODS else what
        reasons.append(f"`--methods {name}` takes {what}, but is {text}.")
    if cuts and FLOOR not in dict(options):
        options.append((FLOOR, "1"))
    if cuts and not reasons:
        with noted(reasons):
            make_scorer(name, dict(options))
    if not cuts and (share := dict(options).get(DISTILLATION)) is not None and not _is_share(share):
        reasons.append(f"`--methods {name}:{DISTILLATION}` must be above 0 and at most 1, but is {share}.")
    if not cuts and not reasons and (scorer := dict(options).get(IMPORTANCE_FROM)) is not None:
        if scorer not in SCORERS:
            reasons.append(
                f"`--methods {name}:{IMPORTANCE_FROM}` must be one of {', '.join(SCORERS)}, but is {scorer}."
            )
        else:
            with noted(reasons):
                make_scorer(scorer, {})
        if not METHODS[name].learned:
            reasons.append(f"`--methods {name}` learns no importance, so it takes no {IMPORTANCE_FROM}, but is {text}.")
    if reasons:
        raise Refusal(*reasons)
    return Arm(label, name, tuple(sorted(options)), is_scorer=cuts)


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


def control_layout(arm: Arm, grid: Grid, k: int, seed: int, needed: Sequence[Head], source: Layout | None) -> Layout:
    """The heads of a control, decided before it trains.

    Args:
        needed: heads without which the task cannot be learned.
        source: what `shuffled` takes its counts from.
    """
    if arm.name == DENSE:
        return Layout.full(grid)
    if arm.name == SUFFICIENT:
        return sufficient_layout(grid, k, needed)
    if arm.name == CROSS_FIRST:
        return draw_stratified(grid, cross_first(grid, k), seed)
    assert source is not None
    return draw_stratified(grid, counts_of_layout(source), seed)


def cross_first(grid: Grid, k: int) -> dict[Site, int]:
    """Heads by site: one of cross-attention in every decoder layer, then one of decoder self-attention in every decoder
    layer, then one of encoder self-attention in every encoder layer, and so on until they are k."""
    counts = dict.fromkeys(grid.sites, 0)
    while sum(counts.values()) < k:
        open_sites = [site for site in grid.sites if counts[site] < grid.size(site)]
        if not open_sites:
            raise Refusal(f"{flag('kept')} must be at most {grid.total}, but is {k}.")
        for stack in ("cross", "dec", "enc"):
            for site in (site for site in open_sites if site.stack == stack):
                counts[site] += sum(counts.values()) < k
    return counts
