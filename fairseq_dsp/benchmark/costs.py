"""Measures what units take: the tables of a costs file (`units/cost_file`), for `fairseq-dsp-bench --costs`.

A stack of sublayers at a time: models that differ in the number of units of that stack alone take turns with each other, with the
model of all units and with one of none. What a sublayer takes with n units is the median, over turns, of the time with n less the time
with none, by the number of layers. It is measured twice, among sublayers that have all of their units and among empty ones, and the
mean counts: a layout lies between the two. All tables are then multiplied by one factor, so that they add up to what separates the
two ends, which are themselves measured.

In CTranslate2 all attention of a side computes as many queries as its sublayer of the most heads (`export/packing`). There the last layer of
encoder and decoder keeps all of its heads in every model that is measured: a table says what a sublayer takes beside a full one.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

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
_AS_IT_IS, _ALL, _NONE = "as it is", "all units", "no units"


def points(stack: str, most: int) -> list[int]:
    """The numbers of units at which a stack is measured, 0 first and all of them last."""
    first = _FEWEST if KIND_OF[stack] is NEURONS else 1
    inner = {first, most // 4, most // 2} if KIND_OF[stack] is NEURONS else {first, most // 2, most // 2 + 1}
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
    watch: Callable[[str], Watch] = lambda stack: unwatched,
) -> tuple[CostFile, list[tuple[str, Row]]]:
    """Measures a model.

    Args:
        candidate: dense, with `ctranslate2` where costs are those of CTranslate2.
        settings: `output_length` is given.
        case: generation.
        watch: for the name of a stack, what is told how far each part of the work is.

    Returns:
        the costs, and all rows, each with the stack that it was measured for.

    Raises:
        Refusal: the model lacks units, or its time does not fall with them.
    """
    timing = replace(timing, memory=False)
    whole = facts_of(replace(candidate, cut="").build(settings.words))
    _refuse_lacking(candidate, whole)
    held = _held(whole.sizes) if candidate.ctranslate2 else ()
    rows: list[tuple[str, Row]] = []
    for stack in KIND_OF:
        measured = [(_AS_IT_IS, candidate)] if not candidate.ctranslate2 else []
        named = _layouts(stack, whole.sizes, held)
        measured += [(name, replace(candidate, cut=str(layout))) for name, layout in named]
        ready = [(name, each, facts_of(each.build(settings.words))) for name, each in measured]
        rows += [(stack, row) for row in compare(ready, settings, timing, case, watch(stack))]
    tables, dense, rest = tables_of({stack: _of(rows, stack) for stack in KIND_OF}, whole.sizes, held)
    sentences = case.batch or 1
    file = CostFile(
        version=__version__,
        conditions=conditions_of(rows[0][1].engine, settings, case),
        clock=timing.clock,
        pairs=timing.pairs,
        date=datetime.date.today().isoformat(),
        sizes=whole.sizes,
        dense=dense / sentences,
        rest=rest / sentences,
        tables={
            stack: Table(table.kept, tuple(value / sentences for value in table.seconds))
            for stack, table in tables.items()
        },
    )
    return file, rows


def tables_of(
    measured: dict[str, dict[str, list[float]]], sizes: Sizes, held: Sequence[str] = ()
) -> tuple[dict[str, Table], float, float]:  # fmt: skip
    """The tables of all stacks from the times of all models, dense time and the rest, in the times' unit.

    Args:
        measured: by stack, seconds of every turn by the model's name: `as it is` (where that is another model), `all units`,
            `no units`, and `N among all`, `N among none`.
        held: stacks whose last layer had all of its units everywhere.

    Raises:
        Refusal: time does not fall with units.
    """
    found = {}
    for stack, times in measured.items():
        kept = points(stack, max(sizes[stack]))
        layers = sum(size > 0 for size in sizes[stack]) - (stack in held)
        added = []
        for count in kept:
            among_all = _difference(times[_name(count, kept, "all")], times[_name(0, kept, "all")])
            among_none = _difference(times[_name(count, kept, "none")], times[_name(0, kept, "none")])
            added.append((among_all + among_none) / 2 / layers)
        found[stack] = (kept, rising(added))
    whole, none = (median([value for times in measured.values() for value in times[name]]) for name in (_ALL, _NONE))
    costs = {stack: [float(np.interp(size, *found[stack])) for size in sizes[stack]] for stack in found}
    fixed = sum(costs[stack].pop() for stack in held)
    total = sum(map(sum, costs.values()))
    if whole <= none or total <= 0 or none <= fixed * (whole - none) / total:
        raise Refusal(
            f"what is measured must fall as units go, but is {whole:.3g} s a batch with all of them and {none:.3g} s with none: measure with "
            "more `--pairs`, on a quieter machine, or with `--clock cpu`."
        )
    factor = (whole - none) / total
    dense = median([value for times in measured.values() for value in times.get(_AS_IT_IS, times[_ALL])])
    tables = {
        stack: Table(tuple(kept), tuple(float(value) * factor for value in added))
        for stack, (kept, added) in found.items()
    }
    return tables, dense, none - fixed * factor


def drawn(costs: CostFile) -> list[str]:
    """A costs file for people: microseconds a sentence."""
    lines = [
        f"measured {costs.conditions}",
        f"dense {costs.dense * 1e3:.4g} ms a sentence, without units {costs.rest * 1e3:.4g} ms",
    ]
    for stack, table in costs.tables.items():
        pairs = ", ".join(
            f"{kept}: {seconds * 1e6:.4g}" for kept, seconds in zip(table.kept, table.seconds, strict=True)
        )
        lines.append(f"{STACK_OF[stack].title}, µs a sublayer with so many: {pairs}")
    return lines


def rising(values: Sequence[float]) -> list[float]:
    """The nearest values, by least squares, that begin with 0 and never fall (isotonic regression, by its max-min formula)."""
    later = list(values[1:])
    best = (
        max(
            min(float(np.mean(later[first : last + 1])) for last in range(place, len(later)))
            for first in range(place + 1)
        )
        for place in range(len(later))
    )
    return [0.0, *(max(value, 0.0) for value in best)]


def _held(sizes: Sizes) -> tuple[str, ...]:
    """Stacks whose last layer keeps all of its heads; none where a side has no other layer."""
    stacks = ("enc", "dec")
    return stacks if all(sum(size > 0 for size in sizes[stack]) > 1 for stack in stacks) else ()


def _layouts(stack: str, sizes: Sizes, held: Sequence[str] = ()) -> Iterator[tuple[str, Layout]]:
    """What is measured for a stack: names and layouts, the two ends first."""
    kept = points(stack, max(sizes[stack]))
    yield _ALL, _layout(sizes, stack, sizes[stack], True, held)
    yield _NONE, _layout(sizes, stack, [0] * len(sizes[stack]), False, held)
    for others in (True, False):
        for count in kept:
            name = _name(count, kept, "all" if others else "none")
            if name not in (_ALL, _NONE):
                yield name, _layout(sizes, stack, [min(count, size) for size in sizes[stack]], others, held)


def _name(count: int, kept: Sequence[int], among: str) -> str:
    if among == "all" and count == kept[-1]:
        return _ALL
    if among == "none" and count == 0:
        return _NONE
    return f"{count} among {among}"


def _layout(sizes: Sizes, stack: str, counts: Sequence[int], others: bool, held: Sequence[str]) -> Layout:
    """The layout of these counts in the layers of a stack, and all or none of the units of others; all in a last layer that is held."""
    heads = Grid.of_heads(*(sizes[each.name] for each in HEADS.stacks))
    neurons = {each.name: sizes[each.name] for each in NEURONS.stacks}
    widths = [width for each in neurons for width in (*neurons[each], *points(each, max(neurons[each])))]
    group = math.gcd(*widths) or 1
    grid = with_groups(heads, neurons, group)
    marks: list[float] = []
    for site, size in grid.counts:
        width = group if KIND_OF[site.stack] is NEURONS else 1
        kept = counts[site.layer] // width if site.stack == stack else size if others else 0
        if site.stack in held and site.layer == len(sizes[site.stack]) - 1:
            kept = size
        marks += [1.0] * kept + [0.0] * (size - kept)
    return Layout.of_mask(grid, marks)


def _of(rows: Sequence[tuple[str, Row]], stack: str) -> dict[str, list[float]]:
    return {row.model: row.seconds for each, row in rows if each == stack}


def _difference(one: Sequence[float], other: Sequence[float]) -> float:
    return median([first - second for first, second in zip(one, other, strict=True)])


def _refuse_lacking(candidate: Candidate, facts: Facts) -> None:
    layout = Layout.parse(facts.layout)
    if facts.gated or layout.count < layout.grid.total:
        what = "chooses among its units" if facts.gated else f"keeps {layout.counted()}"
        raise Refusal(f"`--costs` must be measured of a dense model, but {candidate.text} {what}.")
