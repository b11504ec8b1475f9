"""Blocks of weight matrices, and their scores in a file: a study, for no runtime that models are exported to computes sparse blocks.

    {"format": "blocks-1", "version": "0.1.0", "scorer": "magnitude", "block": 16, "subset": null, "batches": null, "max_tokens": null,
     "sentences": null, "seed": null, "checkpoint": "dense.pt", "weights": {…}, "scores": {"encoder.layers.0.fc1.weight": [[…], …], …}}

A block is B x B neighbouring numbers of one matrix. A mask keeps the blocks of the highest scores of all matrices together. It is no
layout: `fairseq-dsp-prune` takes none, and a model that is masked so is as large and as fast as it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.json_values import Rules, broken, excerpt, is_finite, is_whole, or_none, read_json
from fairseq_dsp.units.kinds import KINDS

# Other than the number that a score file has: what reads those refuses this.
FORMAT = "blocks-1"
BLOCKS = "blocks"  # as `--units` has it
SIZES = (16, 32)

# The linear maps of a layer whose weights have blocks: those that own units.
MAPS = tuple(name for kind in KINDS for name in (*kind.makers, *kind.readers))

Rows = list[list[float]]


@dataclass(frozen=True)
class BlockScores:
    """Scores of all blocks, a row a row of blocks, by the name of the matrix; the rest says where they are from, as in a score file."""

    version: str
    scorer: str
    block: int
    subset: str | None
    batches: int | None
    max_tokens: int | None
    sentences: int | None
    seed: int | None
    checkpoint: str
    weights: dict[str, str]
    scores: dict[str, Rows]

    def text(self) -> str:
        """The file's content."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return sum(len(row) for rows in self.scores.values() for row in rows)

    def masks(self, density: float) -> dict[str, Tensor]:
        """Which numbers of every matrix are kept, [rows, columns] of 0 and 1: floor(density · blocks) of all blocks together.

        Args:
            density: from 0 to 1. Of equal scores the earlier block is kept.
        """
        tables = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in self.scores.items()}
        flat = torch.cat([table.flatten() for table in tables.values()])
        kept = torch.zeros_like(flat)
        # of the number that was written, not of its nearest float
        count = math.floor(Fraction(repr(density)) * len(flat))
        kept[torch.sort(-flat, stable=True).indices[:count]] = 1.0
        parts = kept.split([table.numel() for table in tables.values()])
        ones = torch.ones(self.block, self.block)
        return {
            name: torch.kron(part.view_as(table).float(), ones)
            for (name, table), part in zip(tables.items(), parts, strict=True)
        }


def matrices_of(named: Mapping[str, Tensor]) -> dict[str, Any]:
    """Those of a model's named parameters that have blocks. A sublayer without units has none."""
    maps = {name: weight for name, weight in named.items() if name.split(".")[-1] == "weight" and _map(name) in MAPS}
    return {name: weight for name, weight in maps.items() if weight.numel()}


def by_block(weight: Tensor, block: int) -> Tensor:
    """A matrix [R, C] by its blocks: [R/B, C/B, B, B]."""
    return weight.unfold(0, block, block).unfold(1, block, block)


def refuse_uneven(matrices: Mapping[str, Tensor], block: int) -> None:
    """Raises:
    Refusal: a matrix does not divide into blocks, or there is none.
    """
    if not matrices:
        raise Refusal("`--units blocks` must be of a model with layers, but this one has none.")
    wrong = [
        f"{name} is {' x '.join(map(str, weight.shape))}"
        for name, weight in matrices.items()
        if any(size % block for size in weight.shape)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise Refusal(
            f"`--block` must divide the rows and columns of every matrix, but is {block}, and {wrong[0]}{more}."
        )


def read_block_scores(path: str, option: str) -> BlockScores:
    """Reads scores of blocks.

    Args:
        option: names the file in a refusal.

    Raises:
        Refusal: it cannot be read, is of another kind, or is damaged.
    """
    content = read_json(path, f"`{option}`")
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise Refusal(
            f"`{option}` must be of fairseq-dsp-score --units {BLOCKS}, format {FORMAT}, but {path} is of {excerpt(found)}."
        )
    names = BlockScores.__dataclass_fields__.keys()
    wrong = [f"`{name}` is missing" for name in names if name not in content] + broken(content, _RULES)
    if wrong:
        raise Refusal(f"`{option}` must be undamaged, but in {path} {'; '.join(wrong)}.")
    return BlockScores(**{name: content[name] for name in names})


def _map(name: str) -> str:
    return name.split(".")[-2] if "." in name else ""


def _is_table(rows: Any) -> bool:
    """Rows of as many numbers each."""
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, list) and row and len(row) == len(rows[0]) and all(map(is_finite, row)) for row in rows)
    )


_COUNT = ("a whole number or null", or_none(is_whole))
_RULES: Rules = {
    "block": (f"{' or '.join(map(str, SIZES))}", lambda value: is_whole(value) and value in SIZES),
    "scorer": ("a text", lambda value: isinstance(value, str)),
    "weights": ("fingerprints by name", lambda value: isinstance(value, dict)),
    "scores": (
        "tables of numbers by the names of matrices",
        lambda value: isinstance(value, dict) and bool(value) and all(map(_is_table, value.values())),
    ),
    **dict.fromkeys(("batches", "max_tokens", "sentences", "seed"), _COUNT),
}
