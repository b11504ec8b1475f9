"""Scores of a multilingual model's heads, a file a language pair. Called by `fairseq-dsp-score --lang-pairs`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from fairseq_dsp.api.scoring import Work, checked_options
from fairseq_dsp.api.watching import Watch, unwatched
from fairseq_dsp.files.output import checked_folder
from fairseq_dsp.units.score_file import ScoreFile


def score_pairs(
    checkpoint: str | os.PathLike[str],
    scorer: str,
    data: str | os.PathLike[str] | None,
    output: str | os.PathLike[str] | None = None,
    *,
    lang_pairs: str | Sequence[str],
    subset: str | None = None,
    batches: int | str | None = None,
    max_tokens: int | str | None = None,
    iterative: int | str | None = None,
    seed: int | str | None = None,
    cpu: bool = False,
    force: bool = False,
    watch: Watch = unwatched,
) -> dict[str, ScoreFile]:
    """How much each head of a multilingual model matters to each language pair: `fairseq-dsp-score --lang-pairs`.

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
    check = None if output is None else partial(checked_folder, output, force, "folders of score files", is_scores)
    target, options = checked_options(scorer, data, given | {"lang_pairs": lang_pairs}, check)
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
