"""A checkpoint as a model that translates."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from fairseq.hub_utils import GeneratorHubInterface
from fairseq.tasks import FairseqTask
from torch import Tensor

from fairseq_dsp.checkpoints.batches import translation_task
from fairseq_dsp.checkpoints.pair_batches import chosen_pairs, multilingual_task, set_languages
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.options.languages import languages_of, objections_to_task
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.plugin.model import DspTransformerModel


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
        source_lang: of `data`, where the checkpoint and the folder do not tell it, and of the pair that a model of several language
            pairs translates. Likewise:
        target_lang: the target language.

    Returns:
        fairseq's `GeneratorHubInterface`, a module in float32 and evaluation mode: `translate("a sentence", beam=5)` takes and gives
        text that is segmented as the training text was, `to("cuda")` moves it.

    Raises:
        Refusal: the checkpoint is not fit, is of a task that is not known or of several pairs of which none is named, or the folder does
            not fit it.
    """
    state = read_checkpoint(os.fspath(checkpoint))
    model = load_model(state).float()
    model.bake()  # a refusal is an exception here; where fairseq asks for it, it ends the process
    cfg = state["cfg"]
    set_languages(cfg.task, source_lang, target_lang)
    if reasons := objections_to_task(cfg.task, "`load`"):
        raise Refusal(*reasons)
    if languages_of(cfg.task) is not None:
        return _OfAPair(cfg, _task_of_a_pair(model, cfg.task, os.fspath(data)), [model]).eval()
    task, _ = translation_task(model, cfg.task, os.fspath(data), "`--data`", "`load`")
    return GeneratorHubInterface(cfg, task, [model]).eval()


def _task_of_a_pair(model: DspTransformerModel, options: Any, data: str) -> Any:
    """fairseq's task of several language pairs, set to translate one of them as fairseq-generate does."""
    pairs = chosen_pairs(options, None)
    if len(pairs) > 1:
        raise Refusal(
            f"`load` must be told source_lang and target_lang of one of the model's pairs ({', '.join(pairs)}), but they are not given."
        )
    words = (len(model.encoder.embed_tokens.weight), len(model.decoder.embed_tokens.weight))
    task: Any = multilingual_task(options, data, pairs, words, "`--data`")
    task.args.source_lang, task.args.target_lang = pairs[0].split("-")
    # the task's own takes less than the interface hands over
    task.build_generator = partial(FairseqTask.build_generator, task)
    return task


class _OfAPair(GeneratorHubInterface):
    """Texts without the token of their language, which fairseq-generate leaves out too."""

    def string(self, tokens: Tensor) -> str:
        args, manager = self.task.args, self.task.data_manager
        kind = args.langtoks["main"][1]
        language = {manager.get_decoder_langtok(args.target_lang, kind)} if kind else set()
        return str(self.tgt_dict.string(tokens, extra_symbols_to_ignore=language))
