"""Choices from one scoring of the trained model, by the scorers of the package, and their refinements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_dsp.api.score_work import subject_of
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.scoring import make_scorer
from fairseq_dsp.scoring.sentence_gates import loss_derivatives
from fairseq_dsp.units.floors import floors_of, top_k_above_floors
from fairseq_dsp.units.layout import Grid, Layout

from .data import Batch

# The scores' names in results, and the package's names of the same.
PACKAGE_NAMES = {"fisher": "fisher", "gradient": "gradient", "fisher-full": "joint-fisher", "random": "random"}
PACKAGE_NAMES |= {"function-norm": "function-norm", "confidence": "attention-statistics"}
PACKAGE_NAMES |= {"function-norm-relative": "function-norm"}
_OPTIONS = {"confidence": {"statistic": "confidence"}, "function-norm-relative": {"norm": "relative"}}


def score(
    model: DspTransformerModel, batches: Sequence[Batch], seed: int, name: str, live: Tensor | None = None
) -> Tensor:
    """Scores of the heads that the model has, [H] float64 on the CPU.

    Args:
        name: `fisher`, `gradient`, `fisher-full`, `random`, `function-norm`, `function-norm-relative`, `confidence`; `abs`, which is `gradient` without a normalisation by sublayer; or `log`, the logarithm of
            `fisher`.
        live: [H], 1 for heads that are on; all if None.
    """
    subject = subject_of(model, batches, seed)
    live = torch.ones(subject.grid.total) if live is None else live.cpu()
    if name == "abs":
        found = [derivatives.double().abs().cpu() for derivatives in loss_derivatives(subject, live)]
        return torch.cat(found).mean(dim=0)
    if name == "log":
        return score(model, batches, seed, "fisher", live).log()
    return make_scorer(PACKAGE_NAMES[name], _OPTIONS.get(name, {})).score(subject, live).double().cpu()


def keep_top(grid: Grid, scores: Tensor, k: int, floor: int | str | None = 1) -> Layout:
    """The layout of the k best heads of which `floor` are cross-attention; see `floors`."""
    return Layout.of_mask(grid, top_k_above_floors(scores.detach().double().cpu(), k, floors_of(grid, floor)))


def keep_top_discounted(grid: Grid, scores: Tensor, k: int, discount: float) -> Layout:
    """Heads taken one after the other, the best first; each further head of a sublayer counts `discount` times as much as the last.

    Ties go to the higher index.
    """
    site_of = [number for number, (_, span) in enumerate(grid.spans()) for _ in range(span.stop - span.start)]
    taken: list[int] = []
    for _ in range(k):
        sites = [site_of[head] for head in taken]
        left = [head for head in range(grid.total) if head not in taken]
        taken.append(
            max(
                left, key=lambda head, sites=sites: (float(scores[head]) * discount ** sites.count(site_of[head]), head)
            )
        )
    return Layout.of_mask(grid, [float(head in taken) for head in range(grid.total)])


def in_order_of_passes(grid: Grid, scores: Tensor) -> Tensor:
    """Scores as the first scripts mislabelled them: in the order in which a pass comes to the sublayers, [H].

    A decoder layer's self-attention comes just before its cross-attention there, while in the grid's order all of the decoder's
    self-attention does. With three layers what cross-attention of the first layer had was taken for decoder self-attention of the second.
    """
    spans = {(site.stack, site.layer): span for site, span in grid.spans()}
    sites = [("enc", layer) for layer in range(len(grid.of("enc")))]
    sites += [(stack, layer) for layer in range(len(grid.of("dec"))) for stack in ("dec", "cross")]
    return torch.cat([scores[spans[site]] for site in sites])
