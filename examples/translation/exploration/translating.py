"""BLEU of a finished arm on the first sentences of the test set, by fairseq's search and the score of reproduce.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationTask
from omegaconf import OmegaConf
from reproduction import data as reproduction

from fairseq_dsp.analysis.translations import Translations, tokenised_bleu
from fairseq_dsp.plugin.model import DspTransformerModel

BEAM, LONGEST = 5, 200  # fairseq-generate's words of a translation at most
_SENTENCES = 64  # of a batch


@dataclass(frozen=True)
class TestSet:
    """The first sentences of the test set.

    Attributes:
        batches: fairseq's; `id` says which sentences.
        references: in the order of the test set.
        moses: the text is made of tokens; see `tokenised_bleu`.
        segmentation: what `--remove-bpe` is told.
    """

    __test__ = False  # no test of pytest

    batches: Sequence[dict[str, Any]]
    references: list[str]
    moses: bool
    segmentation: str


def load_test(folder: str, task: TranslationTask, sentences: int, device: str) -> TestSet:
    """The first sentences, short ones together.

    Raises:
        Refusal: the folder has no whole test set; see `reproduction.data.read_data`.
    """
    known = reproduction.read_data(Path(folder), None, None, None)
    task.load_dataset("test")
    dataset = task.dataset("test")
    order = sorted(range(min(sentences, len(dataset))), key=dataset.size)
    chunks = [order[start : start + _SENTENCES] for start in range(0, len(order), _SENTENCES)]
    batches = [dataset.collater([dataset[index] for index in chunk]) for chunk in chunks]
    references = known.references or [
        task.tgt_dict.string(dataset[index]["target"], known.remove_bpe, escape_unk=True) for index in range(len(order))
    ]
    if device == "cuda":
        batches = [utils.move_to_cuda(batch) for batch in batches]
    return TestSet(batches, references[: len(order)], known.moses, known.remove_bpe)


@torch.no_grad()
def bleu_of(model: DspTransformerModel, task: TranslationTask, test: TestSet) -> dict[str, Any]:
    """BLEU for a line of results; the model is prepared for inference and cannot be trained any more."""
    model.eval()
    model.prepare_for_inference_(OmegaConf.create({"generation": {"print_alignment": None, "replace_unk": None}}))
    generator = SequenceGenerator([model], task.tgt_dict, beam_size=BEAM, max_len_a=0, max_len_b=LONGEST)
    found = [""] * len(test.references)
    for batch in test.batches:
        for index, hypotheses in zip(batch["id"].tolist(), generator.generate([model], batch), strict=True):
            found[index] = task.tgt_dict.string(hypotheses[0]["tokens"].int().cpu(), test.segmentation)
    score = tokenised_bleu(Translations([], test.references, found, float("nan")), test.moses)
    return {"bleu": round(score.value, 3), "bleu_sentences": len(found), "bleu_signature": score.signature}
