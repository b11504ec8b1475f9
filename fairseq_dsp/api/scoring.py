"""Scores of a finished model's units. Called by `fairseq-dsp-score`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from fairseq_dsp.api.score_work import Work, checked_options
from fairseq_dsp.api.watching import Watch, unwatched
from fairseq_dsp.files.output import checked_file, checked_folder
from fairseq_dsp.units.score_file import ScoreFile


def score(
    checkpoint: str | os.PathLike[str],
    scorer: str,
    data: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    units: str | None = None,
    ffn_group: int | str | None = None,
    subset: str | None = None,
    batches: int | str | None = None,
    max_tokens: int | str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
    iterative: int | str | None = None,
    seed: int | str | None = None,
    statistic: str | None = None,
    norm: str | None = None,
    scorer_model: str | os.PathLike[str] | None = None,
    cpu: bool = False,
    force: bool = False,
    watch: Watch = unwatched,
) -> ScoreFile:
    """How much each unit of a finished model matters: `fairseq-dsp-score`.

    Args:
        checkpoint: the model, dense or with gates, which are off while it is scored.
        scorer: `gradient`, `fisher`, `joint-fisher`, `function-norm`, `attention-statistics`, `one-shot`, `magnitude` or `random`.
        data: the data folder; the last two read none.
        output: a file for the scores, JSON; None for none.
        units: kinds of units, with commas: `heads` (the default), `ffn`, groups of neurons of the feed-forward networks; or `sublayers` alone.
        ffn_group: how many neurons a group, by default 1, or as many as those in which neurons of the model were pruned.
        subset: `train` (the default) or `valid`; never the test set.
        batches: how many, drawn with the seed, or `all`; by default 100.
        max_tokens: tokens in a batch, by default 4096.
        source_lang: of `data`, where the checkpoint and the folder do not tell it. Likewise:
        target_lang: its target language.
        iterative: score again after every so many units removed.
        seed: of the choice of batches and of random scores, by default 1.
        statistic: of `attention-statistics`: `entropy`, `confidence`, `coverage` or `diagonal`.
        norm: of `function-norm`: `absolute` (the default) or `relative` to the stream.
        scorer_model: of `one-shot`: the file of `train_scorer`.
        cpu: use no GPU.
        force: overwrite `output`.
        watch: shows how far the work is: a context manager that is made with what is done and the number of its steps, and whose
            value is called after every step.

    Returns:
        the scores and where they are from, for `prune`.

    Raises:
        Refusal: the request cannot be honoured, with the sentences of the command; nothing has been written.
    """
    given = {"subset": subset, "batches": batches, "max_tokens": max_tokens, "iterative": iterative, "seed": seed}
    given |= {"source_lang": source_lang, "target_lang": target_lang}
    own = {"statistic": statistic, "norm": norm, "scorer_model": scorer_model}
    check = None if output is None else partial(checked_file, output, force)
    target, options = checked_options(scorer, data, given, own, (units, ffn_group), check)
    file = Work.of(checkpoint, scorer, data, options, cpu).score(None, watch)
    if target is not None:
        target.write(lambda handle: handle.write(file.text().encode()), "the score file")
    return file


def score_pairs(
    checkpoint: str | os.PathLike[str],
    scorer: str,
    data: str | os.PathLike[str] | None,
    output: str | os.PathLike[str] | None = None,
    *,
    lang_pairs: str | Sequence[str],
    units: str | None = None,
    ffn_group: int | str | None = None,
    subset: str | None = None,
    batches: int | str | None = None,
    max_tokens: int | str | None = None,
    iterative: int | str | None = None,
    seed: int | str | None = None,
    statistic: str | None = None,
    norm: str | None = None,
    scorer_model: str | os.PathLike[str] | None = None,
    cpu: bool = False,
    force: bool = False,
    watch: Watch = unwatched,
) -> dict[str, ScoreFile]:
    """How much each unit of a multilingual model matters to each language pair: `fairseq-dsp-score --lang-pairs`.

    Args:
        checkpoint: of fairseq's task `translation_multi_simple_epoch`, or ours, dense or with gates.
        scorer: see `score`; one that reads data. Likewise for all that is not said here.
        data: the data folder.
        output: a folder for the score files, `scores.en-de.json` and so on; None for none.
        lang_pairs: pairs that the model was trained on, with commas between.
        batches: how many of each pair.
        force: replace `output`, a folder of score files.

    Returns:
        the scores by pair, for `prune` and `fairseq-dsp-merge`.

    Raises:
        Refusal: the request cannot be honoured, with the sentences of the command; nothing has been written.
    """
    given = {"subset": subset, "batches": batches, "max_tokens": max_tokens, "iterative": iterative, "seed": seed}
    own = {"statistic": statistic, "norm": norm, "scorer_model": scorer_model}
    check = None if output is None else partial(checked_folder, output, force, "folders of score files", is_scores)
    target, options = checked_options(scorer, data, given | {"lang_pairs": lang_pairs}, own, (units, ffn_group), check)
    pairs = options["lang_pairs"]
    work = Work.of(checkpoint, scorer, data, options, cpu)
    files = {}
    with watch(f"{scorer}, language pairs", len(pairs)) as done:
        for drawn in [work.draw([pair]) for pair in pairs]:  # all are read before the first is scored
            file = work.score(drawn, unwatched)
            assert file.pairs is not None
            files[file.pairs[0]] = file
            done()
    if target is not None:
        with target.written("the score files") as folder:
            for pair, file in files.items():
                with open(os.path.join(folder, file_of_pair(pair)), "w", encoding="utf-8") as handle:
                    handle.write(file.text())
    return files


def file_of_pair(pair: str) -> str:
    """The name of a pair's score file in a folder of them."""
    return f"scores.{pair}.json"


def is_scores(folder: str) -> bool:
    """Whether a folder holds score files of language pairs and nothing else."""
    return all(name.startswith("scores.") and name.endswith(".json") for name in os.listdir(folder))
