"""How many cross-attention heads must stay (`--cross-floor`), whatever chooses. Called by `gates`, `score_file`, `plugin` and `checkpoints`.

A decoder without cross-attention does not see its source. Chance and every scorer leave it none now and then when the
budget is small, and no training repairs that.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.subset import hard_top_k

# What `--cross-floor` takes for a number: a head in every decoder layer.
LAYER = "layer"

# Groups of heads, flat indices, with the number that must stay of each. Groups are disjoint.
Floors = Sequence[tuple[Sequence[int], int]]


def parse_floor(text: str | None) -> int | str | None:
    """`--cross-floor` as a number of heads, or `layer`; None, as old checkpoints have it, for no floor.

    Raises:
        Refusal: it is neither.
    """
    if text is None or text == LAYER:
        return text
    if not re.fullmatch(r"\d{1,6}", text):
        raise Refusal(f"`--cross-floor` must be a number of heads or {LAYER}, but is {text}.")
    return int(text)


def floors_of(grid: Grid, floor: int | str | None) -> Floors:
    """The groups of a grid that a floor is about; a group without heads is left out.

    Args:
        floor: heads that must stay in all cross-attention together, or `layer`; None for no floor.
    """
    spans = [list(range(span.start, span.stop)) for site, span in grid.spans() if site.stack == "cross"]
    if floor == LAYER:
        return [(heads, 1) for heads in spans if heads]
    together = [head for heads in spans for head in heads]
    return [(together, int(floor))] if floor and together else []


def fewest(floors: Floors) -> int:
    """The smallest budget that meets the floors."""
    return sum(count for _, count in floors)


def objection_to_floor(grid: Grid, floor: int | str | None, kept: int | None, noun: str = "heads") -> str | None:
    """The sentence on a floor that the grid or the budget cannot meet; None if they can.

    Args:
        noun: what the grid's units of cross-attention are.
    """
    floors = floors_of(grid, floor)
    for heads, count in floors:
        if count > len(heads):
            return f"`--cross-floor` must be at most {len(heads)} (the cross-attention {noun}), but is {count}."
    if kept is not None and fewest(floors) > kept:
        return f"`--cross-floor {floor}` must fit the budget of {kept} {noun}, but keeps at least {fewest(floors)}."
    return None


def top_k_above_floors(scores: Tensor, k: int, floors: Floors) -> Tensor:
    """Mask of the k largest scores, of which every floored group has its share: 0/1 [n] of the scores' dtype.

    The best of each group up to its floor come first, then the best of all others. Where the k largest meet the floors they
    are what is returned. Ties go to the lower index.

    Args:
        scores: [n], finite.
        k: between the floors together and n.

    Raises:
        ValueError: k is outside.
    """
    if not floors:
        return hard_top_k(scores, k)
    if k < fewest(floors):
        raise ValueError(f"k must be at least {fewest(floors)} for these floors, but is {k}.")
    forced = torch.zeros_like(scores, requires_grad=False)
    for heads, count in floors:
        index = torch.tensor(list(heads), device=scores.device)
        forced[index] = hard_top_k(scores[index], count)
    rest = hard_top_k(scores.detach().masked_fill(forced > 0, -torch.inf), k - fewest(floors))
    return forced + rest


def random_subset_above_floors(layout: Layout, k: int, seed: int, floors: Floors) -> Layout:
    """k of a layout's heads, drawn with the seed; where the draw misses the floors, the floored groups are drawn from first.

    Args:
        floors: of the layout's surviving grid.

    Raises:
        ValueError: k is below the floors or above the number of heads.
    """
    first = layout.random_subset(k, seed)
    if meets([kept for kept, there in zip(first.kept, layout.kept, strict=True) if there], floors):
        return first
    generator = random.Random(seed)
    forced = [head for heads, count in floors for head in generator.sample(list(heads), count)]
    if len(forced) > k:
        raise ValueError(f"k must be at least {len(forced)} for these floors, but is {k}.")
    others = [head for head in range(layout.count) if head not in forced]
    chosen = {*forced, *generator.sample(others, k - len(forced))}
    return layout.narrow([float(head in chosen) for head in range(layout.count)])


def meets(kept: Sequence[bool], floors: Floors) -> bool:
    """Whether the marks of a grid's heads leave every group its share."""
    return all(sum(kept[head] for head in heads) >= count for heads, count in floors)
