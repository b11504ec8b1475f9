"""How heads are chosen while training: one file a method, found here by the name that `--head-selection` takes.

A method sees a flat vector of importance and nothing of attention or fairseq, so that other units than heads can be
chosen the same way. Adding one: write its file, add its class to `METHODS`; the conformance tests pick it up.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods.dsp import DifferentiableSubset, StraightThrough
from fairseq_dsp.methods.fixed import Fixed
from fairseq_dsp.methods.hard_concrete import HardConcrete


class Method(Protocol):
    """A way of choosing heads.

    Attributes:
        name: what `--head-selection` takes.
        learned: whether importance variables are trained; if not, the layout is decided when the model is built.
    """

    name: ClassVar[str]
    learned: ClassVar[bool]

    @property
    def fixes_at(self) -> int | None:
        """Number of updates after which the heads are fixed; None where they never are."""

    @classmethod
    def objections(cls, config: PruningConfig) -> list[str]:
        """Sentences on options that do not fit the method; empty if all do."""

    @classmethod
    def from_config(cls, config: PruningConfig) -> Method:
        """The method with the options' values, defaults filled in."""

    def gates(self, importance: Tensor, kept: int | None, update: int) -> Tensor:
        """Gates of a training update before the heads are fixed: [H], with gradient to the importance.

        `kept` is K; None for `--unpruned-heads auto`, which only a method with a number of its own sees.
        """

    def own_number(self, importance: Tensor) -> int | None:
        """How many heads the method itself would keep (`--unpruned-heads auto`); None where it has no say."""

    def temperature(self, update: int) -> float | None:
        """What is annealed, for the log; None where nothing is."""

    def penalty(self, importance: Tensor, update: int) -> Tensor | None:
        """Added to the loss per target token (or per sentence, with `--sentence-avg`); None for none."""


_CLASSES: tuple[type[Method], ...] = (DifferentiableSubset, StraightThrough, HardConcrete, Fixed)
METHODS = {method.name: method for method in _CLASSES}


def method_class(config: PruningConfig) -> type[Method]:
    """The method that the options ask for; without any word of it, dsp, or the given layout.

    Raises:
        Refusal: `--head-selection` names no method.
    """
    name = config.head_selection
    if name is None:
        given_layout_only = config.head_layout is not None and config.unpruned_heads is None
        name = Fixed.name if given_layout_only else DifferentiableSubset.name
    if name not in METHODS:
        raise Refusal(f"`--head-selection` must be one of {', '.join(METHODS)}, but is {name}.")
    return METHODS[name]
