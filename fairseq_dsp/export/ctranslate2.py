"""Converts a checkpoint for CTranslate2: a folder that its translator, server and command line read.

Written on CTranslate2's public specification API. Its own converter of fairseq models knows neither our architectures nor
heads that are gone (it would scale queries by the wrong head size, in silence). Every conversion is loaded by CTranslate2
and compared with fairseq's model in float32 before it gets its name.
"""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fairseq_dsp.checkpoints.stock import read_sentences, read_vocabularies
from fairseq_dsp.config import flag, given_options
from fairseq_dsp.errors import Refusal
from fairseq_dsp.export.quality import MOST_SENTENCES, SUBSET, Effect, compare, evenly, translate
from fairseq_dsp.export.specification import ACTIVATIONS, Vocabularies, build_spec, import_ctranslate2, stack_heads
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.files.output import OutputFolder
from fairseq_dsp.options.languages import languages_of, objections_to_task
from fairseq_dsp.options.records import TransformerOptions
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.layout import Layout

if TYPE_CHECKING:
    from ctranslate2.specs import TransformerSpec

    from fairseq_dsp.options.languages import Languages
    from fairseq_dsp.plugin.model import DspTransformerModel

# Types of weights, as CTranslate2 names them. Not its int16, which divides by the zeros of an empty sublayer.
QUANTIZATIONS = ("int8", "int8_float32", "int8_float16", "int8_bfloat16", "float16", "bfloat16", "float32")

# Largest difference between fairseq's and CTranslate2's log-probability of a word, both in float32.
TOLERANCE = 1e-4

_MODEL_FILES = {"model.bin", "config.json", *(f"{side}_vocabulary.json" for side in ("source", "target", "shared"))}

EOS, FIRST_WORD = 2, 4  # in fairseq's dictionaries: <s>, <pad>, </s>, <unk>, words

_UNSUPPORTED = (
    "adaptive_softmax_cutoff",
    "adaptive_input",
    "cross_self_attention",
    "merge_src_tgt_embed",
    "scale_attn",
    "scale_fc",
    "scale_resids",
)


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote.

    Attributes:
        layout: heads that the model keeps.
        heads: query heads of every sublayer of encoder and decoder.
        difference: largest difference of a word's log-probability to fairseq's, both in float32.
        quantized_difference: the same for the quantised model; None if there is no other than the float32 one.
        effect: what that does to translations of the data's sentences, or why it is not known; None likewise.
    """

    layout: Layout
    heads: tuple[int, int]
    difference: float
    quantized_difference: float | None
    effect: Effect | str | None


def is_model(folder: str) -> bool:
    """Whether a folder holds a model of CTranslate2, as `convert` writes it, and nothing else."""
    found = set(os.listdir(folder))
    return "model.bin" in found and found <= _MODEL_FILES


def convert(
    path: str,
    target: OutputFolder,
    data: str,
    quantization: str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> Conversion:
    """Converts a checkpoint, checks the conversion, and writes it.

    Args:
        path: a checkpoint of a transformer: rewritten, trained with a budget (its chosen heads are taken), or dense.
        target: folder to write.
        data: folder of fairseq-preprocess, for the dictionaries.
        quantization: one of `QUANTIZATIONS`; None for the float32 model.
        source_lang: where the checkpoint and `data` do not tell it, or another is meant.
        target_lang: likewise.

    Raises:
        Refusal: the model cannot be represented, or computes something else there; nothing is written.
    """
    api = import_ctranslate2()
    state = read_checkpoint(path)
    model = load_model(state).float()
    model.bake()
    words = Vocabularies(*read_vocabularies(state["cfg"], data, source_lang, target_lang))
    reasons = objections_to_export(model, state["cfg"], words)
    if reasons:
        raise Refusal(*reasons)
    languages = languages_of(state["cfg"].task)
    starts = languages is not None and languages.target_token is not None
    with target.written("the model") as folder:
        _save(build_spec(model, TransformerOptions.of(state["cfg"].model), words, languages), folder, None)
        difference = largest_difference(model, words, folder, languages=languages)
        if not difference <= TOLERANCE:
            raise Refusal(
                f"the converted model must agree with fairseq's to {TOLERANCE}, but differs by {difference:.2g} in "
                f"log-probability (CTranslate2 {api.__version__})."
            )
        quantized, effect = None, None
        if quantization not in (None, "float32"):
            positions = model.max_positions()[1]
            sources, references, lacking = _real_sentences(model, state["cfg"], words, data, source_lang, target_lang)
            prefixes = [reference[:1] for reference in references] if starts else None
            shown = languages is not None and not languages.replaced_ends[1]
            words_of = [" ".join(reference[1:] if starts else reference) for reference in references]
            before = translate(_translator(folder, "float32"), sources, positions, prefixes, shown)
            shutil.rmtree(folder)
            os.mkdir(folder)
            _save(build_spec(model, TransformerOptions.of(state["cfg"].model), words, languages), folder, quantization)
            quantized = largest_difference(model, words, folder, "default", languages)
            after = translate(_translator(folder, "default"), sources, positions, prefixes, shown)
            effect = compare(before, after, words_of) if sources else lacking
    return Conversion(model.layout, stack_heads(model), difference, quantized, effect)


def objections_to_export(model: DspTransformerModel, cfg: Any, words: Vocabularies) -> list[str]:
    """Why CTranslate2 cannot represent the model: sentences; empty if it can.

    Args:
        model: baked.
        cfg: the checkpoint's.
    """
    found = objections_to_task(cfg.task, "`--format ctranslate2`")
    activation = TransformerOptions.of(cfg.model).activation
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        found.append(f"`--format ctranslate2` needs an `--activation-fn` of {known}, but the model's is {activation}.")
    given = given_options(cfg.model)
    for name in _UNSUPPORTED:
        if value := given.get(name):
            found.append(f"`--format ctranslate2` cannot represent {flag(name)}, but the model has it ({value}).")
    for side, symbols in zip(("encoder", "decoder"), words.tokens(), strict=True):
        rows = len(getattr(model, side).embed_tokens.weight)
        if rows != len(symbols):
            found.append(f"`--data` must have the {side}'s {rows} words, but its dictionary has {len(symbols)}.")
        if repeated := _repeated(symbols):
            found.append(
                "`--data` must have a name of its own for every word, for CTranslate2 knows words by nothing else, but the "
                f"{side}'s dictionary has {repeated}."
            )
    return found


def _repeated(symbols: list[str]) -> str:
    """Names that several words have, with the words' numbers; empty if there are none."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(symbols):
        numbers.setdefault(name, []).append(number)
    said = [
        f"{name} as words {', '.join(map(str, places[:-1]))} and {places[-1]}"
        for name, places in numbers.items()
        if len(places) > 1
    ]
    more = [f"and {len(said) - 3} more"] if len(said) > 3 else []
    return ", ".join(said[:3] + more)


