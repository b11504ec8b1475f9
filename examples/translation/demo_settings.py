"""What demo.py trains and how it is asked to: sizes, lengths, command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import sample_corpus


@dataclass(frozen=True)
class Recipe:
    """Size of the model and length of the training, small enough for two CPU cores."""

    layers: int
    width: int
    epochs: int
    warmup: int
    cooldown: int
    learning_rate: str
    max_tokens: int
    bpe_merges: int | None
    seeds: int


ATTENTION_HEADS = 4  # of every sublayer
SAMPLE = Recipe(2, 64, 16, 300, 400, "5e-3", 2000, None, 3)
REAL_TEXT = Recipe(3, 64, 6, 400, 1200, "5e-3", 4000, 4000, 1)


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train, prune and translate: the whole path on two CPU cores.")
    parser.add_argument(
        "--text", type=Path, help="folder with {train,valid,test}.{SRC,TGT}; default: the sample corpus"
    )
    parser.add_argument("--source-lang", default=sample_corpus.SOURCE, help="default: %(default)s")
    parser.add_argument("--target-lang", default=sample_corpus.TARGET, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("demo-run"), help="default: %(default)s")
    parser.add_argument("--unpruned-heads", type=int, help="default: a sixth of the heads")
    parser.add_argument("--epochs", type=int, help="default: chosen for the corpus")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=int, help="trainings with the budget, of seeds from --seed on; default: 3, on your own text 1"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an earlier run in the same folder")
    return parser
