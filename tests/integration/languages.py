"""A small corpus of three languages, the project's own grammar, and what trains on it: Arvel to Tevari and to Osmir."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from commands import GENERATE, PLUGIN, PREPROCESS, ROOT, Result, run, train
from fairseq.data import Dictionary

sys.path.insert(0, str(ROOT / "examples/translation"))

import sample_corpus

TASK, STOCK_TASK = "translation_multi_simple_epoch_dsp", "translation_multi_simple_epoch"
PAIRS = ("qar-qos", "qar-qte")
LANGS = ("qte", "qar", "qos")  # not in the order of the alphabet
LANGUAGES = ["--lang-pairs", ",".join(PAIRS), "--langs", ",".join(LANGS)]
TOKENS = ["--encoder-langtok", "tgt", "--decoder-langtok"]
SENTENCES = {"train": {"qar-qos": 90, "qar-qte": 130}, "valid": {"qar-qos": 11, "qar-qte": 23}}
SENTENCES |= {"test": {"qar-qos": 13, "qar-qte": 19}}


def preprocess(folder: Path) -> Path:
    """Writes the corpus and what fairseq-preprocess makes of it; returns the data folder."""
    sample_corpus.write_corpus(folder, pairs=130, seed=1, languages=3)
    words = Dictionary()
    for subset, counts in SENTENCES.items():
        for pair, count in counts.items():
            for language in pair.split("-"):
                path = folder / f"{subset}.{pair}.{language}"
                lines = path.read_text().splitlines(keepends=True)[:count]
                path.write_text("".join(lines))
                for word in " ".join(lines).split():
                    words.add_symbol(word)
    words.finalize()
    words.save(str(folder / "dict.txt"))
    for pair in PAIRS:
        source, target = pair.split("-")
        arguments = ["-s", source, "-t", target, "--destdir", folder / "bin", "--workers", 1]
        arguments += ["--srcdict", folder / "dict.txt", "--tgtdict", folder / "dict.txt"]
        for option, subset in (("--trainpref", "train"), ("--validpref", "valid"), ("--testpref", "test")):
            arguments += [option, folder / f"{subset}.{pair}"]
        shutil.copy(folder / "dict.txt", folder / "bin") if (folder / "bin").is_dir() else None
        done = run(PREPROCESS, *arguments, folder=folder)
        assert done.code == 0, done.err
    return folder / "bin"


def train_languages(data: Path, save: Path, *extra: Any, tokens: Any = TOKENS, **parts: Any) -> Result:
    """Trains our task, or with `stock=True` fairseq's."""
    task = STOCK_TASK if parts.get("stock") else TASK
    return train(data, save, *LANGUAGES, *tokens, *extra, **{"task": task, **parts})


def generate_pair(data: Path, path: Path, pair: str, *extra: Any, tokens: Any = TOKENS, folder: Path) -> Result:
    """Plain fairseq-generate of fairseq's own task."""
    source, target = pair.split("-")
    arguments = [data, *PLUGIN, "--task", STOCK_TASK, *LANGUAGES, *tokens, "-s", source, "-t", target, "--path", path]
    arguments += ["--gen-subset", "test", "--beam", "3", "--batch-size", "8", "--cpu", "--num-workers", "0"]
    arguments += ["--required-batch-size-multiple", "1", "--max-len-b", "15", *extra]
    return run(GENERATE, *arguments, folder=folder)
