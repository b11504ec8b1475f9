"""`--budget` as a user writes it, and the limit on the cost of units that it stands for in a model. Pure data.

18, 0.25                     so many units, or this share of them
heads=18,ffn=0.5             the same, a kind
parameters=20M, macs=0.5, latency=40ms
                             what the whole model may cost: a number with a suffix, or a share of what it costs with all units
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.costs import LATENCY, MACS, PARAMETERS, Costs, Sentence
from fairseq_dsp.units.kinds import CHOICES

OPTION = "--budget"
_NUMBER = re.compile(r"(\d{1,18}(?:\.\d{1,18})?(?:e\d{1,2})?)([a-zA-Z]*)")
_SIZES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_TIMES = {"us": Fraction(1, 10**6), "ms": Fraction(1, 10**3), "s": Fraction(1)}
_SUFFIXES: dict[str, Mapping[str, int | Fraction]] = {COUNT: {"": 1}, PARAMETERS: _SIZES, MACS: _SIZES, LATENCY: _TIMES}
_NAMES = {
    PARAMETERS: "parameters",
    MACS: "multiply-adds a sentence",
    LATENCY: "seconds a sentence",
    COUNT: "units",
}


@dataclass(frozen=True)
class Amount:
    """A number, in the measure's own unit, or a share of what there is: exactly what was written, so that 0.29 of 100 is 29."""

    value: Fraction
    is_share: bool


@dataclass(frozen=True)
class BudgetRequest:
    """What a user asks for.

    Attributes:
        text: as it was written.
        measure: what is counted.
        amount: of all units, or of the whole model; None where amounts are given a kind. Otherwise:
        by_kind: the amount of every kind that is named.
    """

    text: str
    measure: str
    amount: Amount | None
    by_kind: tuple[tuple[str, Amount], ...] = ()

    def count(self, total: int, dense: int | None = None) -> int:
        """K of n units, for a budget in units: a share is rounded down.

        Args:
            dense: what a share is of; n if None.

        Raises:
            Refusal: there are fewer units.
        """
        assert self.amount is not None
        whole = total if dense is None else dense
        k = math.floor(self.amount.value * whole) if self.amount.is_share else int(self.amount.value)
        if k > total:
            raise Refusal(f"`{OPTION}` must be between 0 and {total} (the units of this model), but is {self.text}.")
        return k

    def limit(self, costs: Costs, dense: int | None = None) -> int:
        """The most that kept units may cost together, in the costs' whole numbers.

        Args:
            costs: of the units that are chosen among.
            dense: what a share is of; what the model costs with all of these units if None.

        Raises:
            Refusal: the model costs more without any of its units.
        """
        assert self.amount is not None
        dense = costs.dense if dense is None else dense
        if self.amount.is_share:
            whole = math.floor(self.amount.value * dense)
        else:
            whole = math.floor(self.amount.value / costs.scale)
        if whole < costs.rest:
            least, share = written(costs.rest * costs.scale, self.measure), costs.rest / dense
            raise Refusal(
                f"`{OPTION} {self.text}` must be at least what no unit costs (embeddings, output projection and the like: {least}, "
                f"{share:.1%} of the model), but is {written(whole * costs.scale, self.measure)}."
            )
        return whole - costs.rest


def parse_budget(text: str) -> BudgetRequest:
    """Reads a budget.

    Raises:
        Refusal: it is none; every reason at once.
    """
    parts = [part.partition("=") for part in text.split(",")]
    kinds = [kind.name for kind in CHOICES]
    names = [name for name, given, _ in parts if given]
    if not names and len(parts) == 1:
        return BudgetRequest(text, COUNT, _amount(text, COUNT, text))
    reasons = [
        f"`{OPTION}` must read a number, KIND=NUMBER for {' and '.join(kinds)} or MEASURE=NUMBER for {PARAMETERS}, {MACS} or {LATENCY}, "
        f"but is {text}."
        for name, given, _ in parts
        if not given or name not in (*kinds, PARAMETERS, MACS, LATENCY)
    ][:1]
    if len(set(names)) < len(names) or len(names) > 1 and not set(names) <= set(kinds):
        reasons.append(f"`{OPTION}` must name one measure, or every kind once, but is {text}.")
    if reasons:
        raise Refusal(*reasons)
    name, _, number = parts[0]
    if name not in kinds:
        return BudgetRequest(text, name, _amount(number, name, text))
    return BudgetRequest(text, COUNT, None, tuple((kind, _amount(value, COUNT, text)) for kind, _, value in parts))


def parse_sentence(text: str, option: str = "--sentence") -> Sentence:
    """Tokens of source and target and the beam, as `25,24,5`.

    Raises:
        Refusal: it does not read so.
    """
    if not re.fullmatch(r"[1-9]\d{0,5},[1-9]\d{0,5},[1-9]\d{0,3}", text):
        raise Refusal(
            f"`{option}` must be source tokens, target tokens and beam as 25,24,5, all above 0, but is {text}."
        )
    source, target, beam = map(int, text.split(","))
    return Sentence(source, target, beam)


def written(value: float, measure: str) -> str:
    """A value of a measure for people: `31.5 M parameters`."""
    if measure == LATENCY:
        return f"{value * 1e3:.4g} ms a sentence"
    if measure == COUNT:
        return f"{value:.0f} units"
    for suffix, size in reversed(_SIZES.items()):
        if suffix not in ("", "k") and value >= size:
            return f"{value / size:.4g} {suffix} {_NAMES[measure]}".replace(" K ", " k ")
    return f"{value:.0f} {_NAMES[measure]}"


def _amount(text: str, measure: str, whole: str) -> Amount:
    found = _NUMBER.fullmatch(text.strip())
    suffixes = _SUFFIXES[measure]
    if found is None or found[2] not in suffixes and (found[2] or float(found[1]) > 1):
        known = f" with {', '.join(filter(None, suffixes))}" if len(suffixes) > 1 else ""
        kind = "a whole number" if measure == COUNT else f"a number{known}"
        raise Refusal(f"`{OPTION}` must have {kind}, or a share of at most 1, but is {whole}.")
    number, suffix = found[1], found[2]
    value = Fraction(number)
    if measure == COUNT:
        if number.isdigit():
            return Amount(value, False)
        if value > 1:
            raise Refusal(f"`{OPTION}` must have a whole number, or a share of at most 1, but is {whole}.")
        return Amount(value, True)
    if not suffix and value <= 1:
        return Amount(value, True)
    return Amount(value * suffixes[suffix], False)
