"""What is measured: checkpoints, and models with random weights, each as fairseq itself would run it.

A stock checkpoint is loaded as stock: fairseq's own attention, not ours over the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import nn

from fairseq_dsp.benchmark.layouts import PLACEMENTS
from fairseq_dsp.checkpoints.stock import build_stock, stock_cfg
from fairseq_dsp.config import architecture_of
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import family_of, read_checkpoint
from fairseq_dsp.methods.dsp import PROJECTION
from fairseq_dsp.modules.gates import IMPORTANCE_GROUP
from fairseq_dsp.modules.surgery import grid_of, neurons_of, shrink_model
from fairseq_dsp.options.costing import sizes_of
from fairseq_dsp.options.languages import languages_of, objections_to_differences, objections_to_task
from fairseq_dsp.options.records import TransformerOptions
from fairseq_dsp.options.stored_layout import resolve_layout
from fairseq_dsp.plugin.building import VocabularyTask, adopt_architecture, load_model
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.cost_file import Sizes
from fairseq_dsp.units.costs import MACS
from fairseq_dsp.units.groups import group_of, has_neurons, part_of
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import HEAD_STACKS, Layout
from fairseq_dsp.units.request import parse_budget

RANDOM_SYNTAX = (
    "ARCH[:spread=K|packed=K|layout=TEXT|FILE|budget=TEXT][,ffn=G][,gated][,pipelined][,method=NAME][,relaxation=NAME]"
    "[,words=SOURCE/TARGET]"
)

# IWSLT14 German-English after byte pair encoding, as fairseq's example prepares it.
_WORDS = (8848, 6632)
_SIDES = ("encoder", "decoder")

_SENTENCE = "21,21,5"  # that operations of a `budget` are counted of: 20 words at beam 5


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    Args:
        text: a checkpoint's path, or a model in `RANDOM_SYNTAX`.
        random: which of the two.
        ctranslate2: the type of weights with which CTranslate2 runs it; empty where fairseq does.
        cut: the layout that our model of it is cut to, empty for all of its units; None for the model as it stands.
    """

    text: str
    random: bool = False
    ctranslate2: str = ""
    cut: str | None = None

    def build(self, words: tuple[int, int] | None = None) -> nn.Module:
        """The model, float32, on the CPU, in evaluation mode, gates in place; for CTranslate2, one of ours with the same heads.

        Args:
            words: sizes of the source and target dictionary, for a model with random weights that names none.

        Raises:
            Refusal: no such checkpoint or architecture, or a layout that does not fit.
        """
        ours = self.cut is not None or bool(self.ctranslate2)
        if not self.random:
            state = read_checkpoint(self.text)
            model = (load_model(state) if ours else _load(state, self.text)).float().eval()
        else:
            stock = family_of(self.text.partition(":")[0]) == "transformer"
            model = _build_random(f"dsp_{self.text}" if ours and stock else self.text, words).eval()
        if self.cut:
            layout = Layout.parse(self.cut)
            shrink_model(model, layout)
            model.layout = layout
        return model


def several_languages(candidates: list[Candidate]) -> str | None:
    """The first checkpoint of several language pairs, whose task makes sentences of a data folder for all; None where none is one.

    Raises:
        Refusal: another candidate takes other sentences.
    """
    paths = [candidate.text for candidate in candidates if not candidate.random]
    states = {path: read_checkpoint(path) for path in dict.fromkeys(paths)}
    tasks = {path: state["cfg"].task for path, state in states.items()}
    if reasons := [f"{path}: {each}" for path, task in tasks.items() for each in objections_to_task(task, "`--data`")]:
        raise Refusal(*reasons)
    found = {path: languages_of(task) for path, task in tasks.items()}
    if reasons := objections_to_differences(found):
        raise Refusal(*reasons)
    return next((path for path, languages in found.items() if languages is not None), None)


