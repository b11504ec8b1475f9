"""Trains the network of the scorer `one-shot`. Called by `fairseq-dsp-train-scorer`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from fairseq_dsp.api.score_work import read_options, subject_of
from fairseq_dsp.api.watching import Watch, unwatched
from fairseq_dsp.checkpoints.batches import draw_batches, log_probs_of
from fairseq_dsp.checkpoints.choosing import heads_of
from fairseq_dsp.checkpoints.pair_batches import set_languages
from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.files.data_folder import refuse_no_folder
from fairseq_dsp.files.output import checked_file
from fairseq_dsp.plugin.building import ungated
from fairseq_dsp.scoring.map_features import FEATURES
from fairseq_dsp.scoring.one_shot_training import Example, train_one_shot
from fairseq_dsp.units.scorer_model import ScorerModel
from fairseq_dsp.version import __version__

_DEFAULTS = {"subset": "train", "batches": 30, "max_tokens": 4096, "seed": 1, "steps": 500}

Path = str | os.PathLike[str]


def train_scorer(
    checkpoints: Sequence[Path],
    data: Sequence[Path] | Path,
    output: Path,
    *,
    subset: str | None = None,
    batches: int | str | None = None,
    max_tokens: int | str | None = None,
    steps: int | str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
    seed: int | str | None = None,
    cpu: bool = False,
    force: bool = False,
    watch: Watch = unwatched,
) -> ScorerModel:
    """Trains a network that scores heads by their attention, for models that it has not seen: `fairseq-dsp-train-scorer`.

    Args:
        checkpoints: one model at least, dense or with gates, which are off; they stay as they are.
        data: a data folder for all of them, or as many folders as checkpoints.
        output: the file to write, JSON, for `score(…, scorer_model=…)`.
        subset: `train` (the default) or `valid`; never the test set.
        batches: how many of each folder, drawn with the seed, or `all`; by default 30.
        max_tokens: tokens in a batch, by default 4096.
        steps: of the training, by default 500.
        source_lang: of all folders, where the checkpoint and the folder do not tell it. Likewise:
        target_lang: their target language.
        seed: of all that is drawn, by default 1.
        cpu: use no GPU.
        force: overwrite `output`.
        watch: see `score`.

    Raises:
        Refusal: the request cannot be honoured, with the sentences of the command; nothing has been written.
    """
    given = {"subset": subset, "batches": batches, "max_tokens": max_tokens, "seed": seed, "steps": steps}
    options, reasons = read_options(given, _DEFAULTS)
    folders = [os.fspath(each) for each in ([data] if isinstance(data, (str, os.PathLike)) else data)]
    paths = [os.fspath(path) for path in checkpoints]
    if not paths:
        reasons.append("there must be a checkpoint to train a scorer on, but none is given.")
    elif len(folders) not in (1, len(paths)):
        reasons.append(
            f"DATA-BIN must be one for all {len(paths)} checkpoints, or one for each, but there are {len(folders)}."
        )
    for folder in folders:
        with noted(reasons):
            refuse_no_folder(folder, "DATA-BIN")
    target = None
    with noted(reasons):
        target = checked_file(output, force)
    if reasons or target is None:
        raise Refusal(*reasons)
    examples = []
    for path, folder in zip(paths, folders * (len(paths) if len(folders) == 1 else 1), strict=True):
        model, task_options, _ = ungated(path)
        set_languages(task_options, source_lang, target_lang)
        which = {"subset": options["subset"], "count": options["batches"], "max_tokens": options["max_tokens"]}
        drawn = draw_batches(model, task_options, folder, **which, seed=options["seed"], who="fairseq-dsp-train-scorer")
        model.requires_grad_(False).to("cuda" if torch.cuda.is_available() and not cpu else "cpu")
        heads = heads_of(model).surviving
        examples.append(Example(subject_of(model, drawn, options["seed"], heads), partial(log_probs_of, model)))
    with watch("scorer, steps", options["steps"]) as done:
        numbers: dict[str, Any] = train_one_shot(examples, options["steps"], options["seed"], done)
    trained = ScorerModel(
        version=__version__,
        features=FEATURES,
        models=tuple(os.path.basename(path) for path in paths),
        steps=options["steps"],
        seed=options["seed"],
        **numbers,
    )
    target.write(lambda handle: handle.write(trained.text().encode()), "the scorer model")
    return trained
