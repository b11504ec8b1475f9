"""One ranking of heads from several. Called by `fairseq-dsp-merge`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.files.output import checked_file
from fairseq_dsp.units.merging import merge
from fairseq_dsp.units.score_file import ScoreFile, read_scores


def merge_scores(
    scores: Sequence[ScoreFile | str | os.PathLike[str]],
    by: str,
    output: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
) -> ScoreFile:
    """One score file of several of the same model, such as those of its language pairs: `fairseq-dsp-merge`.

    Args:
        scores: two at least, or their files, by one scorer.
        by: `sum` of the heads' shares in the importance on each data, their `max`, or `worst`: heads go so that the pair that keeps least
            keeps as much as it can.
        output: a file for the merged scores, JSON; None for none.
        force: overwrite `output`.

    Returns:
        the merged scores, for `prune`.

    Raises:
        Refusal: the request cannot be honoured, with the sentences of the command; nothing has been written.
    """
    target = None if output is None else checked_file(output, force)
    files, reasons = [], list[str]()
    for each in scores:
        with noted(reasons):
            files.append(each if isinstance(each, ScoreFile) else read_scores(os.fspath(each)))
    if reasons:
        raise Refusal(*reasons)
    merged = merge(files, by)
    if target is not None:
        target.write(lambda handle: handle.write(merged.text().encode()), "the score file")
    return merged
