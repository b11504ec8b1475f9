"""Measures what units take: the tables of a costs file (`units/cost_file`), for `fairseq-dsp-bench --costs`.

Models of many layouts are measured, and the tables are those that explain their times best: non-negative least squares of relative
errors, whose unknowns are the time without units and, for a sublayer of each stack, the steps from one measured number of units to the
next. Each time says something of all tables, and what one model takes by chance of where its weights lie in memory is spread over all.
"""

from __future__ import annotations

import datetime
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from fairseq_dsp.benchmark.candidates import Candidate, Facts, facts_of
from fairseq_dsp.benchmark.comparison import Row, Timing, compare
from fairseq_dsp.benchmark.measuring import Watch, median, unwatched
from fairseq_dsp.benchmark.promises import conditions_of
from fairseq_dsp.benchmark.sentences import batch_of
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.cost_file import CostFile, Sizes, Table
from fairseq_dsp.units.groups import with_groups
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import KIND_OF, STACK_OF
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.neurons import NEURONS
from fairseq_dsp.version import __version__

_FEWEST = 16  # neurons of the first number above 0: CTranslate2 takes widths in multiples of it
_AT_ONCE = 7  # models in memory at a time, beside those of every run
_LAYOUTS_AN_UNKNOWN = 3
_AS_IT_IS, _ALL, _NONE = "as it is", "all units", "no units"

Counts = Mapping[str, tuple[int, ...]]  # units by layer of every stack


@dataclass(frozen=True)
class Fit:
    """Tables that explain times.

    Attributes:
        tables: of a sublayer of every stack, in the times' unit.
        rest: without any units.
        spread: the root of the mean squared relative error of what they say of the measured layouts.
    """

    tables: dict[str, Table]
    rest: float
    spread: float

    def of(self, counts: Counts) -> float:
        """What a model with so many units takes."""
        return self.rest + sum(self.tables[stack].at(kept) for stack, layers in counts.items() for kept in layers)


