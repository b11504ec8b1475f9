"""Write a small artificial parallel corpus for the quick-start demonstration.

The corpus pairs two invented languages, Arvel (``qar``) and Tevari (``qte``); both codes lie in the range
that ISO 639-2 reserves for local use.  A sentence is drawn as a small tree of meaning and then spelled out
once in each language, so the translation is a function of the source sentence.  The grammars differ in:

==================  ======================================  ==============================================
feature             Arvel (source)                          Tevari (target)
==================  ======================================  ==============================================
clause              subject verb object                     subject object verb, object marked by a word
noun phrase         determiner noun adjectives              adjectives noun determiner
relative clause     follows its noun                        precedes its noun
agreement           number, on all words                    number and noun class, on all words but the noun
particle verbs      particle at the end of the clause       particle right before the verb
negation            after the verb                          before the particle and the verb
adverb              after the object                        opens the clause
pronoun             one form                                class and number of the first clause's subject
==================  ======================================  ==============================================

A translator therefore has to move words over long distances and to look up the class of a remote noun.
Words are separated by single spaces, and no further tokenization is needed.

``--languages 3`` adds Osmir (``qos``): the verb opens the clause, after its negation, and particle and adverb close it; adjectives
and determiner stand before the noun; number is marked on nouns and determiners alone.

Usage: ``python sample_corpus.py --output DIR [--pairs 6000] [--seed 1] [--languages 3]``
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import without_fairseq  # noqa: F401  before the imports below

from fairseq_dsp.errors import as_command, refused_disk
from fairseq_dsp.files.output import checked_file, refuse_no_name

SOURCE, TARGET, THIRD = "qar", "qte", "qos"
HELD_OUT = 500  # sentence pairs in each of valid and test
NOUNS, ADJECTIVES, VERBS, ADVERBS = 40, 14, 16, 8  # stems per word class
DETERMINERS, PARTICLES = 3, 3
CLASSES = 3  # noun classes of Tevari; noun i belongs to class i % CLASSES


# --- Lexicon ------------------------------------------------------------------------------------------------
class Lexicon:
    """The stems of one language, by word class.  Endings are added by the functions that spell sentences."""

    def __init__(self, consonants: str, vowels: str) -> None:
        syllables = [c + v for c in consonants for v in vowels]
        stems = [first + second for first in syllables for second in syllables]
        # Visit the stems in a fixed scattered order: 379 is prime and does not divide their number.
        scattered = (stems[379 * i % len(stems)] for i in range(len(stems)))
        self.nouns = list(islice(scattered, NOUNS))
        self.adjectives = list(islice(scattered, ADJECTIVES))
        self.verbs = list(islice(scattered, VERBS))
        self.adverbs = list(islice(scattered, ADVERBS))
        self.determiners = list(islice(scattered, DETERMINERS))
        self.particles = list(islice(scattered, PARTICLES))


ARVEL = Lexicon("ptkmnlrs", "aeio")
TEVARI = Lexicon("bdgvzhjw", "aeou")
OSMIR = Lexicon("fcqxptmn", "uy")

# Every stem is four letters long, so the shorter function words cannot be mistaken for one.
ARVEL_NOT, ARVEL_AND, ARVEL_WHO, ARVEL_PRONOUN = "min", "tas", "ker", "sil"
TEVARI_NOT, TEVARI_AND, TEVARI_WHO, TEVARI_OBJECT, TEVARI_PRONOUN = "vud", "gaz", "joh", "wo", "ha"
OSMIR_NOT, OSMIR_AND, OSMIR_WHO, OSMIR_PRONOUN = "fex", "nuc", "pif", "xo"
ARVEL_NUMBER = ("", "k")  # singular, plural
TEVARI_NUMBER = ("", "s")
OSMIR_NUMBER = ("", "z")
TEVARI_CLASS_NUMBER = (("l", "n", "r"), ("lim", "num", "ram"))  # [plural][noun class]


# --- Meaning ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Predicate:
    """A verb with its object and modifiers; what is said of a subject."""

    verb: int
    obj: NounPhrase
    particle: int | None = None
    adverb: int | None = None
    negated: bool = False


@dataclass(frozen=True)
class NounPhrase:
    """A noun with its number, determiner, adjectives and, possibly, a relative clause about it."""

    noun: int
    plural: bool
    determiner: int
    adjectives: tuple[int, ...] = ()
    relative: Predicate | None = None

    @property
    def ending(self) -> str:
        """The Tevari ending of the words that agree with this phrase."""
        return TEVARI_CLASS_NUMBER[self.plural][self.noun % CLASSES]


@dataclass(frozen=True)
class Sentence:
    """A subject and one statement about it, or two coordinated ones."""

    subject: NounPhrase
    first: Predicate
    second: Predicate | None = None


# --- Drawing a meaning --------------------------------------------------------------------------------------
# Only Random.random() is used, because Python guarantees its sequence for a given seed across versions.
def _index(rng: random.Random, size: int) -> int:
    return int(rng.random() * size)


def _maybe(rng: random.Random, probability: float, size: int) -> int | None:
    return _index(rng, size) if rng.random() < probability else None


def _draw_noun_phrase(rng: random.Random, *, adjective: float, relative: bool = False) -> NounPhrase:
    """Draw a noun phrase that has an adjective with the given probability."""
    return NounPhrase(
        noun=_index(rng, NOUNS),
        plural=rng.random() < 0.5,
        determiner=_index(rng, DETERMINERS),
        adjectives=(_index(rng, ADJECTIVES),) if rng.random() < adjective else (),
        relative=_draw_predicate(rng, adjective=0.2, modifier=0.0) if relative else None,
    )


def _draw_predicate(rng: random.Random, *, adjective: float, modifier: float) -> Predicate:
    """Draw a predicate whose adverb and negation each appear with probability ``modifier``."""
    return Predicate(
        verb=_index(rng, VERBS),
        obj=_draw_noun_phrase(rng, adjective=adjective),
        particle=_maybe(rng, 0.5, PARTICLES),
        adverb=_maybe(rng, modifier, ADVERBS),
        negated=rng.random() < modifier,
    )


def _draw_sentence(rng: random.Random) -> Sentence:
    shape = rng.random()  # a quarter of the sentences have a relative clause, a quarter are coordinated
    subject = _draw_noun_phrase(rng, adjective=0.5, relative=shape < 0.25)
    first = _draw_predicate(rng, adjective=0.5, modifier=0.35)
    second = _draw_predicate(rng, adjective=0.2, modifier=0.2) if shape >= 0.75 else None
    return Sentence(subject, first, second)


# --- Spelling a meaning out ---------------------------------------------------------------------------------
def _optional(words: Sequence[str], index: int | None) -> list[str]:
    return [] if index is None else [words[index]]


def _arvel_noun_phrase(phrase: NounPhrase) -> list[str]:
    ending = ARVEL_NUMBER[phrase.plural]
    words = [ARVEL.determiners[phrase.determiner] + ending, ARVEL.nouns[phrase.noun] + ending]
    words += [ARVEL.adjectives[adjective] + ending for adjective in phrase.adjectives]
    if phrase.relative is not None:
        words += [ARVEL_WHO, *_arvel_predicate(phrase.relative, phrase)]
    return words


def _arvel_predicate(predicate: Predicate, subject: NounPhrase) -> list[str]:
    return [
        ARVEL.verbs[predicate.verb] + ARVEL_NUMBER[subject.plural],
        *([ARVEL_NOT] if predicate.negated else []),
        *_arvel_noun_phrase(predicate.obj),
        *_optional(ARVEL.adverbs, predicate.adverb),
        *_optional(ARVEL.particles, predicate.particle),
    ]


def _arvel(sentence: Sentence) -> list[str]:
    words = _arvel_noun_phrase(sentence.subject) + _arvel_predicate(sentence.first, sentence.subject)
    if sentence.second is not None:
        words += [ARVEL_AND, ARVEL_PRONOUN, *_arvel_predicate(sentence.second, sentence.subject)]
    return words


def _tevari_noun_phrase(phrase: NounPhrase) -> list[str]:
    words: list[str] = []
    if phrase.relative is not None:
        words += [*_tevari_predicate(phrase.relative, phrase), TEVARI_WHO]
    words += [TEVARI.adjectives[adjective] + phrase.ending for adjective in phrase.adjectives]
    words.append(TEVARI.nouns[phrase.noun] + TEVARI_NUMBER[phrase.plural])
    words.append(TEVARI.determiners[phrase.determiner] + phrase.ending)
    return words


def _tevari_predicate(predicate: Predicate, subject: NounPhrase) -> list[str]:
    return [
        *_tevari_noun_phrase(predicate.obj),
        TEVARI_OBJECT,
        *([TEVARI_NOT] if predicate.negated else []),
        *_optional(TEVARI.particles, predicate.particle),
        TEVARI.verbs[predicate.verb] + subject.ending,
    ]


def _tevari(sentence: Sentence) -> list[str]:
    words = _optional(TEVARI.adverbs, sentence.first.adverb)
    words += _tevari_noun_phrase(sentence.subject) + _tevari_predicate(sentence.first, sentence.subject)
    if sentence.second is not None:
        words += [TEVARI_AND, *_optional(TEVARI.adverbs, sentence.second.adverb)]
        words.append(TEVARI_PRONOUN + sentence.subject.ending)
        words += _tevari_predicate(sentence.second, sentence.subject)
    return words


def _osmir_noun_phrase(phrase: NounPhrase) -> list[str]:
    number = OSMIR_NUMBER[phrase.plural]
    words = [OSMIR.adjectives[adjective] for adjective in phrase.adjectives]
    words += [OSMIR.determiners[phrase.determiner] + number, OSMIR.nouns[phrase.noun] + number]
    return words if phrase.relative is None else [*words, OSMIR_WHO, *_osmir_clause(phrase.relative, [])]


def _osmir_clause(predicate: Predicate, subject: list[str]) -> list[str]:
    return [
        *([OSMIR_NOT] if predicate.negated else []),
        OSMIR.verbs[predicate.verb],
        *subject,
        *_osmir_noun_phrase(predicate.obj),
        *_optional(OSMIR.particles, predicate.particle),
        *_optional(OSMIR.adverbs, predicate.adverb),
    ]


def _osmir(sentence: Sentence) -> list[str]:
    words = _osmir_clause(sentence.first, _osmir_noun_phrase(sentence.subject))
    second = sentence.second
    return words if second is None else [*words, OSMIR_AND, *_osmir_clause(second, [OSMIR_PRONOUN])]


# --- Corpus -------------------------------------------------------------------------------------------------
_SPELLED = {SOURCE: _arvel, TARGET: _tevari, THIRD: _osmir}


def generate_pairs(count: int, seed: int, target: str = TARGET) -> list[tuple[str, str]]:
    """Return ``count`` (source, target) pairs, the same for the same seed; no sentence occurs twice."""
    rng = random.Random(seed)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        sentence = _draw_sentence(rng)
        pairs[" ".join(_arvel(sentence))] = " ".join(_SPELLED[target](sentence))
    return list(pairs.items())


def write_corpus(directory: Path | str, pairs: int = 6000, seed: int = 1, languages: int = 2) -> None:
    """Write ``train``, ``valid`` and ``test`` files, where ``pairs`` is the size of the training set of a language pair.

    The test and validation sets hold ``HELD_OUT`` pairs each and depend on the seed alone. Of three languages, the files of a
    pair have its name in theirs (``train.qar-qos.qos``), and the pairs share their sources.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for target in (TARGET, THIRD)[: languages - 1]:
        everything = generate_pairs(2 * HELD_OUT + pairs, seed, target)
        held_out = {"test": everything[:HELD_OUT], "valid": everything[HELD_OUT : 2 * HELD_OUT]}
        splits = held_out | {"train": everything[2 * HELD_OUT :]}
        infix = f".{SOURCE}-{target}" if languages > 2 else ""
        for split, chosen in splits.items():
            for side, language in enumerate((SOURCE, target)):
                text = "".join(pair[side] + "\n" for pair in chosen)
                files.append((checked_file(directory / f"{split}{infix}.{language}", force=True), text.encode()))
    for file, content in files:
        file.write(lambda handle, content=content: handle.write(content), "the corpus")


def main() -> None:
    """Run the command line."""
    with as_command():
        _main()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Write the sample corpus (Arvel to Tevari, and to Osmir).")
    parser.add_argument("--output", required=True, help="directory to write to")
    parser.add_argument("--pairs", type=int, default=6000, help="training pairs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sentences (default: %(default)s)")
    parser.add_argument("--languages", type=int, choices=(2, 3), default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    refuse_no_name(arguments.output)
    with refused_disk(arguments.output):
        write_corpus(arguments.output, arguments.pairs, arguments.seed, arguments.languages)


if __name__ == "__main__":
    main()
