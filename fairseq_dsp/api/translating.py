"""A checkpoint as a model that translates."""

from __future__ import annotations

import os
from typing import Any

from fairseq.hub_utils import GeneratorHubInterface

from fairseq_dsp.checkpoints.batches import translation_task
from fairseq_dsp.checkpoints.pair_batches import set_languages
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.plugin.building import load_model


def load(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> Any:
    """A checkpoint's small model, ready to translate on the CPU.

    Args:
        checkpoint: rewritten, trained with a budget (the model has its chosen heads alone), or dense.
        data: folder of fairseq-preprocess, for its dictionaries.
        source_lang: of `data`, where the checkpoint and the folder do not tell it. Likewise:
        target_lang: its target language.

    Returns:
        fairseq's `GeneratorHubInterface`, a module in float32 and evaluation mode: `translate("a sentence", beam=5)` takes and gives
        text that is segmented as the training text was, `to("cuda")` moves it.

    Raises:
        Refusal: the checkpoint is not fit, is none of bilingual translation, or the folder does not fit it.
    """
    state = read_checkpoint(os.fspath(checkpoint))
    # a copy: the file is read where it lies, and a training may write over it while the model is in use
    state["model"] = {name: value.clone() for name, value in state["model"].items()}
    model = load_model(state).float()
    cfg = state["cfg"]
    set_languages(cfg.task, source_lang, target_lang)
    task, _ = translation_task(model, cfg.task, os.fspath(data), "`--data`", "`load`")
    return GeneratorHubInterface(cfg, task, [model]).eval()
