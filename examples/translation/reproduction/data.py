"""The data folder: is everything there, what must results say of it, how many updates an epoch has."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset

from fairseq_dsp.errors import Refusal

INFO, REFERENCE = "data.json", "reference."  # written by prepare-iwslt14.sh
SUBSETS = ("train", "valid", "test")


@dataclass(frozen=True)
class Data:
    """A folder of fairseq-preprocess.

    Attributes:
        sizes: subset -> tokens of each sentence pair, [sentences, 2].
        words: entries of the two dictionaries.
        references: the test set's target side before it was segmented; None where only fairseq's data is there.
        info: what results say of it: languages, label, pairs, checksum, tokenised, segmentation.
    """

    folder: Path
    source: str
    target: str
    sizes: dict[str, np.ndarray]
    words: tuple[int, int]
    info: dict[str, Any]
    references: list[str] | None = None

    @property
    def moses(self) -> bool:
        return self.info["tokenised"] == "moses"

    @property
    def remove_bpe(self) -> str:
        return str(self.info["segmentation"])

    def updates_an_epoch(self, max_tokens: int) -> int:
        """As many batches as fairseq-train makes of the training set, which it sorts by source, then by target length."""
        sizes = self.sizes["train"]
        order = np.lexsort((sizes[:, 1], sizes[:, 0]))
        return len(
            data_utils.batch_by_size(
                order, None, num_tokens_vec=sizes.max(1)[order].astype(np.int64), max_tokens=max_tokens
            )
        )


def read_data(folder: Path, source: str | None, target: str | None, label: str | None) -> Data:
    """Reads what is needed before anything starts.

    Raises:
        Refusal: every reason why nothing can be trained on the folder.
    """
    if not folder.is_dir():
        raise Refusal(f"`--data` must be a folder of fairseq-preprocess, but {folder} does not exist.")
    pair = _language_pair(folder, source, target)
    name = "-".join(pair)
    reasons = []
    files = [f"{subset}.{name}.{side}.{kind}" for subset in SUBSETS for side in pair for kind in ("idx", "bin")]
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        reasons.append(f"`--data` must hold train, valid and test in both languages, but lacks {', '.join(missing)}.")
    lacking = [file for side in pair if not (folder / (file := f"dict.{side}.txt")).is_file()]
    if lacking:
        reasons.append(f"`--data` must hold both dictionaries, but {folder} lacks {', '.join(lacking)}.")
    if reasons:
        raise Refusal(*reasons)
    try:
        sizes = {
            subset: np.stack([_sizes(folder / f"{subset}.{name}.{side}") for side in pair], 1) for subset in SUBSETS
        }
    except Exception as error:
        raise Refusal(f"`--data` must hold whole data sets, but those of {folder} cannot be read: {error}") from error
    words = [sum(1 for _ in open(folder / f"dict.{side}.txt", "rb")) for side in pair]
    info = _info(folder, name, pair, sizes, label)
    references = _references(folder / f"{REFERENCE}{pair[1]}", len(sizes["test"]))
    return Data(folder, *pair, sizes, (words[0], words[1]), info, references)


def _language_pair(folder: Path, source: str | None, target: str | None) -> tuple[str, str]:
    """The one pair that the folder holds and that has the given languages.

    Raises:
        Refusal: there is none, or there are several.
    """
    files = [file.name.split(".") for file in folder.glob("train.*-*.*.idx")]
    held = sorted((side, pair.removeprefix(f"{side}-")) for _, pair, side, _ in files if pair.startswith(f"{side}-"))
    if not held:
        raise Refusal(f"`--data` must be a folder of fairseq-preprocess, but {folder} holds no train.SRC-TGT.SRC.idx.")
    found = [pair for pair in held if source in (None, pair[0]) and target in (None, pair[1])]
    if len(found) != 1:
        given = "-".join(language or "?" for language in (source, target))
        names = ", ".join(map("-".join, held))
        raise Refusal(
            f"`--source-lang` and `--target-lang` must name one of the language pairs that `--data` holds ({names}), but are "
            f"{given}."
        )
    return found[0]


def _references(path: Path, expected: int) -> list[str] | None:
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if len(lines) != expected:
        raise Refusal(f"{path} must have a line for each of the {expected} test sentences, but has {len(lines)}.")
    return lines


def _sizes(prefix: Path) -> np.ndarray:
    data = MMapIndexedDataset(str(prefix))
    return np.array(data.sizes)  # a copy: the memory goes with the data set


def _info(folder: Path, name: str, pair: Any, sizes: dict[str, np.ndarray], label: str | None) -> dict[str, Any]:
    known = json.loads((folder / INFO).read_text(encoding="utf-8")) if (folder / INFO).is_file() else {}
    checksum = hashlib.sha256()
    for file in [f"dict.{side}.txt" for side in pair] + [
        f"{subset}.{name}.{side}.bin" for subset in SUBSETS for side in pair
    ]:
        checksum.update((folder / file).read_bytes())
    return {
        "pair": name,
        "label": label if label is not None else known.get("label", ""),
        **{f"{subset} pairs": len(size) for subset, size in sizes.items()},
        "tokenised": known.get("tokenised", "moses"),
        "segmentation": known.get("segmentation", "subword_nmt"),
        "sha256": checksum.hexdigest(),
    }
