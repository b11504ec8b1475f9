"""The data folder: is everything there, what must results say of it, how many updates an epoch has."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.files.data_folder import DataFolder, count_batches

INFO, REFERENCE = "data.json", "reference."  # written by prepare-iwslt14.sh
SUBSETS = ("train", "valid", "test")


@dataclass(frozen=True)
class Data:
    """A folder of fairseq-preprocess.

    Attributes:
        sizes: subset -> tokens of each sentence pair, [sentences, 2].
        words: entries of the two dictionaries.
        raw: the data sets are text, which fairseq's commands take with `--dataset-impl raw` alone.
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
    raw: bool = False

    @property
    def moses(self) -> bool:
        return self.info["tokenised"] == "moses"

    @property
    def remove_bpe(self) -> str:
        return str(self.info["segmentation"])

    def updates_an_epoch(self, max_tokens: int) -> int:
        """As many batches as fairseq-train makes of the training set."""
        return count_batches(self.sizes["train"], max_tokens)


def read_data(folder: Path, source: str | None, target: str | None, label: str | None) -> Data:
    """Reads what is needed before anything starts.

    Raises:
        Refusal: every reason why nothing can be trained on the folder.
    """
    data = DataFolder(str(folder), source, target)
    pair = data.find_pair(source, target)
    if len(data.folders) > 1:  # where an epoch of fairseq-train is one of them
        raise Refusal(f"`--data` must be one folder, for the schedules count epochs of all of it, but is {folder}.")
    reasons: list[str] = []
    sizes: dict[str, np.ndarray] = {}
    words = known = references = None
    with noted(reasons):
        words = [len(dictionary) for dictionary in data.dictionaries()]
    for subset in SUBSETS:
        with noted(reasons):
            sizes[subset] = data.sizes(subset, words)
    with noted(reasons):
        known = _known(folder / INFO)
    if "test" in sizes:
        with noted(reasons):
            references = _references(folder / f"{REFERENCE}{pair[1]}", len(sizes["test"]))
    if reasons:
        raise Refusal(*reasons)
    files = [file for subset in SUBSETS for file in data.files(subset)]
    info = _info(data, files, sizes, known, label)
    raw = not all(file.endswith(".bin") for file in files)
    return Data(folder, *pair, sizes, (words[0], words[1]), info, references, raw)


def _known(path: Path) -> dict[str, Any]:
    """What the folder's maker says of it; nothing where nobody does."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refusal(f"{path} must be JSON, but is not: {error}.") from error
    if not isinstance(content, dict):
        raise Refusal(f"{path} must hold an object, but holds {type(content).__name__}.")
    return content


def _references(path: Path, expected: int) -> list[str] | None:
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if len(lines) != expected:
        raise Refusal(f"{path} must have a line for each of the {expected} test sentences, but has {len(lines)}.")
    return lines


def _info(
    data: DataFolder, files: list[str], sizes: dict[str, np.ndarray], known: dict[str, Any], label: str | None
) -> dict[str, Any]:
    pair, checksum = (data.source, data.target), hashlib.sha256()
    for file in [*(f"{data.path}/dict.{side}.txt" for side in pair), *files]:
        checksum.update(Path(file).read_bytes())
    return {
        "pair": "-".join(pair),
        "label": label if label is not None else known.get("label", ""),
        **{f"{subset} pairs": len(size) for subset, size in sizes.items()},
        "tokenised": known.get("tokenised", "moses"),
        "segmentation": known.get("segmentation", "subword_nmt"),
        "sha256": checksum.hexdigest(),
    }
