"""A costs file that nobody measured, of the tiny model in `models`: every table has a step at 0 and then a slope of its own."""

from __future__ import annotations

from typing import Any

from fairseq_dsp.units.cost_file import Conditions, CostFile, Table

CONDITIONS = Conditions("a server", "cpu", 1, "fairseq", "float32", 32, 5, 21, 21)


def made_up_costs(sizes: dict[str, Any], conditions: Conditions = CONDITIONS, rest: float = 0.05) -> CostFile:
    """Costs of a model of these sizes."""
    steps = {"enc": 1, "dec": 4, "cross": 3, "ffn-enc": 1, "ffn-dec": 2}
    tables = {}
    for stack, step in steps.items():
        most = max(sizes[stack])
        kept = (0, 1, most) if most > 1 else (0, 1)
        tables[stack] = Table(kept, tuple(1e-3 * step * (count + 1) if count else 0.0 for count in kept))
        if stack.startswith("ffn"):
            tables[stack] = Table(kept, tuple(1e-3 * step * (1 + count / most) if count else 0.0 for count in kept))
    total = rest + sum(table.at(count) for stack, table in tables.items() for count in sizes[stack])
    return CostFile("0.1.0", conditions, "wall", 7, "2026-11-26", sizes, total, rest, tables)


COSTS = made_up_costs(
    {
        "enc": (3, 3),
        "dec": (3, 3),
        "cross": (3, 3),
        "ffn-enc": (14, 14),
        "ffn-dec": (14, 14),
        "words": (11, 13),
        "parameters": (5000,),
    }
)