def largest_difference(
    model: DspTransformerModel,
    words: Vocabularies,
    folder: str,
    compute_type: str = "float32",
    languages: Languages | None = None,
) -> float:
    """Largest difference between fairseq's and CTranslate2's log-probability of a word, over random sentences; where tokens of languages take
    the place of ends, those of the model's pairs in turn.

    Raises:
        Refusal: CTranslate2 cannot run the model.
    """
    pairs = _random_pairs(words, min(12, *(limit - 1 for limit in model.max_positions())))
    ends = list(itertools.islice(itertools.cycle(_ends(languages)), len(pairs)))
    sources = [[*(words.source[i] for i in pair[0]), *end[0]] for pair, end in zip(pairs, ends, strict=True)]
    targets = [[*end[1], *(words.target[i] for i in pair[1])] for pair, end in zip(pairs, ends, strict=True)]
    try:
        results = _translator(folder, compute_type).score_batch(sources, targets)
    except (RuntimeError, ValueError) as error:
        raise Refusal(f"CTranslate2 cannot run the converted model: {error}") from error
    worst = 0.0
    for (source, target), (end, start), result in zip(pairs, ends, results, strict=True):
        last, first = (
            side.index(token[0]) if token else EOS for side, token in ((words.source, end), (words.target, start))
        )
        ours, theirs = log_probabilities(model, source, target, last, first), torch.tensor(result.log_probs)
        worst = max(worst, (ours - theirs).abs().nan_to_num(float("inf")).max().item())
    return worst


def _ends(languages: Languages | None) -> list[tuple[list[str], list[str]]]:
    """What sources end with, and what translations begin after, by pair; empty where the end of a sentence is it."""
    if languages is None or not any(languages.replaced_ends):
        return [([], [])]
    around = [languages.around(*pair.split("-")) for pair in languages.pairs]
    return [(each["source_end"], each["target_start"]) for each in around]


def _translator(folder: str, compute_type: str) -> Any:
    return import_ctranslate2().Translator(folder, device="cpu", compute_type=compute_type)


def _real_sentences(
    model: DspTransformerModel,
    cfg: Any,
    words: Vocabularies,
    data: str,
    source_lang: str | None,
    target_lang: str | None,
) -> tuple[list[list[str]], list[list[str]], str]:
    """Sources and references from all over the validation set, as tokens, and why there are none."""
    try:
        pairs = read_sentences(cfg, data, source_lang, target_lang, SUBSET)
    except Refusal as refusal:  # the dictionaries are all that a conversion needs
        return [], [], refusal.reasons[0]
    longest = model.max_positions()[0] - 1
    fitting = [pair for pair in pairs if 0 < len(pair[0]) <= longest]
    source, target = words.tokens()
    chosen = evenly(fitting, MOST_SENTENCES)
    sources = [[source[word] for word in pair[0]] for pair in chosen]
    references = [[target[word] for word in pair[1]] for pair in chosen]
    return sources, references, f"{SUBSET} of {data} has no sentence of 1 to {longest} words."


def log_probabilities(
    model: nn.Module, source: list[int], target: list[int], end: int = EOS, start: int = EOS
) -> Tensor:
    """fairseq's log-probability of every word of the target and of its end: [len(target) + 1].

    Args:
        model: in evaluation mode.
        source: numbers of the words, without the end.
        target: likewise.
        end: of the source.
        start: what the target begins after; its end is that of a sentence.
    """
    ended, before = torch.tensor([[*source, end]]), torch.tensor([[start, *target]])
    words = torch.tensor([[*target, EOS]])
    with torch.no_grad():
        output = model(ended, torch.tensor([ended.size(1)]), before)
        scores = model.get_normalized_probs(output, log_probs=True, sample=None)
    return scores.gather(2, words.unsqueeze(2)).flatten()


def _random_pairs(words: Vocabularies, longest: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of sentences of many lengths, the longest as long as `longest`."""
    draw = torch.Generator().manual_seed(0)

    def sentence(symbols: list[str], length: int) -> list[int]:
        return torch.randint(min(FIRST_WORD, len(symbols) - 1), len(symbols), (length,), generator=draw).tolist()

    lengths = [(max(longest - step, 1), max(longest * step // 5, 1)) for step in range(6)]
    return [(sentence(words.source, one), sentence(words.target, other)) for one, other in lengths]


def _save(spec: TransformerSpec, folder: str, quantization: str | None) -> None:
    spec.validate()
    spec.optimize(quantization)
    spec.save(folder)
