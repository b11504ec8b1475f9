"""Whether a data folder has what a model of several language pairs reads: dictionaries, and sentences of every pair.

Asked by the task before training, and by whatever makes batches for a checkpoint. fairseq stumbles over each of these later.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from fairseq.data import Dictionary

from fairseq_dsp.config import flag
from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.files.data_folder import DataFolder, refuse_no_folder
from fairseq_dsp.options.languages import Languages
from fairseq_dsp.options.records import TaskOptions


def objections_to_dictionaries(languages: Languages, pairs: Sequence[str], options: Any, name: str) -> list[str]:
    """Sentences on languages that have no token, and on dictionaries that are missing or not one for all.

    Args:
        languages: of the task.
        pairs: that are read.
        options: the task's, with `data`.
        name: what the user calls the folder.
    """
    names = sorted({language for pair in pairs for language in pair.split("-")})
    if missing := [language for language in names if language not in languages.names]:
        return [
            f"`--langs` must name every language that is translated, but {', '.join(missing)} is not in {','.join(languages.names)}."
        ]
    told, reasons = TaskOptions.of(options), list[str]()
    with noted(reasons):
        refuse_no_folder(options.data, name)
        reasons += _objections_to_files(told)
        if told.fixed_dictionary is None:
            for side, given in enumerate((told.source_dict, told.target_dict)):
                if given is None:
                    reasons += _objections_to_side([pair.split("-")[side] for pair in pairs], options.data, name)
    return list(dict.fromkeys(reasons))


def refuse_no_sentences(data: str, pair: str, subset: str, name: str, option: str = "lang_pairs") -> DataFolder:
    """The folder, asked for a pair.

    Args:
        data: the folder, or several with colons between.
        name: what the user calls it.
        option: that which named the pair.

    Raises:
        Refusal: it has no sentences of the pair in the subset, or damaged ones.
    """
    folder = DataFolder(data, *pair.split("-"), name=name)
    held = sorted({"-".join(each) for each in folder.pairs})
    if pair not in held and "-".join(reversed(pair.split("-"))) not in held:
        raise Refusal(f"{flag(option)} must name pairs that {name} holds ({', '.join(held)}), but {pair} is none.")
    prefixes = folder.parts(subset)[0]
    if not any(os.path.exists(f"{prefix}{ending}") for prefix in prefixes for ending in ("", ".idx", ".bin")):
        raise Refusal(f"{name} must hold {subset} of every language pair, but has none of {pair}.")
    if not len(folder.sizes(subset)):
        raise Refusal(f"{name} must hold sentences of every language pair, but {subset} of {pair} is empty.")
    return folder


def _objections_to_files(told: TaskOptions) -> list[str]:
    given = {name: getattr(told, name) for name in ("source_dict", "target_dict", "fixed_dictionary")}
    return [
        f"{flag(name)} must be a dictionary of fairseq, but {path} is no file."
        for name, path in given.items()
        if path is not None and not os.path.isfile(path)
    ]


def _objections_to_side(names: Iterable[str], data: str, name: str) -> list[str]:
    """Of a side's languages, which share one dictionary."""
    reasons: list[str] = []
    found: dict[str, Dictionary] = {}
    for language in sorted(set(names)):
        with noted(reasons):
            found[language] = DataFolder(data, language, language, name).dictionaries()[0]
    first = next(iter(found), None)
    for language, dictionary in found.items():
        if dictionary != found[first]:
            reasons.append(
                f"{name} must have one dictionary for all languages of a side (`--joined-dictionary`, or `--srcdict` of the "
                f"others), but those of {first} and {language} differ."
            )
    return reasons
