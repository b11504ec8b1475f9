"""`DataFolder`: a folder of fairseq-preprocess, checked. Called by commands, `export` and `benchmark`, and the reproduction.

It takes what fairseq takes: several folders with colons between, files of every `--dataset-impl`. fairseq itself takes a damaged
folder too and stumbles over it later, in a dozen ways.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from fairseq.data import ConcatDataset, Dictionary, FairseqDataset
from fairseq.data.data_utils import batch_by_size, load_indexed_dataset
from fairseq.data.indexed_dataset import IndexedDataset, MMapIndexedDataset, dataset_exists, infer_dataset_impl
from fairseq.tokenizer import tokenize_line
from fairseq.utils import split_paths

from fairseq_dsp.errors import Refusal

TRAIN = "train"  # the data set that several folders share
RAW = "raw"  # the `--dataset-impl` that is text
_HEADER = 26  # bytes of an index before its sizes (4 bytes each) and places (8 bytes each)


def refuse_no_folder(path: str, name: str) -> None:
    """Checks that there is a data folder at all; of several, each.

    Raises:
        Refusal: there is none.
    """
    missing = [folder for folder in split_paths(path) if not os.path.isdir(folder)]
    if missing:
        raise Refusal(*(f"{name} must be a folder of fairseq-preprocess, but {folder} is none." for folder in missing))


class DataFolder:
    """Languages, dictionaries and data sets of a folder.

    Args:
        path: the folder, or several with colons between, as fairseq's commands take them: the first has dictionaries and all data
            sets, the others more of the training set.
        source: language of the source side; None for that of the only pair that the folder holds. Likewise:
        target: language of the target side.
        name: what the user calls the folder, for refusals.

    Raises:
        Refusal: no such folder, or it does not tell the languages.
    """

    def __init__(self, path: str, source: str | None = None, target: str | None = None, name: str = "`--data`") -> None:
        refuse_no_folder(path, name)
        self.folders, self.name = split_paths(path), name
        self.path = self.folders[0]
        self.pairs = _pairs_in(self.path)
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
        found, reasons = [], []
        for part in self.parts(subset):
            sides = []
            for prefix, limit in zip(part, words or (None, None), strict=True):
                missing = [f"{prefix}.{kind}" for kind in ("idx", "bin") if not os.path.isfile(f"{prefix}.{kind}")]
                if missing and infer_dataset_impl(prefix) is None:
                    folder, names = os.path.dirname(prefix), ", ".join(map(os.path.basename, missing))
                    reasons.append(f"{self.name} must hold {subset} in both languages, but {folder} lacks {names}.")
                    continue
                try:
                    sides.append(_sizes(prefix, limit))
                except Exception as error:
                    reasons.append(
                        f"{self.name} must hold whole data sets, but {prefix} cannot be read: {_short(error)}"
                    )
            if len(sides) == 2 and len(sides[0]) != len(sides[1]):
                reasons.append(
                    f"{self.name} must have as many sentences in both languages, but {subset} of {os.path.dirname(part[0])} "
                    f"has {len(sides[0])} and {len(sides[1])}."
                )
            found.append(sides)
        if reasons:
            raise Refusal(*reasons)
        return np.concatenate([np.stack(sides, 1) for sides in found])

    def sides(self, subset: str, words: Sequence[int] | None = None) -> tuple[FairseqDataset, FairseqDataset]:
        """A data set's source and target sentences, each a tensor of its words' numbers with the end, [tokens] int64.

        Args:
            words: see `sizes`.

        Raises:
            Refusal: see `sizes` and `dictionaries`.
        """
        dictionaries = self.dictionaries()
        self.sizes(subset, words)  # refuses a damaged one
        joined = []
        for side, dictionary in enumerate(dictionaries):
            parts = [_load(part[side], dictionary) for part in self.parts(subset)]
            joined.append(parts[0] if len(parts) == 1 else ConcatDataset(parts))
        return joined[0], joined[1]

    def parts(self, subset: str) -> list[tuple[str, str]]:
        """A data set's files, source and target, without their endings, part by part as fairseq-train reads them.

        The training set is in all folders, and goes on in train1, train2, …; any other is in the first and has one part.
        """
        if subset != TRAIN:
            return [self._prefixes(self.path, subset)]
        found = []
        for folder in self.folders:
            first = self._prefixes(folder, subset)
            found.append(first)  # whether it is there or not
            kind = RAW if infer_dataset_impl(first[0]) == RAW else None
            more = (self._prefixes(folder, f"{subset}{number}") for number in itertools.count(1))
            found += itertools.takewhile(lambda part, kind=kind: dataset_exists(part[0], kind), more)  # type: ignore[misc]
        return found

    def files(self, subset: str) -> list[str]:
        """Paths of the files that hold a data set's sentences, in the order of `parts`."""
        prefixes = itertools.chain(*self.parts(subset))
        return [prefix if infer_dataset_impl(prefix) == RAW else f"{prefix}.bin" for prefix in prefixes]

    def _prefixes(self, folder: str, name: str) -> tuple[str, str]:
        """As in fairseq, the files of the opposite pair serve too."""
        pairs = f"{self.source}-{self.target}", f"{self.target}-{self.source}"
        found = []
        for language in (self.source, self.target):
            prefixes = [os.path.join(folder, f"{name}.{pair}.{language}") for pair in pairs]
            found.append(next((prefix for prefix in prefixes if infer_dataset_impl(prefix) is not None), prefixes[0]))
        return found[0], found[1]


