"""What a quantised model does to translations of real sentences, and whether that is good. Called by `ctranslate2`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

SUBSET = "valid"
# The most take some seconds on a CPU. Of fewer than the fewest, one that loses its way decides the corpus's score.
MOST_SENTENCES, FEWEST_SENTENCES = 200, 50
_CHANCE = 0.05
_LONGEST, _BEAM = 200, 5  # words of a translation, as fairseq-generate's; beam of the recipes


@dataclass(frozen=True)
class Effect:
    """Translations by the quantised model beside those by the float32 one.

    Attributes:
        subset: data set of the sentences.
        sentences: how many were translated.
        same: how many translations are the same.
        bleu: of the float32 model, 0 to 100: lower-cased, on the data's own tokens. Likewise:
        quantized_bleu: of the quantised one.
        p_value: how often chance would make a difference as large: sacreBLEU's paired bootstrap; None where all are the same.
    """

    subset: str
    sentences: int
    same: int
    bleu: float
    quantized_bleu: float
    p_value: float | None

    @property
    def good(self) -> bool | None:
        """Whether BLEU has fallen by no more than chance explains (p >= 0.05); None where so few sentences cannot tell."""
        if self.sentences < FEWEST_SENTENCES:
            return None
        return self.quantized_bleu >= self.bleu or self.p_value is None or self.p_value >= _CHANCE

    def __str__(self) -> str:
        words = {
            True: "good",
            False: "not good, take another type",
            None: f"fewer than {FEWEST_SENTENCES}, too few to judge",
        }
        verdict = words[self.good]
        if self.p_value is None:
            return f"{verdict}: all {self.sentences} translations of {self.subset} stay the same"
        return (
            f"{verdict}: BLEU {self.quantized_bleu:.1f}, and {self.bleu:.1f} in float32 (p = {self.p_value:.2g}); "
            f"{self.same} of {self.sentences} translations of {self.subset} stay the same"
        )


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, in their order, from all over them."""
    count = min(len(items), most)
    return [items[place * len(items) // count] for place in range(count)]


def translate(
    translator: Any,
    sources: list[list[str]],
    positions: int,
    prefixes: list[list[str]] | None = None,
    shown: bool = True,
) -> list[str]:
    """The best translation of each.

    Args:
        translator: CTranslate2's.
        positions: that the decoder has.
        prefixes: the word that each begins with, which is left out of it.
        shown: whether CTranslate2 says it at all: it does not say what takes the place of the beginning.
    """
    limits = {"max_decoding_length": min(_LONGEST, positions), "max_input_length": 0}
    skipped = 0 if prefixes is None or not shown else 1
    results = translator.translate_batch(sources, prefixes, beam_size=_BEAM, **limits)
    return [" ".join(found.hypotheses[0][skipped:]) for found in results]


def compare(float32: list[str], quantized: list[str], references: list[str]) -> Effect:
    """Both models' translations of the same sentences, at least one, against the references; all are tokens."""
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    same = sum(one == other for one, other in zip(float32, quantized, strict=True))
    systems = [("float32", float32), ("quantised", quantized)]
    metric = BLEU(tokenize="none", lowercase=True, force=True)
    # one resample where nothing differs: the score alone is wanted, and p means nothing
    resamples = 1 if same == len(float32) else 1000
    _, found = PairedTest(systems, {"BLEU": metric}, [references], test_type="bs", n_samples=resamples)()
    one, other = found["BLEU"]
    p_value = None if same == len(float32) else float(other.p_value)
    return Effect(SUBSET, len(references), same, float(one.score), float(other.score), p_value)
