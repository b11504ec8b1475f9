"""Scores of one model's units on several language pairs, or data sets, made one. Called by `fairseq-dsp-merge`.

Every file's scores are first divided by their sum: what a unit has of the importance on its data. Where kinds of units do not compare, that
is done for each kind, and each kind is merged for itself. Ma et al. (ACL 2021) merge by the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.fingerprint import agree
from fairseq_dsp.units.score_file import ScoreFile


def total(shares: Tensor) -> Tensor:
    """The sum over files: what is important on average. [files, H] -> [H]."""
    return shares.sum(0)


def largest(shares: Tensor) -> Tensor:
    """The maximum over files: a head that one pair needs counts as if all did. [files, H] -> [H]."""
    return shares.max(0).values


def protect_worst(shares: Tensor) -> Tensor:
    """What each head is worth to the pair that has lost most.

    Heads go one after the other, each time the one without which the smallest share that any pair keeps is largest:

        h_t = argmax_h min_p (kept_p - s_ph),   kept_p = 1 - sum of s_p over h_1 … h_(t-1)

    Ties go to the head with the smaller sum over pairs, then to the later one. A head's score is the share that the worst pair
    has lost when it is gone, so that a head that goes later never scores less.

    Args:
        shares: [files, H], not negative, each row's sum 1.

    Returns:
        [H].
    """
    kept, scores = torch.ones(len(shares), dtype=shares.dtype), torch.zeros(shares.shape[1], dtype=shares.dtype)
    left, sums = torch.ones(shares.shape[1], dtype=torch.bool), shares.sum(0)
    for _ in range(shares.shape[1]):
        rest = (kept[:, None] - shares).min(0).values.masked_fill(~left, -torch.inf)
        best = rest == rest.max()
        unit = int((best & (sums == sums[best].min())).nonzero()[-1])
        left[unit] = False
        kept = kept - shares[:, unit]
        scores[unit] = max(1 - float(kept.min()), 0.0)
    return scores


MERGES: dict[str, Callable[[Tensor], Tensor]] = {"sum": total, "max": largest, "worst": protect_worst}


def merge(files: Sequence[ScoreFile], by: str) -> ScoreFile:
    """One score file of several of the same model.

    Args:
        files: two at least, by one scorer, each scored at once.
        by: a name in `MERGES`.

    Raises:
        Refusal: they are of different models or scorers, or cannot be shares; every reason at once.
    """
    reasons = [] if by in MERGES else [f"`--by` must be one of {', '.join(MERGES)}, but is {by}."]
    if len(files) < 2:
        raise Refusal(*reasons, f"there must be two score files or more to merge, but there are {len(files)}.")
    first = files[0]
    for number, file in enumerate(files, 1):
        reasons += [f"score file {number} {reason}" for reason in _objections(file, first)]
    if reasons:
        raise Refusal(*reasons)
    values = torch.tensor([file.scores for file in files], dtype=torch.float64)
    parts = [values[:, part] for part in first.comparing]
    merged = torch.cat([MERGES[by](part / part.sum(1, keepdim=True)) for part in parts])
    pairs = [pair for file in files for pair in file.pairs or ()]
    return replace(
        first,
        scorer=f"{by} of {first.scorer}",
        scores=tuple(merged.tolist()),
        batches=_added(file.batches for file in files),
        sentences=_added(file.sentences for file in files),
        pairs=tuple(dict.fromkeys(pairs)) or None,
    )


def _objections(file: ScoreFile, first: ScoreFile) -> list[str]:
    found = []
    if file.layout != first.layout:
        found.append(f"must be of the same heads as the first ({first.layout}), but is of {file.layout}.")
    elif file.weights is None or first.weights is None:
        found.append("must say of which weights it is, but is of an earlier version, or the first is: score again.")
    elif not agree(file.weights, first.weights):
        found.append(
            f"must be of the same weights as the first, of {first.checkpoint}, but is of others, of {file.checkpoint}."
        )
    if file.units != first.units:
        found.append(
            f"must be of the same kinds of units as the first ({','.join(first.units)}), but is of {','.join(file.units)}."
        )
    if file.scorer != first.scorer:
        found.append(f"must be by the same scorer as the first ({first.scorer}), but is by {file.scorer}.")
    elif file.options != first.options:
        said = [", ".join(f"{name} {value}" for name, value in (each.options or {}).items()) for each in (first, file)]
        found.append(
            f"must be by the same options of the scorer as the first ({said[0] or 'none'}), but is by {said[1] or 'none'}."
        )
    if file.order is not None:
        found.append("must be of one scoring, but is of several in between which heads were removed (`--iterative`).")
    parts = [file.scores[part] for part in file.comparing]
    if min(file.scores, default=0.0) < 0 or not all(sum(part) > 0 for part in parts if part or len(parts) == 1):
        found.append(
            f"must have scores of which none is negative and one{' of each kind' * (len(parts) > 1)} is above 0, for they become shares, but has "
            "others."
        )
    return found


def _added(counts: Iterable[int | None]) -> int | None:
    return sum(count for count in counts if count is not None) or None