@dataclass(frozen=True)
class Facts:
    """What a table says of a model.

    Args:
        parameters: elements, shared ones once, importance variables excluded.
        heads: attention heads that it deploys.
        total: heads of its architecture.
        layout: the deployed heads.
        words: rows of the source and the target embeddings.
        phases: stages of training that differ in speed; one unnamed where all updates are alike.
        gated: whether heads are being chosen.
        sizes: of the model before anything was pruned; see `units/cost_file`.
        ours: whether the attention is ours, and not fairseq's own.
    """

    parameters: int
    heads: int
    total: int
    layout: str
    words: tuple[int, int]
    phases: tuple[str, ...]
    gated: bool
    sizes: Sizes
    ours: bool


def facts_of(model: nn.Module) -> Facts:
    ours = isinstance(model, DspTransformerModel)
    layout = model.deployed_layout() if ours else Layout.full(grid_of(model))
    gates = model.head_gates if ours else None
    phases: tuple[str, ...] = ("",)
    weights = [p for p in model.parameters() if getattr(p, "param_group", None) != IMPORTANCE_GROUP]
    if gates is not None:
        trained = any(p.requires_grad for p in weights)
        phases = ("choosing heads" if trained else "pipelined",)
        if trained and gates.method.fixes_at is not None:  # pipelined training ends where the heads are fixed
            phases += ("heads fixed",)
    counted = sum(p.numel() for p in weights)
    words = (len(model.encoder.embed_tokens.weight), len(model.decoder.embed_tokens.weight))
    heads, there = layout.by_kind()[HEADS.noun]
    if ours:
        sizes = sizes_of(model)
    else:
        heads_of = {stack: layout.grid.of(stack) for stack in HEAD_STACKS}
        sizes = {**heads_of, **neurons_of(model), "words": words, "parameters": (counted,)}
    return Facts(counted, heads, there, str(layout), words, phases, gates is not None, sizes, ours)


def dictionaries_of(model: nn.Module) -> tuple[Dictionary, Dictionary]:
    """A source and a target dictionary of the model's sizes."""
    embeddings = {f"{side}.embed_tokens.weight": getattr(model, side).embed_tokens.weight for side in _SIDES}
    task = VocabularyTask(embeddings, argparse.Namespace())
    return task.source_dictionary, task.target_dictionary


def options_of(model: DspTransformerModel) -> argparse.Namespace:
    """The model's options as a checkpoint holds them: fairseq groups some when it builds, this is the flat list."""
    options: dict[str, Any] = {}
    for name, value in vars(model.args).items():
        if name in (*_SIDES, "quant_noise"):
            options |= {f"{name}_{inner}": inside for inner, inside in vars(value).items()}
        else:
            options[name] = value
    return argparse.Namespace(**options)


def labels(candidates: list[Candidate]) -> list[str]:
    """A short name for each: the file's, or the whole text where two files are called alike."""
    short = [candidate.text if candidate.random else os.path.basename(candidate.text) for candidate in candidates]
    fairseqs = [name for name, candidate in zip(short, candidates, strict=True) if not candidate.ctranslate2]
    return [
        (name if fairseqs.count(name) == 1 else candidate.text)
        + (f" in CTranslate2 {candidate.ctranslate2}" if candidate.ctranslate2 else "")
        for name, candidate in zip(short, candidates, strict=True)
    ]


