"""`DataFolder`: a folder of fairseq-preprocess, checked. Called by commands, `export` and `benchmark`, and the reproduction.

fairseq itself takes a damaged folder and stumbles over it later, in a dozen ways.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.data_utils import batch_by_size, load_indexed_dataset
from fairseq.data.indexed_dataset import MMapIndexedDataset, infer_dataset_impl
from fairseq.utils import split_paths

from fairseq_dsp.errors import Refusal

_HEADER = 26  # bytes of an index before its sizes (4 bytes each) and places (8 bytes each)


def refuse_no_folder(path: str, name: str) -> None:
    """Checks that there is a data folder at all; of several shards, the first.

    Raises:
        Refusal: there is none.
    """
    if not os.path.isdir(split_paths(path)[0]):
        raise Refusal(f"{name} must be a folder of fairseq-preprocess, but {path} is none.")


class DataFolder:
    """Languages, dictionaries and data sets of a folder.

    Args:
        path: the folder.
        source: language of the source side; None for that of the only pair that the folder holds. Likewise:
        target: language of the target side.
        name: what the user calls the folder, for refusals.

    Raises:
        Refusal: no such folder, or it does not tell the languages.
    """

    def __init__(self, path: str, source: str | None = None, target: str | None = None, name: str = "`--data`") -> None:
        self.path, self.name = path, name
        refuse_no_folder(path, name)
        self.pairs = _pairs_in(path)
        if source is None or target is None:
            source, target = self.find_pair(source, target)
        self.source, self.target = source, target

    def find_pair(self, source: str | None, target: str | None) -> tuple[str, str]:
        """The one pair that the folder holds and that has the given languages.

        Raises:
            Refusal: there is none, or there are several.
        """
        if not self.pairs:
            raise Refusal(
                f"{self.name} must be a folder of fairseq-preprocess, but {self.path} holds no train.SRC-TGT.SRC.idx."
            )
        found = [pair for pair in self.pairs if source in (None, pair[0]) and target in (None, pair[1])]
        if len(found) != 1:
            given = "-".join(language or "?" for language in (source, target))
            raise Refusal(
                f"`--source-lang` and `--target-lang` must name one of the language pairs that {self.name} holds "
                f"({', '.join(map('-'.join, self.pairs))}), but are {given}."
            )
        return found[0]

    def dictionaries(self) -> tuple[Dictionary, Dictionary]:
        """Of the source and of the target side.

        Raises:
            Refusal: one is missing, or is none of fairseq's; every reason at once.
        """
        found, reasons = [], []
        for language in (self.source, self.target):
            path = os.path.join(self.path, f"dict.{language}.txt")
            if not os.path.isfile(path):
                reasons.append(
                    f"{self.name} must have a dictionary of each language, but {self.path} has no dict.{language}.txt."
                )
                continue
            try:
                found.append(Dictionary.load(path))
            except Exception as error:  # fairseq raises what comes
                reasons.append(f"{path} must be a dictionary of fairseq, but cannot be read: {_short(error)}")
        if reasons:
            raise Refusal(*reasons)
        return found[0], found[1]

    def sizes(self, subset: str, words: Sequence[int] | None = None) -> np.ndarray:
        """Tokens of every sentence pair of a data set: [pairs, 2].

        Args:
            words: entries of the two dictionaries, which no word may exceed; None to leave that unchecked.

        Raises:
            Refusal: a side is missing, cut or damaged, or has words that its dictionary lacks; every reason at once.
        """
        sides, reasons = [], []
        for language, limit in zip((self.source, self.target), words or (None, None), strict=True):
            prefix = self.prefix(subset, language)
            missing = [f"{prefix}.{kind}" for kind in ("idx", "bin") if not os.path.isfile(f"{prefix}.{kind}")]
            if missing and infer_dataset_impl(prefix) is None:
                names = ", ".join(map(os.path.basename, missing))
                reasons.append(f"{self.name} must hold {subset} in both languages, but {self.path} lacks {names}.")
                continue
            try:
                sides.append(_sizes(prefix, limit))
            except Exception as error:
                reasons.append(f"{self.name} must hold whole data sets, but {prefix} cannot be read: {_short(error)}")
        if not reasons and len(sides[0]) != len(sides[1]):
            reasons.append(
                f"{self.name} must have as many sentences in both languages, but {subset} of {self.path} has "
                f"{len(sides[0])} and {len(sides[1])}."
            )
        if reasons:
            raise Refusal(*reasons)
        return np.stack(sides, 1)

    def prefix(self, subset: str, language: str) -> str:
        """The side's files without their endings; as in fairseq, those of the opposite pair serve too."""
        prefixes = [
            os.path.join(self.path, f"{subset}.{pair}.{language}")
            for pair in (f"{self.source}-{self.target}", f"{self.target}-{self.source}")
        ]
        return next((prefix for prefix in prefixes if infer_dataset_impl(prefix) is not None), prefixes[0])


def count_batches(sizes: np.ndarray, max_tokens: int) -> int:
    """How many batches of `--max-tokens` fairseq-train makes of sentence pairs, which it sorts by source, then by target.

    Args:
        sizes: tokens of each sentence pair, [pairs, 2].
        max_tokens: most tokens of a batch on either side, padding included.
    """
    order = np.lexsort((sizes[:, 1], sizes[:, 0]))
    longest = sizes.max(1)[order].astype(np.int64)
    return len(batch_by_size(order, None, num_tokens_vec=longest, max_tokens=max_tokens))


def _pairs_in(folder: str) -> list[tuple[str, str]]:
    parts = [name.split(".") for name in os.listdir(folder)]
    return sorted(
        {(side, pair.removeprefix(f"{side}-")) for _, pair, side, *_ in (p for p in parts if len(p) > 2) if pair.startswith(f"{side}-")}
    )  # fmt: skip


def _sizes(prefix: str, limit: int | None) -> np.ndarray:
    """Raises:
    ValueError: the files are not what fairseq-preprocess writes.
    """
    if infer_dataset_impl(prefix) not in ("mmap", None):  # an older format, which fairseq reads itself
        return np.array(load_indexed_dataset(prefix, None).sizes)
    with open(f"{prefix}.idx", "rb") as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER or not header.startswith(MMapIndexedDataset.Index._HDR_MAGIC):
        _refuse("its index does not begin as one")
    count = int.from_bytes(header[-8:], "little")
    if os.path.getsize(f"{prefix}.idx") != _HEADER + 12 * count:
        _refuse("its index is cut")
    index = MMapIndexedDataset.Index(f"{prefix}.idx")
    sizes, kind = np.array(index.sizes), np.dtype(index.dtype)  # a copy: the memory goes with the index
    if (sizes < 0).any() or os.path.getsize(f"{prefix}.bin") != int(sizes.sum()) * kind.itemsize:
        _refuse("its words are not as many as its index says")
    if limit is not None and sizes.sum():
        words = np.memmap(f"{prefix}.bin", dtype=kind, mode="r")
        if int(words.max()) >= limit:
            _refuse(f"it has word {int(words.max())} of a dictionary of {limit}")
    return sizes


def _refuse(reason: str) -> NoReturn:
    raise ValueError(f"{reason}.")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
