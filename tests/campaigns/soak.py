"""Translates many sentences with a masked and with its rewritten model, and compares what comes out.

    python -m tests.campaigns.soak --masked trained.pt --rewritten pruned.pt --data-bin DIR --count 1000 --seed 1

Batches have a random size and a random beam of 1 to 8. The hypotheses of a sentence must be the same, in the same order,
with scores within 1e-5. Where they are not, the sentence is translated again by itself in float64: if both models agree there, two
hypotheses were so near in the middle of the search that rounding decided which went on, which is counted and listed as
`decided by rounding`. Other words at a rank are a tie, which is counted and listed, where its scores are within 1e-5 all the
same and each of the two hypotheses stands in the other list too, with a score as near, or is the last of its own: then the one that
it is tied with may have been cut off. The masked model is the checkpoint's dense one whose other heads are multiplied by zero.

Memory: resident memory is read after every batch. The highest value of the last quarter of the run may exceed that of the
second quarter by a twentieth at most: the first quarter fills torch's and the allocator's caches.
"""

from __future__ import annotations

import argparse
import copy
import functools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.data.data_utils import load_indexed_dataset
from fairseq.sequence_generator import SequenceGenerator

import fairseq_dsp  # noqa: F401  registers the architectures
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.modules.surgery import mask_heads, remove_gates
from fairseq_dsp.plugin.building import load_model
from tests.campaigns.material import Tally, parser

MOST_SENTENCES, MOST_BEAMS = 16, 8
TOLERANCE = 1e-5
GROWTH = 1.05
NOTHING: dict[str, Any] = {"hypotheses": 0, "ties": 0, "largest_difference": 0.0}

