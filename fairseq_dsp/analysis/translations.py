"""Reads what `fairseq-generate` printed, and scores it only if every sentence is there."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fairseq_dsp.errors import Refusal


@dataclass(frozen=True)
class Translations:
    """One generate run.

    Attributes:
        sources: sentences in the order of the test set, as fairseq printed them.
        references: likewise.
        hypotheses: the best hypothesis of each.
        tokens_per_second: fairseq's own figure: target tokens, model time only.
        seconds_per_sentence: likewise; None where the log does not say.
    """

    sources: list[str]
    references: list[str]
    hypotheses: list[str]
    tokens_per_second: float
    seconds_per_sentence: float | None = None


@dataclass(frozen=True)
class Score:
    """A corpus score and the signature that makes it repeatable."""

    value: float
    signature: str


def read_translations(text: str, expected: int) -> Translations:
    """Reads the output of `fairseq-generate`, its log included.

    Args:
        text: everything that the command printed.
        expected: number of sentences in the test set.

    Raises:
        Refusal: a sentence is missing or doubled. fairseq drops the last batch of a test set whose size does not divide by
            `--required-batch-size-multiple`, and a BLEU over the rest is another number.
    """
    rows: dict[str, dict[int, str]] = {"S": {}, "T": {}, "H": {}}
    for kind, index, content in re.findall(r"^([STH])-(\d+)\t(.*)$", text, flags=re.MULTILINE):
        # a hypothesis line has its score first, and may be empty after it
        rows[kind][int(index)] = content.partition("\t")[2] if kind == "H" else content
    for kind, name in (("H", "hypotheses"), ("T", "references")):
        if sorted(rows[kind]) != list(range(expected)):
            raise Refusal(
                f"there must be one of the {name} for each of the {expected} test sentences, but there are "
                f"{len(rows[kind])}: generate with `--required-batch-size-multiple 1`."
            )
    speed = re.search(r"([\d.]+) tokens/s\)", text)
    rate = re.search(r"\(([\d.]+) sentences/s", text)
    return Translations(
        *([rows[kind][index] for index in sorted(rows[kind])] for kind in ("S", "T", "H")),
        tokens_per_second=float(speed.group(1)) if speed else float("nan"),
        seconds_per_sentence=1 / float(rate[1]) if rate and float(rate[1]) > 0 else None,
    )


def tokenised_bleu(translations: Translations, tokenised: bool = True) -> Score:
    """Lower-cased BLEU on tokens, the literature's figure for IWSLT14, with sacreBLEU's signature.

    Args:
        tokenised: the text is made of tokens, taken as they are; if not, sacreBLEU's `13a` makes them.
    """
    from sacrebleu.metrics import BLEU

    # force: no warning that the text is tokenised, it is meant
    metric = BLEU(tokenize="none" if tokenised else "13a", lowercase=True, force=True)
    result = metric.corpus_score(translations.hypotheses, [translations.references])
    return Score(result.score, str(metric.get_signature()))
