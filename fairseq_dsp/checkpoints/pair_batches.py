"""Sentences for a model of several language pairs, as fairseq's own task makes them: tokens of languages, sampling and all.

Called by `batches`, the exports and `benchmark`. The options are those that the checkpoint was trained with, but for the folder and
the pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fairseq.data import FairseqDataset
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from fairseq_dsp.config import flag, given_options, set_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.data_folder import TRAIN
from fairseq_dsp.options.languages import Languages, languages_of
from fairseq_dsp.options.pair_folders import objections_to_dictionaries, refuse_no_sentences
from fairseq_dsp.options.records import TaskOptions

_OF_THE_DATA = ("extra_data", "extra_lang_pairs")


def set_languages(options: Any, source: str | None, target: str | None) -> None:
    """Writes the languages that a user gives into the options of a checkpoint's task, which tells those that are not given."""
    told = TaskOptions.of(options)
    set_option(options, "source_lang", source or told.source_lang)
    set_option(options, "target_lang", target or told.target_lang)


def pairs_of_batches(options: Any, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """The pairs of batches that are drawn; see `chosen_pairs`. None for a model of one language pair."""
    return None if languages_of(options) is None else chosen_pairs(options, given)


def chosen_pairs(options: Any, given: Sequence[str] | None) -> tuple[str, ...]:
    """The pairs that are read: those given, that of `--source-lang` and `--target-lang`, or all that the model was trained on.

    Args:
        options: of the task that trained the model, and the two languages.
        given: by `--lang-pairs`.

    Raises:
        Refusal: the model was not trained on them.
    """
    languages = _languages(options)
    sides = TaskOptions.of(options).languages
    if given is None and any(sides):
        if not all(sides):
            source, target = (side or "not given" for side in sides)
            said = f"`--source-lang` is {source} and `--target-lang` is {target}"
            raise Refusal(f"`--source-lang` and `--target-lang` must name a pair of several together, but {said}.")
        given = ["-".join(map(str, sides))]
    if given is None:
        return languages.pairs
    if foreign := [pair for pair in given if pair not in languages.pairs]:
        raise Refusal(
            f"`--lang-pairs` must be of those that the model was trained on ({', '.join(languages.pairs)}), but "
            f"{', '.join(foreign)} {'is' if len(foreign) == 1 else 'are'} not."
        )
    return tuple(given)


def multilingual_task(
    options: Any, data: str, pairs: Sequence[str], words: tuple[int, int] | None, name: str
) -> TranslationMultiSimpleEpochTask:
    """fairseq's task over a data folder, with the options that shaped the model's batches.

    Args:
        options: of the task that trained the model.
        data: the folder.
        pairs: that are read.
        words: rows of the model's source and target embeddings; None to leave them unchecked.
        name: what the user calls the folder, for refusals.

    Raises:
        Refusal: the folder lacks dictionaries, or has other ones than the model.
    """
    languages = _languages(options)
    args = _complete(options, data, languages)
    args.lang_pairs = list(pairs)
    if reasons := objections_to_dictionaries(languages, pairs, args, name):
        raise Refusal(*reasons)
    task = TranslationMultiSimpleEpochTask.setup_task(args)
    sizes = len(task.source_dictionary), len(task.target_dictionary)
    for side, size, rows in zip(("source", "target"), sizes, words or sizes, strict=True):
        if size != rows:
            raise Refusal(
                f"{name} must have the model's dictionaries, but the {side}'s has {size} entries with the tokens of "
                f"{','.join(languages.names)} for {rows} embeddings."
            )
    return task


def pairs_dataset(
    task: TranslationMultiSimpleEpochTask, options: Any, subset: str, name: str, option: str = "lang_pairs"
) -> FairseqDataset:
    """The sentences of the task's pairs, as it makes batches of them in training, or in validation.

    Args:
        task: see `multilingual_task`.
        options: of the task that trained the model.
        subset: the data set's name.
        name: what the user calls the folder. Likewise:
        option: what named the pairs.

    Raises:
        Refusal: a pair has no sentences, or damaged ones, or training read others that are not in the folder.
    """
    counts = [len(task.source_dictionary), len(task.target_dictionary)]
    if ":" in str(task.args.data):
        raise Refusal(
            f"{name} must be one folder for a model of several language pairs, of which training reads one an epoch, but is "
            f"{task.args.data}."
        )
    for pair in task.lang_pairs:
        refuse_no_sentences(task.args.data, pair, subset, name, option).sizes(subset, counts)
    extra = [each for each in _OF_THE_DATA if getattr(TaskOptions.of(options), each)]
    if extra and subset == TRAIN:
        listed = " and ".join(map(flag, extra))
        raise Refusal(
            f"{name} must have all that training read, but the model was trained with {listed} too: take `valid`."
        )
    task.load_dataset(subset, combine=subset == TRAIN)
    return task.dataset(subset)


def _languages(options: Any) -> Languages:
    languages = languages_of(options)
    assert languages is not None
    return languages


def _complete(options: Any, data: str, languages: Languages) -> argparse.Namespace:
    """The options with fairseq's defaults for those that an older checkpoint lacks."""
    parser = argparse.ArgumentParser(add_help=False)
    TranslationMultiSimpleEpochTask.add_args(parser)
    args = argparse.Namespace(**{action.dest: action.default for action in parser._actions})
    names, given = {*vars(args), "langtoks", "shuffle_instance"}, given_options(options)
    for each in names & given.keys():
        setattr(args, each, given[each])
    args.data, args.langs, args.lang_dict = data, list(languages.names), None
    args.source_lang = args.target_lang = None
    args.extra_lang_pairs = None  # `extra_data` adds a word to the dictionary, and is read in no other set than `train`
    args.seed, args.train_subset, args.dataset_impl = given.get("seed", 1), TRAIN, None
    for side in ("left_pad_source", "left_pad_target"):  # fairseq evaluates text, and takes a truth value for False
        setattr(args, side, str(getattr(args, side)))
    args.langtoks = {kind: tuple(tokens) for kind, tokens in (args.langtoks or {}).items()}
    return args
