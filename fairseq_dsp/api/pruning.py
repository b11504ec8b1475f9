"""Layouts, pruning and averaging: from checkpoint to checkpoint. Called by `fairseq-dsp-prune` and `fairseq-dsp-average`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq_dsp.api.score_work import READERS, subject_of
from fairseq_dsp.checkpoints.account import Demand
from fairseq_dsp.checkpoints.averaging import average as mean_of
from fairseq_dsp.checkpoints.batches import draw_batches
from fairseq_dsp.checkpoints.pair_batches import set_languages
from fairseq_dsp.checkpoints.rewriting import Rewrite, Stages, Wish, rewrite
from fairseq_dsp.config import whole_number
from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.files.checkpoint import write_checkpoint
from fairseq_dsp.files.data_folder import refuse_no_folder
from fairseq_dsp.files.output import checked_file
from fairseq_dsp.options.stored_layout import resolve_layout
from fairseq_dsp.scoring import SCORERS, finite_scores
from fairseq_dsp.units.cost_file import CostFile, read_costs
from fairseq_dsp.units.costs import LATENCY, MACS
from fairseq_dsp.units.groups import part_of
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.request import parse_budget, parse_sentence
from fairseq_dsp.units.score_file import ScoreFile, read_scores

# Sentences that `--rescale` reads: some tens of contexts for every weight that it fits, at the usual sizes.
_RESCALE_BATCHES, _RESCALE_TOKENS, _SEED = 25, 4096, 1

# What was measured: design note 13.
_STAGES = 4

# Scorers for a choice in stages: what they score by depends on what is left, and on no option that there is none of here.
_STAGED = [name for name in READERS if not SCORERS[name].options]


def read_layout(source: str | os.PathLike[str]) -> Layout:
    """Which heads there are and which of them are kept.

    Args:
        source: a layout's text, `enc:…/dec:…/cross:…` with 1 or 0 for every head, or the path of a checkpoint, whose deployed heads
            are meant: all of a dense one, the chosen ones of one that was trained with a budget.

    Raises:
        Refusal: neither.
    """
    return resolve_layout(os.fspath(source), "source")


def prune(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    layout: Layout | str | os.PathLike[str] | None = None,
    unpruned_heads: int | str | None = None,
    budget: str | float | None = None,
    sentence: str | None = None,
    costs: CostFile | str | os.PathLike[str] | None = None,
    scores: ScoreFile | str | os.PathLike[str] | None = None,
    cross_floor: int | str | None = None,
    rescale: str | os.PathLike[str] | None = None,
    scorer: str | None = None,
    stages: int | str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
    force: bool = False,
) -> Rewrite:
    """Writes a checkpoint that has the chosen heads only, checked against the masked model: `fairseq-dsp-prune`.

    Args:
        checkpoint: trained with a budget, or any dense transformer's.
        output: the file to write.
        layout: keep these heads, or those that another checkpoint keeps; None for the choice of the training.
        unpruned_heads: K, keep the K most important heads; None for the budget of the training.
        budget: in place of `unpruned_heads`, what the model may keep or cost: a number of units, a share of them (`0.25`), or
            `parameters=`, `macs=`, `latency=` with a number or a share of the dense model's.
        sentence: what `macs=` is counted of: tokens of source and target and the beam, as `25,24,5`; None for the mean lengths of the
            validation set and a beam of 5.
        costs: what units take, with `latency=`: of a file that `fairseq-dsp-bench --costs` measured, on whichever machine the model
            will serve.
        scores: importance by `score`, or its file, with `unpruned_heads` or `budget`.
        cross_floor: with `scores` or `scorer`, cross-attention heads that stay whatever the scores say: their number, or `layer` for one in every
            decoder layer; None for 1, or 0 where no head is kept.
        rescale: a data folder. The output projections are fitted on sentences of its training set, so that the heads that stay say
            what all said; for a dense model.
        scorer: with `rescale` and `unpruned_heads`, choose in stages by this scorer, on the same sentences: score, cut, fit, and again.
        stages: of `scorer`, by default 4.
        source_lang: of `rescale`, where the checkpoint and the folder do not tell it. Likewise:
        target_lang: its target language.
        force: overwrite `output`.

    Returns:
        what was written (`layout`, `state`), how large the model was and is, and how exactly the two agree.

    Raises:
        Refusal: the request cannot be honoured, with the sentences of the command; nothing has been written.
    """
    target = checked_file(output, force)
    kept = whole_number(unpruned_heads, "unpruned_heads")
    others = {"--unpruned-heads": unpruned_heads, "--layout": layout, "--scorer": scorer}
    demand = _demand(budget, sentence, costs, others)
    if scores is not None:
        if layout is not None:
            given = scores.checkpoint if isinstance(scores, ScoreFile) else os.fspath(scores)
            raise Refusal(f"`--scores` and `--layout` must not be given together, but are {given} and {layout}.")
        scores = scores if isinstance(scores, ScoreFile) else read_scores(os.fspath(scores))

    def sentences(model: Any, options: Any) -> list[dict[str, Any]]:
        set_languages(options, source_lang, target_lang)
        return draw_batches(model, options, data, "train", _RESCALE_BATCHES, _RESCALE_TOKENS, _SEED, who="`--rescale`")

    if rescale is not None:
        data = os.fspath(rescale)
        refuse_no_folder(data, "`--rescale`")
    in_stages = _stages(scorer, stages, {"--scores": scores, "--layout": layout}, rescale)
    if cross_floor is not None and scores is None and in_stages is None:
        raise Refusal(
            f"`--cross-floor` must come with `--scores`, but `--scores` is not given and it is {cross_floor}."
        )
    chosen = scores is not None or in_stages is not None
    floor = "1" if cross_floor is None and chosen and kept else cross_floor
    wish = Wish(
        layout=None if layout is None else str(layout) if isinstance(layout, Layout) else os.fspath(layout),
        count=kept,
        scores=scores,
        floor=None if floor is None else str(floor),
        stages=in_stages,
        demand=demand,
    )
    done = rewrite(os.fspath(checkpoint), wish, None if rescale is None else sentences)
    write_checkpoint(done.state, target)
    return done


def _demand(
    budget: str | float | None,
    sentence: str | None,
    costs: CostFile | str | os.PathLike[str] | None,
    others: dict[str, Any],
) -> Demand | None:
    """The budget; None where none is given.

    Raises:
        Refusal: options that cannot be honoured, all at once.
    """
    named = costs.conditions if isinstance(costs, CostFile) else costs
    belongs = (("--sentence", MACS, sentence), ("--costs", LATENCY, named))
    reasons = []
    if budget is None:
        for option, measure, value in belongs:
            if value is not None:
                reasons.append(f"`{option}` must come with `--budget {measure}=`, but is {value}.")
        if reasons:
            raise Refusal(*reasons)
        return None
    reasons = [
        f"`--budget` and `{option}` must not be given together, but are {budget} and {value}."
        for option, value in others.items()
        if value is not None
    ]
    request = counted = measured = None
    with noted(reasons):
        request = parse_budget(str(budget))
        if request.measure == LATENCY and costs is None:
            reasons.append(f"`--costs` must be given for `--budget latency=`: {budget} is of measured times.")
        for option, measure, value in belongs:
            if value is not None and request.measure != measure:
                reasons.append(f"`{option}` must come with `--budget {measure}=`, but is {value}.")
    with noted(reasons):
        counted = None if sentence is None else parse_sentence(sentence)
    with noted(reasons):
        measured = costs if isinstance(costs, CostFile) or costs is None else read_costs(os.fspath(costs))
    if reasons or request is None:
        raise Refusal(*reasons)
    return Demand(request, counted, measured)


def _stages(scorer: str | None, number: int | str | None, others: dict[str, Any], data: Any) -> Stages | None:
    """The choice in stages; None where none is asked for.

    Raises:
        Refusal: options that cannot be honoured, all at once.
    """
    reasons: list[str] = []
    if scorer is None:
        if number is not None:
            raise Refusal(f"`--stages` must come with `--scorer`, but `--scorer` is not given and it is {number}.")
        return None
    if scorer not in _STAGED:
        reasons.append(
            f"`--scorer` must be one of {', '.join(_STAGED)}, whose scores depend on what is left, but is {scorer}."
        )
    for option, value in others.items():
        if value is not None:
            given = value.checkpoint if isinstance(value, ScoreFile) else value
            reasons.append(f"`{option}` and `--scorer` must not be given together, but are {given} and {scorer}.")
    if data is None:
        reasons.append(
            f"`--rescale DATA-BIN` must come with `--scorer {scorer}`, which reads its sentences, but is not given."
        )
    with noted(reasons):
        number = whole_number(_STAGES if number is None else number, "stages", 1)
    if reasons:
        raise Refusal(*reasons)

    def score(model: Any, batches: list[dict[str, Any]]) -> Tensor:
        subject = subject_of(model, batches, _SEED, part_of(model.layout, [HEADS.name]).surviving)
        return finite_scores(SCORERS[scorer](), subject, torch.ones(subject.grid.total))

    assert isinstance(number, int)
    return Stages(number, scorer, _SEED, score)


def average(
    checkpoints: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], *, force: bool = False
) -> None:
    """Writes the mean of the weights of checkpoints of one model that keep the same heads: `fairseq-dsp-average`.

    Args:
        checkpoints: one at least, pruned or not; options and history are those of the last.
        output: the file to write.
        force: overwrite `output`.

    Raises:
        Refusal: the checkpoints differ in heads, names or shapes; nothing has been written.
    """
    target = checked_file(output, force)
    if not checkpoints:
        raise Refusal("there must be a checkpoint to average, but none is given.")
    write_checkpoint(mean_of([os.fspath(path) for path in checkpoints]), target)
