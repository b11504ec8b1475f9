"""How the best checkpoint is chosen: whether `--best-checkpoint-metric` can. Asked by `task` when training starts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from fairseq import checkpoint_utils
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

from fairseq_dsp.options.records import TaskOptions
from fairseq_dsp.plugin.criterion import AT_BUDGET

logger = logging.getLogger("fairseq_dsp.task")  # as logs have always named it

_ACCURACY = ("accuracy", "n_correct", "total")
_ERRORS, _SUCCESSES = ("loss", "nll_loss", "ppl"), ("bleu", "accuracy")


def objections_to_metric(options: TaskOptions, criterion: Any, more: Mapping[str, str]) -> list[str]:
    """Sentences on a metric that no validation yields: fairseq looks for it when the first one is over.

    Args:
        options: the task's.
        more: figures that the task logs, beside fairseq's, each with the one of fairseq that it is like.
    """
    named, largest = options.best_checkpoint_metric, options.maximize_best_checkpoint_metric
    if options.disable_validation:
        return []
    metric = more.get(named, named)
    if metric == "bleu" and not options.eval_bleu:
        return [f"`--best-checkpoint-metric {named}` needs `--eval-bleu`, but it is not given."]
    if metric in (_SUCCESSES if not largest else _ERRORS):
        logger.warning(
            "`--best-checkpoint-metric %s` %s `--maximize-best-checkpoint-metric` keeps the worst checkpoint.",
            named,
            "with" if largest else "without",
        )
    if not isinstance(criterion, LabelSmoothedCrossEntropyCriterion):
        return []  # what others log is theirs to know
    if metric in _ACCURACY and not criterion.report_accuracy:
        return [f"`--best-checkpoint-metric {metric}` needs `--report-accuracy`, but it is not given."]
    known = (*_ERRORS, "bleu", *_ACCURACY)
    if metric in (*known, "wps", "wpb", "bsz") or metric.startswith(("heads_", "importance_", AT_BUDGET)):
        return []
    return [f"`--best-checkpoint-metric` must be one of {', '.join((*known, *more))}, but is {named}."]


def forget_earlier_runs() -> None:
    """Drops the best scores that fairseq keeps on its functions.

    `fairseq-hydra-train -m` trains in one process: a run would compare itself with those before it, and leave no
    `checkpoint_best.pt`, or stop early, where they were better.
    """
    stopping = getattr(sys.modules.get("fairseq_cli.train"), "should_stop_early", None)
    for function in (checkpoint_utils.save_checkpoint, stopping):
        if function is not None:
            vars(function).pop("best", None)
