"""All kinds of units, in the order of a grid. A new one is a file beside these and a place in one of these lists."""

from __future__ import annotations

from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kind import Kind, Stack
from fairseq_dsp.units.neurons import NEURONS
from fairseq_dsp.units.sublayers import SUBLAYERS

# What a layout marks.
KINDS: tuple[Kind, ...] = (HEADS, NEURONS)
# What can be chosen among: these, and what owns several of them.
CHOICES: tuple[Kind, ...] = (*KINDS, SUBLAYERS)

STACK_OF: dict[str, Stack] = {stack.name: stack for kind in KINDS for stack in kind.stacks}
KIND_OF: dict[str, Kind] = {stack.name: kind for kind in KINDS for stack in kind.stacks}
