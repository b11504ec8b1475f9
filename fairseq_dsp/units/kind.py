"""What a kind of unit is: the stacks that have such units, and which slice of which tensor one unit owns. Pure data.

A site's units are numbered, and lie side by side in every tensor that they share: unit u owns the places u·w … (u+1)·w - 1 of
one dimension of it, w the width of a unit (d of a head, g of a group of neurons). Whatever removes, restores, measures or counts
units is one loop over these slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """What one unit owns of one tensor.

    Args:
        name: of the tensor, from the site's module on, such as `q_proj.weight`. A model without biases lacks some.
        dim: the dimension in which units lie side by side.
        width: places of that dimension a unit.
    """

    name: str
    dim: int
    width: int

    def by_unit(self, tensor: Tensor) -> Tensor:
        """The tensor a row a unit: [units, numbers that a unit owns]."""
        units = tensor.shape[self.dim] // self.width
        return tensor.movedim(self.dim, 0).reshape(units, tensor.numel() // units if units else 0)


@dataclass(frozen=True)
class Stack:
    """A stack of sites of one kind, and where they are in a transformer.

    Args:
        name: as a layout's text has it.
        title: as tables have it.
        side: `encoder` or `decoder`.
        module: the site's module in a layer of that side; empty for the layer itself.
    """

    name: str
    title: str
    side: str
    module: str

    def module_name(self, layer: int) -> str:
        """The site's module in the model and its state, such as `decoder.layers.3.encoder_attn`."""
        return f"{self.side}.layers.{layer}" + (f".{self.module}" if self.module else "")


@dataclass(frozen=True)
class Kind:
    """A kind of unit: heads, or groups of neurons.

    Args:
        name: as options have it.
        noun: as tables and sentences have it, of several.
        stacks: in the order of a grid.
        readers: names of the linear maps that read what units computed: a unit owns columns of their weights.
        makers: of those that the units compute with: a unit owns rows of their weights and biases.
        marks: name, from the site's module on, of the 0/1 buffer that says which units are kept.
    """

    name: str
    noun: str
    stacks: tuple[Stack, ...]
    readers: tuple[str, ...]
    makers: tuple[str, ...]
    marks: str

    def slices(self, width: int) -> tuple[Slice, ...]:
        """What a unit of this width owns."""
        columns = [Slice(f"{name}.weight", 1, width) for name in self.readers]
        rows = [Slice(f"{name}.{part}", 0, width) for name in self.makers for part in ("weight", "bias")]
        return (*columns, *rows)


def unit_places(units: Sequence[int], width: int) -> Tensor:
    """The places of a tensor's dimension that the units own: [len(units) · width]."""
    starts = torch.tensor(list(units), dtype=torch.long).unsqueeze(1) * width
    return (starts + torch.arange(width)).flatten()
