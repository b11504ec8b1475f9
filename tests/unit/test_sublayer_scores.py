"""Scores of whole sublayers: a gate on all units of a site moves the loss by what gates on each of them would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scored import PAIRS, UNEVEN, dense, subject_of

from fairseq_dsp.modules.streams import streams
from fairseq_dsp.modules.surgery import modules_at
from fairseq_dsp.scoring import SCORERS
from fairseq_dsp.scoring.fisher import FisherScorer
from fairseq_dsp.scoring.gradient import GradientScorer
from fairseq_dsp.scoring.magnitude import MagnitudeScorer
from fairseq_dsp.scoring.sentence_gates import loss_derivatives
from fairseq_dsp.scoring.subject import Subject
from fairseq_dsp.units.chosen import Chosen
from fairseq_dsp.units.kinds import KIND_OF

LAYOUTS = pytest.mark.parametrize("layout", [PAIRS, UNEVEN], ids=["all", "uneven"])


def both(layout: Any) -> tuple[Subject, Subject]:
    """A model as its units are scored, and as its sublayers are."""
    model = dense(layout)
    units, grid = subject_of(model), Chosen(layout, ("sublayers",)).grid
    return units, replace(
        units, grid=grid, modules=modules_at(model, grid), streams=streams(model, grid), sublayers=True
    )


def derivatives_by_site(subject: Subject) -> dict[Any, torch.Tensor]:
    found = torch.cat(list(loss_derivatives(subject, torch.ones(subject.grid.total))))
    return {site: found[:, span].sum(dim=1) for site, span in subject.grid.spans()}


@LAYOUTS
def test_a_sublayers_derivative_is_the_sum_over_its_units(layout):
    units, whole = both(layout)
    one, other = derivatives_by_site(whole), derivatives_by_site(units)
    for site, count in whole.grid.counts:
        torch.testing.assert_close(one[site], other[site])
        assert bool((one[site] != 0).any()) == (count == 1)


@LAYOUTS
def test_fisher_and_gradient_are_means_of_these_and_normalise_nothing(layout):
    units, whole = both(layout)
    live = torch.ones(whole.grid.total)
    of_sites = torch.stack([value for site, value in derivatives_by_site(units).items() if whole.grid.size(site)])
    torch.testing.assert_close(FisherScorer().score(whole, live), of_sites.square().mean(dim=1))
    torch.testing.assert_close(GradientScorer().score(whole, live), of_sites.abs().mean(dim=1))


@LAYOUTS
def test_a_magnitude_is_the_norm_of_all_that_the_units_own(layout):
    units, whole = both(layout)
    scores = dict(zip([site for site, count in whole.grid.counts if count], MagnitudeScorer().score(whole, torch.ones(whole.grid.total)).tolist(), strict=True))  # fmt: skip
    for site, score in scores.items():
        owned = {part.name for part in KIND_OF[site.stack].slices(1)}
        total = sum(
            float(value.square().sum()) for name, value in units.modules[site].named_parameters() if name in owned
        )
        assert score == pytest.approx(total**0.5)


@pytest.mark.parametrize("name", [name for name, scorer in SCORERS.items() if not scorer.heads_alone])
def test_every_scorer_scores_a_sublayer_that_says_nothing_lowest(name):
    _, whole = both(PAIRS)
    layer = whole.modules[whole.grid.sites[-1]]
    with torch.no_grad():
        for linear in (layer.fc1, layer.fc2):
            linear.weight.zero_()
        layer.fc1.bias.zero_()
    scores = SCORERS[name]().score(whole, torch.ones(whole.grid.total))
    assert scores.shape == (10,)
    assert name == "random" or scores.argmin() == 9