def points(stack: str, most: int) -> list[int]:
    """The numbers of units that a table has, 0 first and all of them last."""
    first = _FEWEST if KIND_OF[stack] is NEURONS else 1
    inner = {first, most // 2} if KIND_OF[stack] is NEURONS else {first, most // 2, most // 2 + 1}
    return [0, *sorted(point for point in inner if 0 < point < most), most]


def target_words(settings: Settings, case: Case) -> int:
    """The mean words of a translation of the batch, its end excluded, rounded: as many are generated where nobody says how many."""
    batch = batch_of(settings, case.batch or 1)
    return max(round(batch["ntokens"] / len(batch["target"])) - 1, 1)


def measure_costs(
    candidate: Candidate,
    settings: Settings,
    timing: Timing,
    case: Case,
    watch: Callable[[int, int], Watch] = lambda number, runs: unwatched,
) -> tuple[CostFile, Fit, list[Row]]:
    """Measures a model.

    Args:
        candidate: dense, with `ctranslate2` where costs are those of CTranslate2.
        settings: `output_length` is given.
        case: generation.
        watch: for the number of a run and that of all runs, what is told how far the run is.

    Returns:
        the costs, what they were made of, seconds a batch, and all rows.

    Raises:
        Refusal: the model lacks units, or its time does not fall with them.
    """
    timing = replace(timing, memory=False)
    whole = facts_of(replace(candidate, cut="").build(settings.words))
    _refuse_lacking(candidate, whole)
    wanted = dict(layouts(whole.sizes))
    others = [name for name in wanted if name != _ALL]
    runs = [[_ALL, *others[start : start + _AT_ONCE]] for start in range(0, len(others), _AT_ONCE)]
    rows: list[Row] = []
    for number, names in enumerate(runs, 1):
        measured = [(name, replace(candidate, cut=str(layout_of(whole.sizes, wanted[name])))) for name in names]
        if not candidate.ctranslate2:  # fairseq's own attention takes other time than ours with all heads
            measured.insert(0, (_AS_IT_IS, candidate))
        ready = [(name, each, facts_of(each.build(settings.words))) for name, each in measured]
        rows += compare(ready, settings, timing, case, watch(number, len(runs)))
    fit = fitted([(wanted[row.model], row.median) for row in rows if row.model in wanted], whole.sizes)
    # a share is of this: it is measured anew in every run, for the tables may be off here as anywhere
    dense = median([row.median for row in rows if row.model == (_ALL if candidate.ctranslate2 else _AS_IT_IS)])
    sentences = case.batch or 1
    file = CostFile(
        version=__version__,
        conditions=conditions_of(rows[0].engine, settings, case),
        clock=timing.clock,
        pairs=timing.pairs,
        date=datetime.date.today().isoformat(),
        sizes=whole.sizes,
        dense=dense / sentences,
        rest=fit.rest / sentences,
        tables={
            stack: Table(table.kept, tuple(value / sentences for value in table.seconds))
            for stack, table in fit.tables.items()
        },
    )
    return file, fit, rows


def layouts(sizes: Sizes, seed: int = 1) -> Iterator[tuple[str, Counts]]:
    """What is measured, by name: all units, none, and for every unknown three layouts that are drawn.

    A stack of one that is drawn has all of its units, none, or at each layer one of its `points`: choices under a budget of time leave whole stacks
    empty, others full, and some in between.
    """
    kinds = {stack: points(stack, max(sizes[stack])) for stack in KIND_OF}
    yield _ALL, {stack: tuple(sizes[stack]) for stack in KIND_OF}
    yield _NONE, {stack: (0,) * len(sizes[stack]) for stack in KIND_OF}
    draw = random.Random(seed)
    for number in range(_LAYOUTS_AN_UNKNOWN * (1 + sum(len(each) - 1 for each in kinds.values()))):
        counts = {}
        for stack, numbers in kinds.items():
            offered = draw.choice([[0], [numbers[-1]], numbers, numbers, numbers])
            counts[stack] = tuple(min(draw.choice(offered), size) for size in sizes[stack])
        yield f"layout {number + 1}", counts


def fitted(measured: Sequence[tuple[Counts, float]], sizes: Sizes) -> Fit:
    """The tables that explain times, by least squares of relative errors; no table falls, and the rest is not below 0.

    Raises:
        Refusal: time does not fall with units.
    """
    kept = {stack: points(stack, max(sizes[stack])) for stack in KIND_OF}
    steps = np.array([_steps(counts, kept) for counts, _ in measured])
    seconds = np.array([time for _, time in measured])
    found, _ = nnls(steps / seconds[:, None], np.ones(len(seconds)))
    rest, values = float(found[0]), iter(found[1:])
    tables = {
        stack: Table(tuple(each), (0.0, *map(float, itertools.accumulate(itertools.islice(values, len(each) - 1)))))
        for stack, each in kept.items()
    }
    if not rest > 0 or not found[1:].sum() > 1e-9 * rest:  # beyond what rounding leaves
        raise Refusal(
            f"what is measured must fall as units go, but layouts of any size take {seconds.min():.3g} to {seconds.max():.3g} s a batch: measure "
            "with more `--pairs`, on a quieter machine, or with `--clock cpu`."
        )
    errors = steps @ found / seconds - 1
    return Fit(tables, rest, math.sqrt(float(np.mean(errors**2))))


def _steps(counts: Counts, kept: Mapping[str, Sequence[int]]) -> list[float]:
    """How often a model takes each unknown: the rest once, then for every stack the steps between neighbouring numbers of its table."""
    found = [1.0]
    for stack, numbers in kept.items():
        for step, (low, high) in enumerate(itertools.pairwise(numbers)):
            # the first step is a sublayer's own cost, and is taken whole by any unit
            shares = (float(count > 0) if step == 0 else (count - low) / (high - low) for count in counts[stack])
            found.append(sum(min(max(share, 0.0), 1.0) for share in shares))
    return found


def drawn(costs: CostFile, fit: Fit) -> list[str]:
    """A costs file for people: microseconds a sentence, and how well they explain what was measured."""
    lines = [
        f"measured {costs.conditions}",
        f"dense {costs.dense * 1e3:.4g} ms a sentence, without units {costs.rest * 1e3:.4g} ms; these tables are {fit.spread:.1%} off the times "
        "of the models that were measured (root mean square)",
    ]
    for stack, table in costs.tables.items():
        pairs = ", ".join(
            f"{kept}: {seconds * 1e6:.4g}" for kept, seconds in zip(table.kept, table.seconds, strict=True)
        )
        lines.append(f"{STACK_OF[stack].title}, µs a sublayer with so many: {pairs}")
    return lines


def layout_of(sizes: Sizes, counts: Counts) -> Layout:
    """The layout of the first so many units of every sublayer."""
    heads = Grid.of_heads(*(sizes[each.name] for each in HEADS.stacks))
    neurons = {each.name: sizes[each.name] for each in NEURONS.stacks}
    widths = [width for each in neurons for width in (*neurons[each], *counts[each])]
    group = math.gcd(*widths) or 1
    grid = with_groups(heads, neurons, group)
    marks: list[float] = []
    for site, size in grid.counts:
        kept = counts[site.stack][site.layer] // (group if KIND_OF[site.stack] is NEURONS else 1)
        marks += [1.0] * kept + [0.0] * (size - kept)
    return Layout.of_mask(grid, marks)


def _refuse_lacking(candidate: Candidate, facts: Facts) -> None:
    layout = Layout.parse(facts.layout)
    if facts.gated or layout.count < layout.grid.total:
        what = "chooses among its units" if facts.gated else f"keeps {layout.counted()}"
        raise Refusal(f"`--costs` must be measured of a dense model, but {candidate.text} {what}.")
