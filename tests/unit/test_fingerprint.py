"""Fingerprints of weights: the same for the same weights, in whatever precision and file they lie, and others for any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import build_gated, build_with, randomise
from torch import Tensor

from fairseq_dsp.modules.surgery import remove_gates
from fairseq_dsp.units.fingerprint import PRECISIONS, agree, fingerprint
from fairseq_dsp.units.layout import Layout

HALVES = [torch.float16, torch.bfloat16]


def made() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 4, generator=draw),
        "a.bias": torch.randn(5, generator=draw),
        "c": torch.empty(0, 4),
    }


def of(weights: dict[str, Tensor], kind: torch.dtype | None = None) -> dict[str, str]:
    return fingerprint((name, weight.to(kind or weight.dtype)) for name, weight in weights.items())


def test_are_a_digest_for_every_precision_and_the_same_in_every_version():
    """Or the score files of today would be of other weights for the version of tomorrow."""
    assert of({"a.weight": torch.arange(6.0).view(2, 3) / 7, "b.bias": torch.ones(2)}) == {
        "float32": "02a6823552db363b944f6966b7d70aab",
        "float16": "11f0e0ca168bb8e5dd9a78ffb4f364ad",
        "bfloat16": "50dde1785247229fae1056b41dfc3ac9",
    }


@pytest.mark.parametrize("kind", HALVES)
def test_of_a_copy_in_half_precision_agree_with_the_weights_that_were_copied_and_with_its_own_copies(kind):
    whole, half = of(made()), of(made(), kind)
    assert len(half) == 1
    assert half.items() <= whole.items()
    assert agree(whole, half)
    assert agree(half, whole)
    again = {name: weight.to(kind).float() for name, weight in made().items()}
    assert agree(of(again), half)
    assert not agree(of(again), whole)  # rounded


def test_of_two_half_precisions_show_nothing():
    assert not agree(of(made(), HALVES[0]), of(made(), HALVES[1]))


def test_of_weights_in_several_precisions_are_those_of_the_finest():
    mixed = {**made(), "a.bias": made()["a.bias"].half()}
    assert list(of(mixed)) == list(PRECISIONS)


def last_bit_of(weights: dict[str, Tensor]) -> None:
    weights["b.weight"].view(torch.int32)[1, 2] ^= 1


def name_of(weights: dict[str, Tensor]) -> None:
    weights["a.other"] = weights.pop("a.bias")


def shape_of(weights: dict[str, Tensor]) -> None:
    weights["b.weight"] = weights["b.weight"].view(4, 3)


def order_in(weights: dict[str, Tensor]) -> None:
    weights["b.weight"] = weights["b.weight"].flip(0)


@pytest.mark.parametrize("change", [last_bit_of, name_of, shape_of, order_in, lambda weights: weights.pop("c")])
def test_of_other_weights_differ(change: Any):
    weights = made()
    change(weights)
    assert not agree(of(weights), of(made()))


def test_do_not_depend_on_the_order_or_the_memory_that_weights_lie_in():
    weights = {name: weight.t().contiguous().t() if weight.dim() == 2 else weight for name, weight in made().items()}
    assert of(dict(reversed(weights.items()))) == of(made())


def test_of_a_model_are_the_same_with_gates_and_without_and_whatever_its_importance():
    gated = build_gated()
    before = fingerprint(gated.weights())
    gated.head_gates.importance.data.neg_()
    assert fingerprint(gated.weights()) == before
    remove_gates(gated, gated.layout.grid)
    assert fingerprint(gated.weights()) == before
    dense = build_with(Layout.full(gated.layout.grid))  # has marks of its heads besides
    assert fingerprint(dense.weights()) == before
    randomise(dense, seed=1)
    assert fingerprint(dense.weights()) != before
