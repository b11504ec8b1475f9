"""Training and validation batches of a folder of fairseq-preprocess, all in the memory of the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fairseq import utils
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from fairseq_dsp.files.data_folder import DataFolder

from .setting import Setting
from .translating import TestSet, load_test

Batch = dict[str, Any]

VALIDATION_TOKENS = 16384  # of a batch
LONGEST = 256  # tokens of a sentence; longer ones are left out


@dataclass(frozen=True)
class Data:
    """Batches of fairseq, of `train` and `valid`, with the task that made them; of the test set what arms translate, if they do."""

    task: TranslationTask
    train: list[Batch]
    valid: list[Batch]
    device: str
    test: TestSet | None = None


def load(folder: str, setting: Setting, translated: int = 0) -> Data:
    """The folder's batches, always the same ones in the same order.

    Args:
        translated: sentences of the test set.

    Raises:
        Refusal: the folder does not tell its languages, or has no test set and it is wanted.
    """
    pair = DataFolder(folder)
    cfg = TranslationConfig(data=folder, source_lang=pair.source, target_lang=pair.target)
    cfg.train_subset, cfg.dataset_impl, cfg.required_seq_len_multiple = "train", None, 1  # references to other groups
    task = TranslationTask.setup_task(cfg)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    for split, tokens in (("train", setting.max_tokens), ("valid", VALIDATION_TOKENS)):
        task.load_dataset(split)
        dataset = task.dataset(split)
        iterator = task.get_batch_iterator(
            dataset, max_tokens=tokens, max_positions=(LONGEST, LONGEST), ignore_invalid_inputs=True,
            required_batch_size_multiple=1, seed=1,
        )  # fmt: skip
        batches = [dataset.collater([dataset[index] for index in indices]) for indices in iterator.frozen_batches]
        found[split] = [utils.move_to_cuda(batch) for batch in batches] if device == "cuda" else batches
    test = load_test(folder, task, translated, device) if translated else None
    return Data(task, found["train"], found["valid"], device, test)
