"""Sentence pairs to measure with, synthetic or from a data folder, in batches as fairseq makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fairseq.data.language_pair_dataset import collate
from torch import Tensor

from fairseq_dsp.benchmark.settings import Settings
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.data_folder import DataFolder

_PAD, _END, _FIRST_WORD = 1, 2, 4

Pair = tuple[Tensor, Tensor]


def dictionary_sizes(settings: Settings) -> tuple[int, int]:
    """Entries of the data folder's source and target dictionary.

    Raises:
        Refusal: no such folder or dictionaries.
    """
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
    return _collate(pairs[start : start + sentences])


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
    """All pairs of the subset, by length of the source, then of the target."""
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


def _collate(pairs: list[Pair]) -> dict[str, Any]:
    samples = [{"id": index, "source": source, "target": target} for index, (source, target) in enumerate(pairs)]
    return collate(samples, pad_idx=_PAD, eos_idx=_END, left_pad_source=True, left_pad_target=False)
