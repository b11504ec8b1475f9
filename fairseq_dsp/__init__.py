"""fairseq_dsp: train a Transformer under a budget of attention heads, and get a checkpoint with exactly that many.

The plug-in's entry: `--user-dir fairseq_dsp` imports this package, which registers the tasks, the architectures, the
criterion and the optimizer with fairseq.

The names in `__all__` are the Python API (docs/api.md). They are imported when they are first asked for: a training asks for
none. Everything else in this package is private, and may change.
"""

from __future__ import annotations

import fairseq_dsp.guards.versions  # isort: skip  # first: refuses what the others cannot work with
import fairseq_dsp.guards.untrusted  # isort: skip  # before anything reads a checkpoint
import importlib
from typing import TYPE_CHECKING, Any

import fairseq_dsp.plugin.criterion
import fairseq_dsp.plugin.model
import fairseq_dsp.plugin.multilingual
import fairseq_dsp.plugin.optimizer
import fairseq_dsp.plugin.task
from fairseq_dsp.version import __version__

if TYPE_CHECKING:
    from fairseq_dsp.api.exporting import export_ctranslate2, export_dense
    from fairseq_dsp.api.merging import merge_scores
    from fairseq_dsp.api.pruning import average, prune, read_layout
    from fairseq_dsp.api.reporting import draw_heads, report
    from fairseq_dsp.api.scoring import score, score_pairs
    from fairseq_dsp.api.translating import load
    from fairseq_dsp.errors import Refusal
    from fairseq_dsp.units.layout import Grid, Layout, Site
    from fairseq_dsp.units.score_file import ScoreFile, read_scores

__all__ = [
    "Grid",
    "Layout",
    "Refusal",
    "ScoreFile",
    "Site",
    "average",
    "draw_heads",
    "export_ctranslate2",
    "export_dense",
    "load",
    "merge_scores",
    "prune",
    "read_layout",
    "read_scores",
    "report",
    "score",
    "score_pairs",
]

_PLACES = {
    "api.exporting": ("export_ctranslate2", "export_dense"),
    "api.merging": ("merge_scores",),
    "api.pruning": ("average", "prune", "read_layout"),
    "api.reporting": ("draw_heads", "report"),
    "api.scoring": ("score", "score_pairs"),
    "api.translating": ("load",),
    "errors": ("Refusal",),
    "units.layout": ("Grid", "Layout", "Site"),
    "units.score_file": ("ScoreFile", "read_scores"),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
