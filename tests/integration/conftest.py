"""A tiny corpus of reversed words, and the few trained models that many tests share. All read-only."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from commands import PREPROCESS, QUIET, budget, prune, run, train
from languages import preprocess, train_languages

SENTENCES = {"train": 200, "valid": 37, "test": 37}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text files of both sides: `train.aa` and `train.bb`, whose lines are reversed and renamed."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for subset, count in SENTENCES.items():
        lines = [[draw.randrange(12) for _ in range(draw.randint(2, 8))] for _ in range(count)]
        (folder / f"{subset}.aa").write_text("".join(" ".join(f"a{w}" for w in line) + "\n" for line in lines))
        (folder / f"{subset}.bb").write_text("".join(" ".join(f"b{w}" for w in line[::-1]) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def data(corpus: Path) -> Path:
    """The corpus as fairseq-preprocess makes it."""
    arguments = ["-s", "aa", "-t", "bb", "--destdir", corpus / "bin", "--workers", 1]
    for option, subset in (("--trainpref", "train"), ("--validpref", "valid"), ("--testpref", "test")):
        arguments += [option, corpus / subset]
    done = run(PREPROCESS, *arguments, folder=corpus)
    assert done.code == 0, done.err
    return corpus / "bin"


@pytest.fixture(scope="session")
def dense(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint of stock fairseq, trained by stock fairseq-train."""
    save = tmp_path_factory.mktemp("dense")
    train(data, save, *QUIET, "--max-epoch", 6, stock=True)
    return save / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained with K = 5 of 12 heads, its cooldown over, not rewritten."""
    save = tmp_path_factory.mktemp("trained")
    train(data, save, *QUIET, *budget(5), "--max-epoch", 6)
    return save / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def pruned(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained`, rewritten."""
    target = tmp_path_factory.mktemp("pruned") / "pruned.pt"
    prune(trained, target)
    return target


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three languages, two pairs with one source, as fairseq-preprocess makes them."""
    return preprocess(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="session")
def multilingual(several: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint of stock fairseq's task of several pairs, trained by stock fairseq-train."""
    save = tmp_path_factory.mktemp("multilingual")
    train_languages(several, save, *QUIET, "--max-epoch", 3, stock=True)
    return save / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def multilingual_trained(several: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours, trained with K = 5 of 12 heads, its cooldown over, not rewritten."""
    save = tmp_path_factory.mktemp("multilingual_trained")
    train_languages(several, save, *QUIET, *budget(5), "--max-epoch", 3)
    return save / "checkpoint_last.pt"
