"""Figures, one function each; each writes to the paths it is given, whose suffixes choose the format (png, pdf, svg).

matplotlib is imported when the first is drawn.
"""

from fairseq_dsp.analysis.plots.heads import attention_type_shares, kept_heads_by_budget, kept_heads_grid
from fairseq_dsp.analysis.plots.scores import score_against_costs, score_against_heads
from fairseq_dsp.analysis.plots.style import DOTS_PER_INCH
from fairseq_dsp.analysis.plots.training import training_courses

__all__ = [
    "DOTS_PER_INCH",
    "attention_type_shares",
    "kept_heads_by_budget",
    "kept_heads_grid",
    "score_against_costs",
    "score_against_heads",
    "training_courses",
]
