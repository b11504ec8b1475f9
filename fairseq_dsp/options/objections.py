"""Why options cannot be honoured: every reason at once.

Asked by `task` when training starts, and by `model` whenever it is built.
"""

from __future__ import annotations

import argparse
import difflib
import re
from dataclasses import fields

from fairseq.models.transformer import TransformerModel
from omegaconf import DictConfig

from fairseq_dsp.config import PruningConfig, architecture_of, flag, given_options
from fairseq_dsp.errors import noted
from fairseq_dsp.methods import METHODS, method_class, objections_to_method
from fairseq_dsp.methods.dsp import PROJECTION, RELAXATIONS
from fairseq_dsp.methods.nested import objections_to_nested
from fairseq_dsp.modules.spectral import parse_maps
from fairseq_dsp.options.languages import (
    BILINGUAL_BUDGET,
    BUDGET_TASK,
    BUDGET_TASKS,
    MULTILINGUAL,
    MULTILINGUAL_BUDGET,
    objections_to_model_a_pair,
)
from fairseq_dsp.options.records import TransformerOptions, defaults_of
from fairseq_dsp.options.widths import objections_to_neurons
from fairseq_dsp.units.budget import COUNT
from fairseq_dsp.units.costs import LATENCY, MACS
from fairseq_dsp.units.request import parse_budget, parse_sentence


def objections(args: argparse.Namespace | DictConfig) -> list[str]:
    """Sentences on a model's cfg; empty if it can be built as far as the options tell."""
    given = given_options(args)
    if found := objections_to_model_a_pair(given.get("task")):
        return found
    with noted(found):
        found += _objections_to_training(args, PruningConfig.from_model_cfg(args))
    for name, rule in _UNSUPPORTED.items():
        value = given.get(name)
        if value not in (None, False, 0, "", "None"):
            found.append(f"{flag(name)} {rule}, but is {value}.")
    cutoff = given.get("adaptive_softmax_cutoff")
    if isinstance(cutoff, str) and not _is_list_of_counts(cutoff):
        found.append(f"`--adaptive-softmax-cutoff` must be whole numbers, separated by commas, but is {cutoff[:80]}.")
    if given.get("ffn_group") is not None or "/ffn-" in str(given.get("head_layout")):
        found += objections_to_neurons(args)
    if (maps := given.get("spectral_norm")) is not None:
        with noted(found):
            parse_maps(str(maps))
        if given.get("fp16") is True or given.get("bf16") is True:
            found.append(
                f"`--spectral-norm` must be trained in float32, or with `--amp`, but is {maps} with `--fp16` or `--bf16`."
            )
    return found + objections_to_backend(given.get("ddp_backend"))


def objections_to_backend(name: str | None) -> list[str]:
    """Sentences on fairseq's `--ddp-backend`: with others no process could tell which heads all have chosen."""
    if name not in ("fully_sharded", "slowmo"):
        return []
    rule = "one whose processes hold all parameters, the same after every update (pytorch_ddp, legacy_ddp, no_c10d)"
    return [f"`--ddp-backend` must be {rule}, but is {name}."]


def objections_to_unknown_options(cfg: argparse.Namespace | DictConfig) -> list[str]:
    """Sentences on options of a model that nobody reads: hydra has no schema for it and lets any name pass.

    Asked when training starts only: a checkpoint that was trained with such a name computes what it always did.
    """
    if not isinstance(cfg, DictConfig):
        return []  # argparse has refused unknown options already
    parser = argparse.ArgumentParser(add_help=False)
    TransformerModel.add_args(parser)
    ours = {"_name", "arch", BUDGET_TASK, *(option.name for option in fields(PruningConfig))}
    known = ours.union((action.dest for action in parser._actions), defaults_of(cfg), _UNSUPPORTED, _UNDECLARED)
    found = []
    for name in sorted(str(name) for name in cfg if name not in known):
        close = difflib.get_close_matches(name, sorted(known), n=1)
        meant = f"; did you mean `{close[0]}`?" if close else "."
        found.append(f"`{name}` is not an option of {architecture_of(cfg)}{meant}")
    return found


def budget_out_of_range(budget: int, total: int) -> str:
    """The sentence on a K that the model cannot have."""
    return f"`--unpruned-heads` must be between 0 and {total} (the heads of this model), but is {budget}."


def range_outside(budgets: tuple[int, int], total: int) -> str:
    """The sentence on a range of K that the model cannot have."""
    return f"`--unpruned-heads` must be a range within 1 to {total} (the heads of this model), but is {budgets[0]}..{budgets[1]}."


def budget_of_a_range(low: int, high: int, k: int | None = None) -> str:
    """The sentence on a checkpoint of a range of budgets, where no K is given, or none of the range."""
    given = "" if k is None else f", but is {k}"
    return (
        f"`--unpruned-heads` must say how many heads to keep of a checkpoint that was trained for {low} to {high} of them "
        f"(`fairseq-dsp-prune --unpruned-heads K`){given}."
    )


