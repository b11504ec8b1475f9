"""From a finished run's files to its line of the results."""

from __future__ import annotations

import math
import os
import platform
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from sacrebleu.metrics import BLEU, CHRF

import fairseq_dsp
from fairseq_dsp.analysis.records import REFERENCES
from fairseq_dsp.analysis.translations import read_translations, tokenised_bleu
from fairseq_dsp.benchmark.comparison import processor_name
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import PROVENANCE, read_checkpoint
from fairseq_dsp.files.output import checked_file
from fairseq_dsp.options.costing import costs_of
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.costs import MACS, Sentence
from fairseq_dsp.units.request import parse_budget

from .checkpoints import LAST, updates_of
from .data import Data
from .presets import DENSE_SMALL, SHUFFLES
from .steps import Run, Step

FOLDER = "hypotheses"


def measure(run: Run, recipe: Sequence[Step], out: Path, data: Data, hardware: dict[str, Any]) -> dict[str, Any]:
    """The record of a run whose commands have all ended; writes its translations beside it.

    Args:
        recipe: all commands that its figures rest on.

    Raises:
        Refusal: a translation is missing, or the checkpoint is not fit.
        UnicodeDecodeError: the translations are cut or damaged.
    """
    folder = out / "runs" / run.name
    printed = read_translations((folder / "generate.log").read_text(encoding="utf-8"), len(data.sizes["test"]))
    if data.references is not None:  # fairseq prints its dictionary's words: an unknown character is `<<unk>>`
        printed = replace(printed, references=data.references)
    tokenised = tokenised_bleu(printed, data.moses)
    plain = detokenise(printed.hypotheses, data), detokenise(printed.references, data)
    translations = f"{FOLDER}/{run.name}.detok.txt"
    write_lines(out / translations, plain[0])
    write_lines(out / FOLDER / f"{run.name}.tok.txt", printed.hypotheses)
    write_lines(out / REFERENCES, plain[1])
    metrics = {"sacrebleu": BLEU(), "chrf": CHRF()}
    scores = {name: metric.corpus_score(plain[0], [plain[1]]).score for name, metric in metrics.items()}
    signatures = {"bleu_tok": tokenised.signature} | {name: str(m.get_signature()) for name, m in metrics.items()}
    state = read_checkpoint(str(out / run.deployed))
    model = load_model(state)
    layout = model.deployed_layout()
    training = out / "runs" / (run.training or run.name)
    log = training / "train.log"
    trained = {}
    if log.is_file():
        text = log.read_text(encoding="utf-8", errors="replace")  # a full disk cuts lines anywhere
        trained = training_figures(text, updates_of(training / "checkpoints" / LAST))
    return {
        "method": run.method,
        "kept": run.budget if run.method == DENSE_SMALL else layout.count,
        "total": layout.grid.total,
        "seed": run.seed,
        "layout": str(layout),
        "bleu_tok": tokenised.value,
        **scores,
        "signatures": signatures,
        "updates": trained.get("updates"),
        "seconds": trained.get("seconds"),
        "words_per_second": trained.get("words_per_second"),
        "parameters": model.weight_count(),
        "hardware": hardware,
        "versions": versions(),
        "data": data.info,
        "command": " && ".join(shlex.join(step.words) for step in recipe),
        "hypotheses": translations,
        "log": str(log.relative_to(out)) if trained else None,
        "valid_nats": valid_nats(text) if trained and not run.training else None,
        "shuffled_of": SHUFFLES.get(run.method),
        "size_of": run.budget if run.method == DENSE_SMALL else None,
        "macs": operations(model, run, data),
        "latency": printed.seconds_per_sentence,
        "budget": _budget(state.get(PROVENANCE, {}).get("budget")),
    }


def operations(model: Any, run: Run, data: Data) -> int | None:
    """Multiply-adds of the deployed model for a sentence of the test set's mean lengths at the beam of its translation.

    None where no step says the beam, or the model has parts whose operations are not known.
    """
    words = [word for step in run.steps for word in step.words]
    if "--beam" not in words:
        return None
    source, target = (max(round(float(length)), 1) for length in data.sizes["test"].mean(axis=0))
    layout = model.deployed_layout()
    try:
        costs = costs_of(model, MACS, Sentence(source, target, int(words[words.index("--beam") + 1])))
    except Refusal:
        return None
    return costs.rest + costs.of(layout)


