"""Why options cannot be honoured: every reason at once. Asked by `task` when training starts and by `model` whenever it is built."""

from __future__ import annotations

import argparse
import re

from omegaconf import DictConfig

from fairseq_dsp.config import PruningConfig, get_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods import method_class

# Where `task` leaves its name in the model's cfg, beside fairseq's own `task`, which a command that loads a model may change.
BUDGET_TASK = "budget_task"


def objections(args: argparse.Namespace | DictConfig) -> list[str]:
    """Sentences on a model's cfg; empty if it can be built as far as the options tell."""
    found = []
    try:
        config = PruningConfig.from_model_cfg(args)
        found += _objections_to_method(args, config)
    except Refusal as refusal:
        found += refusal.reasons
    for name, rule in _UNSUPPORTED.items():
        value = get_option(args, name)
        if value not in (None, False, 0, "", "None"):
            found.append(f"`--{name.replace('_', '-')}` {rule}, but is {value}.")
    cutoff = get_option(args, "adaptive_softmax_cutoff")
    if isinstance(cutoff, str) and not _is_list_of_counts(cutoff):
        found.append(f"`--adaptive-softmax-cutoff` must be whole numbers, separated by commas, but is {cutoff[:80]}.")
    return found + objections_to_backend(get_option(args, "ddp_backend"))


def objections_to_backend(name: str | None) -> list[str]:
    """Sentences on fairseq's `--ddp-backend`: with others no process could tell which heads all have chosen."""
    if name not in ("fully_sharded", "slowmo"):
        return []
    rule = "one whose processes hold all parameters, the same after every update (pytorch_ddp, legacy_ddp, no_c10d)"
    return [f"`--ddp-backend` must be {rule}, but is {name}."]


def budget_out_of_range(budget: int, total: int) -> str:
    """The sentence on a K that the model cannot have."""
    return f"`--unpruned-heads` must be between 0 and {total} (the heads of this model), but is {budget}."


def _objections_to_method(args: argparse.Namespace | DictConfig, config: PruningConfig) -> list[str]:
    method = method_class(config)
    found = list(method.objections(config))
    if config.unpruned_heads is None and config.head_layout is None:
        found.append("`--unpruned-heads` must be given (with `--task translation_dsp`): how many heads to keep.")
    elif config.unpruned_heads is None and method.learned:
        found.append(f"`--unpruned-heads` must be given for `--head-selection {method.name}`: how many heads to keep.")
    total = _heads(args)
    if config.budget is not None and config.head_layout is None and total is not None:
        if not 0 <= config.budget <= total:
            found.append(budget_out_of_range(config.budget, total))
    if method.learned:
        for part, ours in (
            ("task", "translation_dsp"),
            ("criterion", "label_smoothed_cross_entropy_dsp"),
            ("optimizer", "dsp_adam"),
        ):
            given = get_option(args, part, ours if isinstance(args, DictConfig) and part != "task" else None)
            if part == "task":  # fairseq-validate writes its own task's name over the one that trained the model
                given = get_option(args, BUDGET_TASK, given)
            if isinstance(given, str) and given != ours or given is None and part == "task":
                found.append(f"`--{part}` must be {ours} for `--head-selection {method.name}`, but is {given}.")
    return found


def _is_list_of_counts(text: str) -> bool:
    return re.fullmatch(r"[\[(]?\s*\d{1,9}(\s*,\s*\d{1,9})*\s*,?\s*[\])]?", text.strip()) is not None


def _heads(args: argparse.Namespace | DictConfig) -> int | None:
    """H, before the model is built; None where the options do not say yet."""
    sizes = {}
    for side in ("encoder", "decoder"):
        layers, heads = get_option(args, f"{side}_layers"), get_option(args, f"{side}_attention_heads")
        if layers is None or heads is None:
            return None
        sizes[side] = int(layers) * int(heads)
    return sizes["encoder"] + 2 * sizes["decoder"]


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
