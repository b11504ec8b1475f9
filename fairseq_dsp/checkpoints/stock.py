"""What of stock fairseq an export needs: options without ours, a model without our attention, the dictionaries' words.

Called by `export` and `benchmark`. A stock cfg is plain data: torch's safe loading refuses the argparse Namespace that fairseq-train
writes, and nobody repairs that where this package is not installed, while a plain dict loads everywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from fairseq.models import build_model
from fairseq.models.transformer import TransformerModel
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fairseq_dsp.checkpoints.pair_batches import chosen_pairs, multilingual_task, pairs_dataset, set_languages
from fairseq_dsp.config import PruningConfig, architecture_of, given_options
from fairseq_dsp.files.data_folder import DataFolder
from fairseq_dsp.guards.versions import drop_fused_encoder_copies
from fairseq_dsp.options.languages import (
    BILINGUAL,
    BILINGUAL_BUDGET,
    MULTILINGUAL,
    MULTILINGUAL_BUDGET,
    languages_of,
)
from fairseq_dsp.options.records import TaskOptions, completed
from fairseq_dsp.plugin.building import VocabularyTask

STOCK_NAMES = {
    BILINGUAL_BUDGET: BILINGUAL,
    MULTILINGUAL_BUDGET: MULTILINGUAL,
    "label_smoothed_cross_entropy_dsp": "label_smoothed_cross_entropy",
    "dsp_adam": "adam",
    "LabelSmoothedCrossEntropyDspCriterion": "LabelSmoothedCrossEntropyCriterion",
    "DspAdam": "FairseqAdam",
}

_PREFIX = "dsp_"
_OURS = {field.name for field in fields(PruningConfig)} - {"seed"}


def stock_cfg(cfg: DictConfig) -> dict[str, Any]:
    """A checkpoint's whole cfg as plain data that names stock fairseq's parts only and has none of our options.

    Args:
        cfg: as `building.load_model` leaves it: the architecture is one of ours.
    """
    groups = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    plain = {name: vars(group) if isinstance(group, argparse.Namespace) else group for name, group in groups.items()}
    architecture = architecture_of(cfg.model).removeprefix(_PREFIX)
    given, names = given_options(cfg.model), _transformer_options()
    options = {name: given[name] for name in names if name in given}
    complete = vars(completed({**options, "arch": architecture}))
    model = {name: _plain(value) for name, value in complete.items() if name != "arch"}
    # the weights come with the checkpoint: no need of the files that they started from
    model |= {"_name": architecture, "arch": architecture, "encoder_embed_path": None, "decoder_embed_path": None}
    plain["model"] = model
    registries = {"task": TASK_DATACLASS_REGISTRY}
    registries |= {group: REGISTRIES[group]["dataclass_registry"] for group in ("criterion", "optimizer")}
    for group, dataclasses in registries.items():
        theirs = plain.get(group) or {}
        if theirs.get("_name") in STOCK_NAMES:
            name = STOCK_NAMES[theirs["_name"]]
            # of a legacy task, whose options are no dataclass, they are all of fairseq-train's
            known = {field.name for field in fields(dataclasses[name])} if name in dataclasses else set(theirs) - _OURS
            plain[group] = {key: value for key, value in theirs.items() if key in known} | {"_name": name}
            if name not in dataclasses:
                plain[group]["task"] = name
    if plain.get("common"):
        plain["common"]["user_dir"] = None
    return plain


def build_stock(cfg: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The model as stock fairseq builds it from a stock cfg, with the weights, in evaluation mode."""
    options = OmegaConf.create(cfg["model"])
    model = build_model(options, VocabularyTask(weights, options))
    weights = dict(weights)
    drop_fused_encoder_copies(weights)  # where a layer has them, it makes them anew
    model.load_state_dict(weights, strict=True)
    return model.eval()


def read_vocabularies(
    cfg: DictConfig, data: str, source_lang: str | None, target_lang: str | None
) -> tuple[list[str], list[str]]:
    """Words of the source and of the target side by their number, special symbols included.

    Args:
        cfg: a checkpoint's; asked for the languages that are not given.
        data: folder of fairseq-preprocess, with dict.SRC.txt and dict.TGT.txt; the first of several with colons between.

    Raises:
        Refusal: no such folder or file, or the languages cannot be told.
    """
    if languages_of(cfg.task) is not None:
        task = _task_of_several(cfg, data, source_lang, target_lang)
        return task.source_dictionary.symbols, task.target_dictionary.symbols
    source, target = (dictionary.symbols for dictionary in _folder(cfg, data, source_lang, target_lang).dictionaries())
    return source, target


def read_sentences(
    cfg: DictConfig, data: str, source_lang: str | None, target_lang: str | None, subset: str
) -> list[tuple[list[int], list[int]]]:
    """Sentence pairs of a data set, as numbers of words, without the ends of sentences; of a model of several language pairs, of those
    that are asked for or of all, with their tokens: those that take the place of ends too. Arguments as of `read_vocabularies`.

    Raises:
        Refusal: the folder holds no such data set, or it is damaged.
    """
    if languages_of(cfg.task) is not None:
        set_languages(cfg.task, source_lang, target_lang)
        return [each for pair in chosen_pairs(cfg.task, None) for each in _sentences_of(cfg.task, data, pair, subset)]
    folder = _folder(cfg, data, source_lang, target_lang)
    dictionaries = folder.dictionaries()
    sides = folder.sides(subset, list(map(len, dictionaries)))
    ends = {dictionary.eos() for dictionary in dictionaries}
    words = [[[word for word in side[n].tolist() if word not in ends] for n in range(len(side))] for side in sides]
    return list(zip(*words, strict=True))


def _sentences_of(options: Any, data: str, pair: str, subset: str) -> Iterator[tuple[list[int], list[int]]]:
    task = multilingual_task(options, data, [pair], None, "`--data`")
    dataset = pairs_dataset(task, options, subset, "`--data`")
    languages, end = languages_of(options), task.source_dictionary.eos()
    assert languages is not None
    around = languages.around(*pair.split("-"))
    last = [task.source_dictionary.index(word) for word in around.get("source_end", [])]
    first = [task.target_dictionary.index(word) for word in around.get("target_start", [])]
    for number in range(len(dataset)):
        item: Any = dataset[number]
        if isinstance(item, tuple):  # with the number of its data set, where tokens replace ends
            item = item[1]
        source, target = ([word for word in item[side].tolist() if word != end] for side in ("source", "target"))
        yield [*source, *last], [*first, *target]


def _task_of_several(cfg: DictConfig, data: str, source_lang: str | None, target_lang: str | None) -> Any:
    set_languages(cfg.task, source_lang, target_lang)
    return multilingual_task(cfg.task, data, chosen_pairs(cfg.task, None), None, "`--data`")


def _folder(cfg: DictConfig, data: str, source_lang: str | None, target_lang: str | None) -> DataFolder:
    told = TaskOptions.of(cfg.task)
    return DataFolder(data, source_lang or told.source_lang, target_lang or told.target_lang)


def _transformer_options() -> list[str]:
    """Names of all options of a stock transformer."""
    parser = argparse.ArgumentParser(add_help=False)
    TransformerModel.add_args(parser)
    return [action.dest for action in parser._actions]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