def _budget(text: str | None) -> str | None:
    """A budget in a measure; a number of units is what the layout says."""
    return text if text is not None and parse_budget(text).measure != COUNT else None


def detokenise(lines: Iterable[str], data: Data) -> list[str]:
    """Detokenised text of the target language, by sacremoses; text that was never tokenised stays as it is."""
    if not data.moses:
        return list(lines)
    from sacremoses import MosesDetokenizer

    detokeniser = MosesDetokenizer(data.target)
    return [detokeniser.detokenize(line.split()) for line in lines]


def valid_nats(log: str) -> float | None:
    """Validation loss of the best checkpoint, nats a target token without label smoothing; None where the log has none.

    The best is what fairseq took for it: of the highest BLEU where BLEU was taken, else of the lowest loss.
    """
    lines = [
        {name: float(value) for name, value in re.findall(r"([a-z_]+) ([-+.\de]+)(?= \||$)", line)}
        for line in re.findall(r"\| valid \| (epoch \d+ .*)$", log, flags=re.MULTILINE)
    ]
    found = [line for line in lines if {"loss", "nll_loss"} <= line.keys()]
    if not found:
        return None
    best = min(found, key=lambda line: -line["bleu"] if "bleu" in line else line["loss"])
    return round(best["nll_loss"] * math.log(2), 4)  # fairseq's is to the base of 2


def training_figures(log: str, done: int | None) -> dict[str, float]:
    """Updates, seconds in training steps, and target words a second of them, over all epochs; an epoch's last line counts.

    Words are fairseq's: pieces of BPE, and an end of sentence each. A training that was killed between an epoch's checkpoint
    and its line goes on behind it: the updates are known from the checkpoint then, and the others are left out.

    Args:
        done: updates of the last checkpoint; None where it is not there any more.
    """
    epochs: dict[int, dict[str, float]] = {}
    for line in re.findall(r"\| train \| (epoch \d+ .*)$", log, flags=re.MULTILINE):
        found = {name: float(value) for name, value in re.findall(r"([a-z_]+) ([-+.\de]+)(?= \||$)", line)}
        if {"epoch", "wpb", "num_updates", "train_wall"} <= found.keys():
            epochs[int(found["epoch"])] = found
    seconds, words, before = 0.0, 0.0, 0.0
    for _, found in sorted(epochs.items()):
        seconds += found["train_wall"]
        words += found["wpb"] * (found["num_updates"] - before)
        before = found["num_updates"]
    if sorted(epochs) != list(range(1, len(epochs) + 1)) or done not in (None, before):
        return {"updates": int(before) if done is None else done}
    if not epochs:
        return {}
    rate = {"words_per_second": round(words / seconds, 1)} if seconds > 0 else {}  # fairseq rounds to seconds
    return {"updates": int(before), "seconds": seconds, **rate}


def hardware(gpus: list[str], jobs: int) -> dict[str, Any]:
    """What the runs run on, as the results say it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, Any] = {"processor": processor_name(), "cores": cores, "runs at once": jobs}
    names = sorted({torch.cuda.get_device_name(index) for index in gpu_indices(gpus)})
    return found | ({"gpu": ", ".join(names), "gpus": len(gpus)} if gpus else {})


def gpu_indices(gpus: list[str]) -> list[int]:
    """How torch numbers the devices: among those that are visible."""
    visible = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    return [visible.index(gpu) if gpu in visible else int(gpu) for gpu in gpus]


def versions() -> dict[str, str]:
    """Of what the scores depend on."""
    found = {"fairseq_dsp": fairseq_dsp.__version__, "python": platform.python_version()}
    for package in ("fairseq-fixed", "fairseq", "torch", "sacrebleu", "sacremoses", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replaces a text file, whole or not at all.

    Raises:
        Refusal: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + "\n" for line in lines)
    checked_file(path, force=True).write(lambda file: file.write(text.encode()), "the translations")