def _load(state: dict[str, Any], path: str) -> nn.Module:
    cfg = state["cfg"].model
    if family_of(architecture_of(cfg)) != "transformer":
        return load_model(state)
    adopt_architecture(cfg)
    try:
        return build_stock(stock_cfg(state["cfg"]), state["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise Refusal(f"the checkpoint must load in stock fairseq, but {path} does not: {reason}") from error


def _build_random(text: str, words: tuple[int, int] | None) -> nn.Module:
    architecture, _, rest = text.partition(":")
    settings = _read_settings(text, rest)
    if family_of(architecture) not in ("transformer", "dsp_transformer"):
        raise Refusal(f"`--random` must name a transformer architecture, but {architecture} is none: {text}.")
    ours = family_of(architecture) == "dsp_transformer"
    if not ours and set(settings) - {"words"}:
        raise Refusal(f"`--random` can remove heads of dsp_{architecture} alone, but is {text}.")
    words = _read_words(text, settings) or words or _WORDS
    args = argparse.Namespace(
        arch=architecture,
        _name=architecture,
        share_decoder_input_output_embed=True,
        dropout=0.3,
        seed=1,
        relaxation=None,
    )
    ARCH_CONFIG_REGISTRY[architecture](args)
    layout = _layout(text, settings, TransformerOptions.of(args))
    gated = "gated" in settings
    if "budget" in settings:
        args.budget, args.relaxation = settings["budget"], PROJECTION
        args.sentence = _SENTENCE if parse_budget(str(args.budget)).measure == MACS else None
    if ours and not gated:
        args.head_layout = str(layout)
    elif gated:
        args.head_selection = settings.get("method") or "dsp"
        args.relaxation = settings.get("relaxation") or args.relaxation
        args.unpruned_heads = None if "budget" in settings else layout.count
        args.ffn_group, args.pipelined = int(settings.get("ffn") or 0) or None, "pipelined" in settings
        args.task, args.optimizer = "translation_dsp", "dsp_adam"
        args.criterion = "label_smoothed_cross_entropy_dsp"
    embeddings = {f"{side}.embed_tokens.weight": torch.empty(n, 0) for side, n in zip(_SIDES, words, strict=True)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = ARCH_MODEL_REGISTRY[architecture].build_model(args, VocabularyTask(embeddings, args))
    if gated and "budget" not in settings:  # so that the heads that will be fixed are those of the layout
        with torch.no_grad():
            model.head_gates.importance.add_(torch.tensor(layout.kept) * 4.0)
    return model


def _read_settings(text: str, rest: str) -> dict[str, str | None]:
    settings: dict[str, str | None] = {}
    for word in filter(None, rest.split(",")):
        name, given, value = word.partition("=")
        settings[name] = value if given else None
    valued = {*PLACEMENTS, "layout", "budget", "ffn", "method", "relaxation", "words"}
    wrong = [name for name, value in settings.items() if (value is None) != (name in ("gated", "pipelined"))]
    unknown = set(settings) - valued - {"gated", "pipelined"}
    places = [name for name in (*PLACEMENTS, "layout", "budget") if name in settings]
    lonely = {"pipelined", "method", "relaxation", "budget", "ffn"} & set(settings) and "gated" not in settings
    lonely = lonely or "ffn" in settings and "budget" not in settings
    if wrong or unknown or len(places) > 1 or lonely or "gated" in settings and not places:
        raise Refusal(f"`--random` must read {RANDOM_SYNTAX}, with heads to choose where it is gated, but is {text}.")
    if not (settings.get("ffn") or "1").isdigit():
        raise Refusal(f"`--random ffn` must be a number of neurons, but is {settings['ffn']}.")
    return settings


def _layout(text: str, settings: dict[str, str | None], options: TransformerOptions) -> Layout:
    grid = options.grid
    assert grid is not None  # an architecture fills them in
    layout = Layout.full(grid)
    if "layout" in settings:
        layout = _given_layout(str(settings["layout"]))
        if part_of(layout, [HEADS.name]).grid != grid:
            raise Refusal(f"`--random` must have a layout of its architecture's heads, but is {text}.")
        if has_neurons(layout.grid):
            group_of(layout.grid, options.neurons or {}, "--random")  # refuses what does not fit
    for name in set(PLACEMENTS) & set(settings):
        value = str(settings[name])
        if not value.isdigit() or int(value) > grid.total:
            raise Refusal(f"`--random {name}` must be a number of heads, 0 to {grid.total}, but is {value}.")
        layout = PLACEMENTS[name](grid, int(value))
    return layout


def _given_layout(text: str) -> Layout:
    """Of a text, of a text file, or of a checkpoint: the heads that it keeps."""
    if os.path.isfile(text) and not text.endswith(".pt"):
        with (
            contextlib.suppress(UnicodeDecodeError),
            open(text, encoding="utf-8") as file,
        ):  # or a checkpoint of any name
            text = file.read().strip()
    return resolve_layout(text, "--random")


def _read_words(text: str, settings: dict[str, str | None]) -> tuple[int, int] | None:
    if "words" not in settings:
        return None
    sizes = str(settings["words"]).split("/")
    if len(sizes) != 2 or not all(size.isdigit() and int(size) > 4 for size in sizes):
        raise Refusal(f"`--random words` must be two sizes above 4, as 8848/6632, but is {text}.")
    return int(sizes[0]), int(sizes[1])