Hypotheses = list[tuple[list[int], float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; returns the exit code."""
    options = parser(str(__doc__), count=(1000, "sentences"))
    options.add_argument("--masked", type=Path, required=True, help="checkpoint trained with a budget, not rewritten")
    options.add_argument("--rewritten", type=Path, required=True, help="the same, by fairseq-dsp-prune")
    options.add_argument("--data-bin", type=Path, required=True, help="folder of fairseq-preprocess")
    options.add_argument("--subset", default="test", help="whose source sentences are translated (default: test)")
    args = options.parse_args(arguments)
    masked, rewritten = masked_model(args.masked), load_model(read_checkpoint(str(args.rewritten))).float()
    source, target, sentences = read_sentences(args)
    tally, draw, memory = Tally(len(sentences)), random.Random(args.seed), []
    tally.figures.update(heads=rewritten.layout.count, **NOTHING, batches=0)
    tally.figures["decided by rounding"] = 0
    exact = [copy.deepcopy(model).double() for model in (masked, rewritten)]
    for batch, beam in batches(sentences, draw):
        found = [translate(model, batch, beam, source.pad(), target) for model in (masked, rewritten)]
        for sentence, theirs, ours in zip(batch, *found, strict=True):
            again = functools.partial(_translate_one, exact, sentence, beam, source.pad(), target)
            text = f"beam {beam}, {source.string(sentence)!r}"
            tally.step([f"{text}: {reason}" for reason in judge(theirs, ours, again, text, tally)])
        tally.count("batches")
        memory.append(resident())
    tally.figures.update(judge_memory(memory, tally))
    return tally.finish()


def masked_model(path: Path) -> Any:
    """A checkpoint's model with all of its parameters, whose heads that were not chosen are multiplied by zero."""
    model = load_model(read_checkpoint(str(path))).float()
    layout = model.deployed_layout()
    remove_gates(model, model.layout.grid)
    model.head_gates = None
    mask_heads(model, layout, model.layout)
    return model


def read_sentences(args: argparse.Namespace) -> tuple[Dictionary, Dictionary, list[torch.Tensor]]:
    """Both dictionaries and `--count` source sentences drawn with `--seed`, with the end symbol, in random order."""
    pair = next(args.data_bin.glob(f"{args.subset}.*-*.*.idx")).name.split(".")[1]
    languages = pair.split("-")
    source, target = (Dictionary.load(str(args.data_bin / f"dict.{language}.txt")) for language in languages)
    stored = load_indexed_dataset(str(args.data_bin / f"{args.subset}.{pair}.{languages[0]}"), source)
    numbers = random.Random(args.seed).sample(range(len(stored)), min(args.count, len(stored)))
    return source, target, [stored[number].long() for number in numbers]


def batches(sentences: list[torch.Tensor], draw: random.Random) -> Iterator[tuple[list[torch.Tensor], int]]:
    """All sentences in batches of random size, each with a random beam."""
    done = 0
    while done < len(sentences):
        size = draw.randint(1, MOST_SENTENCES)
        yield sentences[done : done + size], draw.randint(1, MOST_BEAMS)
        done += size


def translate(model: Any, batch: list[torch.Tensor], beam: int, pad: int, target: Dictionary) -> list[Hypotheses]:
    """All hypotheses of every sentence, best first: word numbers and score."""
    lengths = torch.tensor([len(sentence) for sentence in batch])
    tokens = torch.full((len(batch), int(lengths.max())), pad)
    for row, sentence in zip(tokens, batch, strict=True):
        row[len(row) - len(sentence) :] = sentence  # padding on the left, as fairseq has it
    generator = SequenceGenerator([model], target, beam_size=beam, max_len_a=1.2, max_len_b=10)
    with torch.no_grad():
        found = generator.generate([model], {"net_input": {"src_tokens": tokens, "src_lengths": lengths}})
    return [[(each["tokens"].tolist(), float(each["score"])) for each in hypotheses] for hypotheses in found]


def judge(
    theirs: Hypotheses, ours: Hypotheses, again: Callable[[], list[Hypotheses]], text: str, tally: Tally
) -> list[str]:
    """What is wrong with a sentence's hypotheses, and is no matter of rounding.

    Args:
        again: gives both lists in float64.
    """
    figures = dict(tally.figures)
    failures = compare(theirs, ours, text, tally)
    if not failures:
        return []
    exactly = Tally(1)
    exactly.figures.update(NOTHING)
    if wrong := compare(*again(), text, exactly):
        return [*failures, *(f"and in float64: {reason}" for reason in wrong)]
    tally.figures = figures | {"hypotheses": tally.figures["hypotheses"]}  # its differences are not those of two models
    tally.count("decided by rounding")
    print(f"decided by rounding: {text}: {'; '.join(failures)}", file=sys.stderr)
    return []


def _translate_one(
    models: list[Any], sentence: torch.Tensor, beam: int, pad: int, target: Dictionary
) -> list[Hypotheses]:
    return [translate(model, [sentence], beam, pad, target)[0] for model in models]


def compare(theirs: Hypotheses, ours: Hypotheses, text: str, tally: Tally) -> list[str]:
    """What is wrong with a sentence's hypotheses; counts them, and counts and prints every tie."""
    if len(theirs) != len(ours):
        return [f"{len(theirs)} hypotheses, rewritten {len(ours)}"]
    failures = []
    for rank, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        (words, score), (our_words, our_score) = one, other
        tally.count("hypotheses")
        tally.figures["largest_difference"] = max(tally.figures["largest_difference"], abs(score - our_score))
        if not abs(score - our_score) <= TOLERANCE:  # nor is NaN
            failures.append(f"rank {rank}: scores {score:.7f} and {our_score:.7f}")
        elif words != our_words and (rank == len(ours) - 1 or _stands_in(one, ours) and _stands_in(other, theirs)):
            tally.count("ties")
            print(f"tie at rank {rank}, scores {score:.7f} and {our_score:.7f}: {text}", file=sys.stderr)
        elif words != our_words:
            failures.append(f"rank {rank}: {words} and {our_words}, which are no tie")
    return failures


def _stands_in(hypothesis: tuple[list[int], float], others: Hypotheses) -> bool:
    """Whether a list has the same words, with a score that is near."""
    words, score = hypothesis
    return any(words == other and abs(score - other_score) <= TOLERANCE for other, other_score in others)


def resident() -> int:
    """Resident memory of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def judge_memory(memory: list[int], tally: Tally) -> dict[str, float]:
    """Figures on memory in MB; a failure where it grew. Too short a run, of less than 40 batches, is not judged."""
    quarter = len(memory) // 4
    second, last = (max(part, default=0) / 1e6 for part in (memory[quarter : 2 * quarter], memory[-quarter:]))
    if len(memory) >= 40 and last > GROWTH * second:
        tally.failures.append(f"memory grew from {second:.0f} MB to {last:.0f} MB")
    return {"second_quarter_mb": round(second, 1), "last_quarter_mb": round(last, 1)}


if __name__ == "__main__":
    sys.exit(main())
