"""Results of runs that never were: artificial numbers in the form of a results file, for tests of what reads one."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from fairseq_dsp.units.layout import Grid, Layout

GRID = Grid.of_heads((4, 4, 4), (4, 4, 4), (4, 4, 4))
# layouts of heads, and of networks of 8 groups of neurons
JOINT = f"enc:1000.0000.0000/dec:0000.0000.0000/cross:1100.1000.0000/ffn-enc:11110000.{'0' * 8}.{'1' * 8}/ffn-dec:00100000.10000001.{'0' * 8}"
OTHER = JOINT.replace("enc:1000", "enc:0000")
BUDGETS = (24, 12, 6, 3, 0)
# how fast the made-up score falls with the heads
METHODS = {"dsp": 0.2, "dsp-pipelined": 0.3, "ste": 0.25, "hard-concrete": 0.35, "gradient": 0.6, "random": 1.2}
METHODS |= {"gradient-finetuned": 0.4, "fixed": 0.5, "brand new": 0.45}


def run(method: str = "dsp", kept: int = 6, seed: int = 1, grid: Grid = GRID, **others: Any) -> dict[str, Any]:
    """One line's content."""
    draw = random.Random(f"{method} {kept} {seed}")
    bleu = (
        2
        + 30 * math.exp(-METHODS.get(method, 0.0) * (1 - kept / max(grid.total, 1)) ** 2 * 3)
        + draw.uniform(-0.5, 0.5)
    )
    signature = "nrefs:1|case:{}|eff:no|tok:{}|smooth:exp|version:2.6.0"
    return {
        "method": method,
        "kept": kept,
        "total": grid.total,
        "seed": seed,
        "layout": str(Layout.full(grid).random_subset(kept, draw.randrange(1000))),
        "bleu_tok": round(bleu, 4),
        "sacrebleu": round(bleu - 1, 4),
        "chrf": round(bleu + 20, 4),
        "signatures": {
            "bleu_tok": signature.format("lc", "none"),
            "sacrebleu": signature.format("mixed", "13a"),
            "chrf": "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0",
        },
        "updates": 1000,
        "seconds": 12.5,
        "words_per_second": 4321.0,
        "parameters": 100_000 + 512 * kept,
        "hardware": "made-up machine",
        "versions": {"fairseq_dsp": "0.0.0", "torch": "0.0"},
        "data": "made-up corpus",
        "command": f"fairseq-train made-up --unpruned-heads {kept}",
    } | others


def joint(kept: str, seed: int = 1, **others: Any) -> dict[str, Any]:
    """A line of a run whose neurons are units too: `kept` is its layout's text."""
    layout = Layout.parse(kept)
    content = run("joint", 6, seed) | {"kept": layout.count, "total": layout.grid.total, "layout": str(layout)}
    return content | {"parameters": 90_000, "macs": 70_000_000, "latency": 0.02} | others


def runs(seeds: tuple[int, ...] = (1, 2), grid: Grid = GRID, budgets: tuple[int, ...] = BUDGETS) -> list[dict]:
    """Dense and every method at every budget."""
    return [run("dense", grid.total, seed, grid) for seed in seeds] + [
        run(method, kept, seed, grid) for method in METHODS for kept in budgets for seed in seeds
    ]


def write(path: Path, contents: list[Any]) -> Path:
    """A results file of these lines."""
    path.write_text("".join(json.dumps(content) + "\n" for content in contents), encoding="utf-8")
    return path


def training_log(
    kind: str = "json", updates: int = 400, every: int = 10, fixed_at: int = 250, neurons: bool = False
) -> str:
    """What fairseq would print while training with a budget of 6 heads, or of these and groups of neurons."""
    draw = random.Random(0)
    lines = ["2026-01-31 12:00:00 | INFO | fairseq_cli.train | task: TranslationDspTask"]
    for update in range(every, updates + 1, every):
        encoder, decoder = draw.randint(0, 3), draw.randint(0, 3)
        if update >= fixed_at:
            encoder, decoder = 1, 2
        figures: dict[str, Any] = {
            "loss": f"{10 - update / 100:.3f}",
            "ppl": "12.5",
            "num_updates": str(update),
            "gnorm": "1.25",
            "temperature": "0" if update >= fixed_at else str(0.1 * 1e-7 ** (update / fixed_at)),
            "importance_gnorm": "0" if update >= fixed_at else f"{draw.uniform(0.1, 1):.3f}",
            "importance_enc": f"{-update / 500:.3f}",
            "importance_dec": f"{draw.uniform(0, 0.2):.3f}",
            "importance_cross": f"{update / 400:.3f}",
            "heads_enc": str(encoder),
            "heads_dec": str(decoder),
            "heads_cross": str(6 - encoder - decoder),
            "heads_changed": "0" if update >= fixed_at else str(draw.randint(0, 5)),
        }
        if neurons:
            figures |= {
                f"{name}_ffn-{side}": str(draw.randint(0, 8))
                for name in ("importance", "heads")
                for side in ("enc", "dec")
            }
        if kind == "json":
            text = json.dumps({"epoch": 1, "update": update / updates} | figures)
        else:
            pairs = ", ".join(f"{name}={value}" for name, value in figures.items())
            text = f"epoch 001:  {update:5d} / {updates} {pairs}"
        lines.append(f"2026-01-31 12:00:00 | INFO | train_inner | {text}")
    return "\n".join(lines) + "\n"