def _objections_to_training(args: argparse.Namespace | DictConfig, config: PruningConfig) -> list[str]:
    method = method_class(config)
    found = objections_to_method(config) + objections_to_nested(config)
    found += _objections_to_budget(config)
    if config.budget is not None:
        pass
    elif config.unpruned_heads is None and config.head_layout is None:
        found.append("`--unpruned-heads` must be given (with `--task translation_dsp`): how many heads to keep.")
    elif config.unpruned_heads is None and method.learned:
        found.append(f"`--unpruned-heads` must be given for `--head-selection {method.name}`: how many heads to keep.")
    grid, options = TransformerOptions.of(args).grid, given_options(args)
    if config.kept_heads is not None and config.head_layout is None and grid is not None:
        if not 0 <= config.kept_heads <= grid.total:
            found.append(budget_out_of_range(config.kept_heads, grid.total))
    if config.budget_range is not None and config.head_layout is None and grid is not None:
        if config.budget_range[1] > grid.total:
            found.append(range_outside(config.budget_range, grid.total))
    if method.measures:
        for name in ("checkpoint_activations", "offload_activations"):
            if (value := options.get(name)) not in (None, False):
                found.append(
                    f"{flag(name)} must not be given for `--head-selection {method.name}`, which measures activations, but is {value}."
                )
    if method.learned:
        for part, ours in (
            ("task", MULTILINGUAL_BUDGET if options.get("task") == MULTILINGUAL else BILINGUAL_BUDGET),
            ("criterion", "label_smoothed_cross_entropy_dsp"),
            ("optimizer", "dsp_adam"),
        ):
            given = options.get(part, ours if isinstance(args, DictConfig) and part != "task" else None)
            if part == "task":  # fairseq-validate writes its own task's name over the one that trained the model
                given = options.get(BUDGET_TASK, given)
                ours = given if given in BUDGET_TASKS else ours
            if isinstance(given, str) and given != ours or given is None and part == "task":
                found.append(f"`--{part}` must be {ours} for `--head-selection {method.name}`, but is {given}.")
    return found


def _objections_to_budget(config: PruningConfig) -> list[str]:
    """Sentences on `--budget` that need no model; one in units has become `--unpruned-heads` by now, where a task trains."""
    belongs = (("--sentence", MACS, config.sentence), ("--costs", LATENCY, config.costs))
    if config.budget is None:
        lonely = [(option, measure, value) for option, measure, value in belongs if value is not None]
        return [
            f"`{option}` must come with `--budget {measure}=`, but is {value}." for option, measure, value in lonely
        ]
    found: list[str] = []
    if config.unpruned_heads is not None:
        found.append(
            f"`--budget` and `--unpruned-heads` must not be given together, but are {config.budget} and {config.unpruned_heads}."
        )
    with noted(found):
        request, method = parse_budget(config.budget), method_class(config)
        if request.measure == LATENCY and config.costs is None:
            found.append(f"`--costs` must be given for `--budget {config.budget}`: it is of measured times.")
        for option, measure, value in belongs:
            if value is not None and request.measure != measure:
                found.append(f"`{option}` must come with `--budget {measure}=`, but is {value}.")
        uneven = request.measure != COUNT
        if (uneven or len(request.by_kind) > 1) and not method.takes_costs:
            owners = ", ".join(each.name for each in METHODS.values() if each.takes_costs)
            found.append(
                f"`--budget {config.budget}` belongs to {owners} and must not be given for `--head-selection {method.name}`: use a number of heads."
            )
        if uneven and method.takes_costs and config.relaxation == next(iter(RELAXATIONS)):
            found.append(
                f"`--relaxation` must be {PROJECTION} for `--budget {config.budget}`, whose units cost differently, but is {config.relaxation}."
            )
        if config.sentence is not None:
            parse_sentence(config.sentence)
    return found


def _is_list_of_counts(text: str) -> bool:
    return re.fullmatch(r"[\[(]?\s*\d{1,9}(\s*,\s*\d{1,9})*\s*,?\s*[\])]?", text.strip()) is not None


_UNSUPPORTED = {
    "encoder_layers_to_keep": "is not supported by dsp_transformer: a layout names the heads of every layer",
    "decoder_layers_to_keep": "is not supported by dsp_transformer: a layout names the heads of every layer",
    "quant_noise_pq": "is not supported by dsp_transformer: its blocks do not survive the removal of heads",
    "quant_noise_scalar": "is not supported by dsp_transformer: it wraps the attention that we replace",
    "xformers_att_config": "is not supported by dsp_transformer: it has an attention of its own",
    "encoder_xformers_att_config": "is not supported by dsp_transformer: it has an attention of its own",
    "decoder_xformers_att_config": "is not supported by dsp_transformer: it has an attention of its own",
    "scale_heads": "is not supported by dsp_transformer: its scales do not follow the heads",
    "no_cross_attention": "is not supported by dsp_transformer: there must be cross-attention to prune",
    "base_layers": "is not supported by dsp_transformer: it inserts layers of another kind",
}

# What fairseq's transformer reads without declaring it.
_UNDECLARED = ("scale_attn", "scale_fc", "scale_resids")
