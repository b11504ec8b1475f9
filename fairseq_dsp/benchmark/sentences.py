"""Sentence pairs to measure with, synthetic or from a data folder, in batches as fairseq makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fairseq.data.language_pair_dataset import collate
from torch import Tensor

from fairseq_dsp.benchmark.settings import Settings
from fairseq_dsp.checkpoints.pair_batches import chosen_pairs, multilingual_task, pairs_dataset, set_languages
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.files.data_folder import DataFolder
from fairseq_dsp.options.languages import languages_of

PREFIX = "prefix"  # of a batch: the tokens that its translations begin with, [B, 1]
_PAD, _END, _FIRST_WORD = 1, 2, 4

Pair = tuple[Tensor, Tensor]


def dictionary_sizes(settings: Settings) -> tuple[int, int]:
    """Entries of the data folder's source and target dictionary.

    Raises:
        Refusal: no such folder or dictionaries.
    """
    if settings.task_of is not None:
        task, _ = _task_of_several(settings)
        return len(task.source_dictionary), len(task.target_dictionary)
    source, target = _folder(settings).dictionaries()
    return len(source), len(target)


def batch_of(settings: Settings, sentences: int) -> dict[str, Any]:
    """A batch of so many sentences: synthetic ones of one length, or the middle of the subset sorted by length.

    Raises:
        Refusal: the subset is missing, or has too few sentences.
    """
    if settings.data is None:
        return _collate(list(_synthetic(settings, sentences)))
    pairs = _sorted_pairs(settings)
    if len(pairs) < sentences:
        raise Refusal(
            f"`--batch-size` must be at most the {len(pairs)} sentences of {settings.data}, but is {sentences}."
        )
    start = (len(pairs) - sentences) // 2
    chosen = pairs[start : start + sentences]
    batch = _collate(chosen)
    if settings.task_of is not None and _task_of_several(settings)[0].args.langtoks["main"][1]:
        batch[PREFIX] = torch.stack([chosen[number][1][:1] for number in batch["id"].tolist()])
    return batch


def batch_of_tokens(settings: Settings) -> dict[str, Any]:
    """A batch of at most `max_tokens` on either side, padding included, as `--max-tokens` counts; at least a sentence."""
    if settings.data is None:
        return batch_of(settings, max(settings.max_tokens // (settings.length + 1), 1))
    pairs = _sorted_pairs(settings)
    start, chosen, longest = len(pairs) // 2, [], 0
    for pair in pairs[start:]:
        longest = max(longest, *map(len, pair))
        if chosen and longest * (len(chosen) + 1) > settings.max_tokens:
            break
        chosen.append(pair)
    return _collate(chosen)


def to_device(batch: Any, device: str) -> Any:
    """The same batch with its tensors on the device."""
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    return batch.to(device) if torch.is_tensor(batch) else batch


def _synthetic(settings: Settings, sentences: int) -> Iterator[Pair]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(sentences):
        pair = [torch.randint(_FIRST_WORD, size, (settings.length,), generator=generator) for size in settings.words]
        source, target = (torch.cat([words, torch.tensor([_END])]) for words in pair)
        yield source, target


def _sorted_pairs(settings: Settings) -> list[Pair]:
    """All pairs of the subset, by length of the source, then of the target; of a model of several languages, with their tokens."""
    if settings.task_of is not None:
        task, options = _task_of_several(settings)
        dataset = pairs_dataset(task, options, settings.subset, "`--data`")
        items = (dataset[index] for index in range(len(dataset)))
        pairs = [(item["source"], item["target"]) for item in items]
    else:
        folder = _folder(settings)
        dictionaries = folder.dictionaries()
        sides = folder.sides(settings.subset, list(map(len, dictionaries)))
        pairs = [(sides[0][index].long(), sides[1][index].long()) for index in range(len(sides[0]))]
    if not pairs:
        raise Refusal(f"`--subset` must have sentences, but {settings.subset} of {settings.data} has none.")
    return sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1])))


def _folder(settings: Settings) -> DataFolder:
    assert settings.data is not None
    return DataFolder(settings.data, settings.source_lang, settings.target_lang)


def _task_of_several(settings: Settings) -> tuple[Any, Any]:
    """fairseq's task of the checkpoint over the data folder, and its options.

    Raises:
        Refusal: the folder does not fit, or its tokens stand where the batches made here have none.
    """
    assert settings.data is not None
    assert settings.task_of is not None
    state = read_checkpoint(settings.task_of)
    options = state["cfg"].task
    set_languages(options, settings.source_lang, settings.target_lang)
    if languages_of(options).replaces_ends:
        raise Refusal(
            "`--data` is not measured with a model of `--lang-tok-replacing-bos-eos`, but the checkpoint has it."
        )
    words = tuple(len(state["model"][f"{side}.embed_tokens.weight"]) for side in ("encoder", "decoder"))
    return multilingual_task(options, settings.data, chosen_pairs(options, None), words, "`--data`"), options


def _collate(pairs: list[Pair]) -> dict[str, Any]:
    samples = [{"id": index, "source": source, "target": target} for index, (source, target) in enumerate(pairs)]
    return collate(samples, pad_idx=_PAD, eos_idx=_END, left_pad_source=True, left_pad_target=False)
