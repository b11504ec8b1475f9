"""Batches of a data set for the model of a checkpoint, and the loss on them. Called by `rewriting`, `benchmark` and the commands."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from fairseq import utils
from fairseq.data import (
    AppendTokenDataset,
    FairseqDataset,
    LanguagePairDataset,
    StripTokenDataset,
    TruncateDataset,
)
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from fairseq_dsp.checkpoints.pair_batches import chosen_pairs, multilingual_task, pairs_dataset
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.data_folder import DataFolder
from fairseq_dsp.options.languages import languages_of, languages_of_model, objections_to_task
from fairseq_dsp.options.records import values_of
from fairseq_dsp.plugin.model import DspTransformerModel

_BATCH_OPTIONS = (
    "source_lang",
    "target_lang",
    "left_pad_source",
    "left_pad_target",
    "max_source_positions",
    "max_target_positions",
    "truncate_source",
)


def loss_of(model: DspTransformerModel, batch: dict[str, Any]) -> torch.Tensor:
    """Negative log-likelihood of every sentence's target tokens, summed over them: [B]."""
    log_probs = log_probs_of(model, batch)
    target = batch["target"].to(log_probs.device)
    likelihood = log_probs.gather(2, target.unsqueeze(2)).squeeze(2)
    return -likelihood.masked_fill(target == model.decoder.padding_idx, 0.0).sum(dim=1)


def log_probs_of(model: DspTransformerModel, batch: dict[str, Any]) -> torch.Tensor:
    """The logarithms of the probabilities of all next words: [B, T, words]."""
    device = model.encoder.embed_tokens.weight.device
    if device.type == "cuda":
        batch = utils.move_to_cuda(batch, device=device)
    return model.get_normalized_probs(model(**batch["net_input"]), log_probs=True)


def words_of(model: DspTransformerModel, batch: dict[str, Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What of the batch is no padding, and what is a symbol for the end of a sentence, or a token of a language in its place: two of [B, L] bool,
    by side.
    """
    device = model.encoder.embed_tokens.weight.device
    languages, found = languages_of_model(model.args), {}
    replaced = (False, False) if languages is None else languages.replaced_ends
    names = (("encoder", "src_tokens"), ("decoder", "prev_output_tokens"))
    for (side, name), by_token in zip(names, replaced, strict=True):
        tokens, dictionary = batch["net_input"][name].to(device), getattr(model, side).dictionary
        there, ends = tokens != dictionary.pad(), tokens == dictionary.eos()
        if by_token:  # the last word of a source, and the one that a decoder's input begins with
            places = there.cumsum(dim=1)
            ends = ends | there & (places == (places[:, -1:] if side == "encoder" else 1))
        found[side] = there, ends
    return found


@torch.no_grad()
def loss_per_token(model: DspTransformerModel, batches: list[dict[str, Any]]) -> float:
    """Mean negative log-likelihood of the batches' target tokens, in nats."""
    total = sum(float(loss_of(model, batch).double().sum()) for batch in batches)
    return total / sum(int((batch["target"] != model.decoder.padding_idx).sum()) for batch in batches)


def draw_batches(
    model: DspTransformerModel,
    options: Any,
    data: str,
    subset: str,
    count: int | None,
    max_tokens: int,
    seed: int,
    pairs: Sequence[str] | None = None,
    who: str = "`--scorer`, where it reads data,",
) -> list[dict[str, Any]]:
    """Batches of a data set, as the task that trained the model makes them.

    Args:
        options: of that task.
        data: folder of fairseq-preprocess, or several with colons between.
        subset: the data set's name.
        count: how many batches, drawn with the seed; None for all.
        max_tokens: most tokens of a batch on either side, padding included.
        pairs: of a model of several language pairs, those that are read; None for that of the options' two languages, or all.
        who: what reads them, for the refusal of a task that is not known.

    Raises:
        Refusal: the task is not known, or the folder does not fit the model, is damaged, or has no sentence that is short enough.
    """
    task: Any
    if reasons := objections_to_task(options, who):
        raise Refusal(*reasons)
    if languages_of(options) is None:
        if pairs is not None:
            raise Refusal(f"`--lang-pairs` must be for a model of several language pairs, but is {','.join(pairs)}.")
        task, folder = translation_task(model, options, data, "DATA-BIN", who)
        dataset: FairseqDataset = _dataset(task, folder.sides(subset, [len(task.src_dict), len(task.tgt_dict)]))
    else:
        words = (len(model.encoder.embed_tokens.weight), len(model.decoder.embed_tokens.weight))
        task = multilingual_task(options, data, chosen_pairs(options, pairs), words, "DATA-BIN")
        dataset = pairs_dataset(task, options, subset, "DATA-BIN")
    longest = utils.resolve_max_positions(task.max_positions(), model.max_positions(), max_tokens)
    iterator = task.get_batch_iterator(
        dataset,
        max_tokens=max_tokens,
        max_positions=longest,
        ignore_invalid_inputs=True,
        required_batch_size_multiple=1,
        seed=seed,
    ).next_epoch_itr(shuffle=True)
    batches = list(itertools.islice(iterator, count))
    if not batches:
        raise Refusal(f"`--subset {subset}` must have sentences of at most {longest} tokens, but has none.")
    return batches


def translation_task(
    model: DspTransformerModel, options: Any, data: str, name: str, who: str
) -> tuple[TranslationTask, DataFolder]:
    """fairseq's translation task over a data folder, with the options that shaped the model's batches.

    Args:
        options: of the task that trained the model.
        data: the folder, or several with colons between.
        name: what the user calls the folder, for refusals. Likewise:
        who: what asks for a bilingual model.

    Raises:
        Refusal: the model is of another task, or the folder has no such language pair or other dictionaries than the model.
    """
    if reasons := objections_to_task(options, who, several=False):
        raise Refusal(*reasons)
    values = values_of(TranslationConfig, options)
    cfg = TranslationConfig(data=data, **{name: values[name] for name in _BATCH_OPTIONS if values[name] is not None})
    folder = DataFolder(data, cfg.source_lang, cfg.target_lang, name)
    cfg.source_lang, cfg.target_lang = folder.source, folder.target
    dictionaries = folder.dictionaries()
    for side, lang, dictionary in zip(
        (model.encoder, model.decoder), (folder.source, folder.target), dictionaries, strict=True
    ):
        if len(dictionary) != len(side.embed_tokens.weight):
            raise Refusal(
                f"{name} must have the model's dictionaries, but dict.{lang}.txt has {len(dictionary)} entries for "
                f"{len(side.embed_tokens.weight)} embeddings."
            )
    return TranslationTask(cfg, *dictionaries), folder


def _dataset(task: TranslationTask, sides: tuple[FairseqDataset, FairseqDataset]) -> LanguagePairDataset:
    """The sentence pairs as the task makes batches of them; `task.load_dataset` would read one folder of a list alone."""
    source, target = sides
    if task.cfg.truncate_source:
        words, end = StripTokenDataset(source, task.src_dict.eos()), task.src_dict.eos()
        source = AppendTokenDataset(TruncateDataset(words, task.cfg.max_source_positions - 1), end)
    return LanguagePairDataset(
        source,
        source.sizes,
        task.src_dict,
        target,
        target.sizes,
        task.tgt_dict,
        left_pad_source=task.cfg.left_pad_source,
        left_pad_target=task.cfg.left_pad_target,
    )