def count_batches(sizes: np.ndarray, max_tokens: int) -> int:
    """How many batches of `--max-tokens` fairseq-train makes of sentence pairs, which it sorts by source, then by target.

    Args:
        sizes: tokens of each sentence pair, [pairs, 2].
        max_tokens: most tokens of a batch on either side, padding included.
    """
    order = np.lexsort((sizes[:, 1], sizes[:, 0]))
    longest = sizes.max(1)[order].astype(np.int64)
    return len(batch_by_size(order, None, num_tokens_vec=longest, max_tokens=max_tokens))


def _load(prefix: str, dictionary: Dictionary | None = None) -> FairseqDataset:
    kind = infer_dataset_impl(prefix)
    # the same file as `cached`, which gives a sentence only to those who have announced it
    return load_indexed_dataset(prefix, dictionary, "lazy" if kind == "cached" else kind)


def _pairs_in(folder: str) -> list[tuple[str, str]]:
    parts = [name.split(".") for name in os.listdir(folder)]
    return sorted(
        {(side, pair.removeprefix(f"{side}-")) for _, pair, side, *_ in (p for p in parts if len(p) > 2) if pair.startswith(f"{side}-")}
    )  # fmt: skip


def _sizes(prefix: str, limit: int | None) -> np.ndarray:
    """Raises:
    ValueError: the files are not what fairseq-preprocess writes.
    """
    kind_of_file = infer_dataset_impl(prefix)
    if kind_of_file == RAW:  # text, of which a word that the dictionary lacks is the unknown one
        with open(prefix, encoding="utf-8") as file:
            return np.array([len(tokenize_line(line)) + 1 for line in file], dtype=np.int64)
    if kind_of_file not in ("mmap", None):  # an older format, which fairseq reads itself
        return _sizes_of_older(_load(prefix), prefix, limit)
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
        _refuse_foreign(int(np.memmap(f"{prefix}.bin", dtype=kind, mode="r").max()), limit)
    return sizes


def _sizes_of_older(dataset: FairseqDataset, prefix: str, limit: int | None) -> np.ndarray:
    """Of `--dataset-impl` cached, lazy or huffman. Raises as `_sizes` does."""
    sizes = np.array(dataset.sizes)
    if isinstance(dataset, IndexedDataset):
        if os.path.getsize(f"{prefix}.bin") != dataset.data_offsets[-1] * dataset.element_size:
            _refuse("its words are not as many as its index says")
        if limit is not None and sizes.sum():
            _refuse_foreign(int(np.memmap(f"{prefix}.bin", dtype=dataset.dtype, mode="r").max()) - 1, limit)
    return sizes


def _refuse_foreign(word: int, limit: int) -> None:
    if word >= limit:
        _refuse(f"it has word {word} of a dictionary of {limit}")


def _refuse(reason: str) -> NoReturn:
    raise ValueError(f"{reason}.")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
