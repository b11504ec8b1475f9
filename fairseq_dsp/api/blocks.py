"""Scores of blocks of weight matrices. Called by `fairseq-dsp-score --units blocks`."""

from __future__ import annotations

import os
from functools import partial

import torch

from fairseq_dsp.api.score_work import Work, checked_options
from fairseq_dsp.checkpoints.batches import loss_of
from fairseq_dsp.config import whole_number
from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.files.output import checked_file
from fairseq_dsp.scoring.blocks import SCORERS, score_blocks
from fairseq_dsp.units.blocks import SIZES, BlockScores, matrices_of, refuse_uneven
from fairseq_dsp.version import __version__


def block_scores(
    checkpoint: str | os.PathLike[str],
    scorer: str,
    data: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    block: int | str | None,
    subset: str | None = None,
    batches: int | str | None = None,
    max_tokens: int | str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
    seed: int | str | None = None,
    cpu: bool = False,
    force: bool = False,
) -> BlockScores:
    """How much each block of each weight matrix of a finished model matters: `fairseq-dsp-score --units blocks`. For a study of masks.

    Args:
        scorer: `magnitude` or `gradient`.
        block: rows, and columns, of a block: 16 or 32. All others as of `score`.

    Raises:
        Refusal: the request cannot be honoured; nothing has been written.
    """
    reasons: list[str] = []
    size, found = None, None
    with noted(reasons):
        size = whole_number(block, "block")
    if not reasons and size not in SIZES:
        reasons.append(
            f"`--block` must be {' or '.join(map(str, SIZES))} for `--units blocks`, but is {'not given' if size is None else size}."
        )
    if scorer not in SCORERS:
        reasons.append(f"`--scorer` must be {' or '.join(SCORERS)} for `--units blocks`, but is {scorer}.")
    given = {"subset": subset, "batches": batches, "max_tokens": max_tokens, "iterative": None, "seed": seed}
    given |= {"source_lang": source_lang, "target_lang": target_lang}
    none: dict[str, str | os.PathLike[str] | None] = dict.fromkeys(("statistic", "norm", "scorer_model"))
    check = None if output is None else partial(checked_file, output, force)
    if scorer in SCORERS:
        with noted(reasons):
            found = checked_options(scorer, data, given, none, (None, None), check)
    if reasons or found is None or size is None:
        raise Refusal(*reasons)
    target, options = found
    work = Work.of(checkpoint, scorer, data, options, cpu)
    matrices = matrices_of(dict(work.model.named_parameters()))
    refuse_uneven(matrices, size)
    drawn = work.draw(None).batches
    scores = score_blocks(matrices, size, scorer, drawn, partial(loss_of, work.model))
    wrong = [name for name, table in scores.items() if not torch.isfinite(table).all()]
    if wrong:
        raise Refusal(f"the blocks' scores must be finite numbers, but those of {wrong[0]} are not.")
    file = BlockScores(
        version=__version__,
        scorer=scorer,
        block=size,
        subset=options["subset"] if drawn else None,
        batches=len(drawn) or None,
        max_tokens=options["max_tokens"] if drawn else None,
        sentences=sum(len(batch["target"]) for batch in drawn) or None,
        seed=options["seed"] if drawn else None,
        checkpoint=os.path.basename(checkpoint),
        weights=work.weights,
        scores={name: table.tolist() for name, table in scores.items()},
    )
    if target is not None:
        target.write(lambda handle: handle.write(file.text().encode()), "the score file")
    return file
