"""Reads, rewrites and writes fairseq checkpoints. Called by the commands, and by `model` to look up a layout.

A rewritten checkpoint is an ordinary one of fairseq whose `cfg.model` names a `dsp_transformer` and its `head_layout`;
the top-level entry `fairseq_dsp` says where it came from. Nothing is written before the small model has been rebuilt from
its own cfg, loaded strictly and compared with the masked one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import tempfile
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fairseq_dsp.config import PruningConfig, get_option, set_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.gates import HeadGates
from fairseq_dsp.heads import HeadLayout, HeadScores
from fairseq_dsp.surgery import attentions, mask_heads, shrink_state

FORMAT = 1

# Largest difference between the log-probabilities of masked and rewritten model, in float32.
TOLERANCE = 1e-4


@dataclass
class Rewrite:
    """What `rewrite` made of a checkpoint.

    Attributes:
        state: the rewritten checkpoint, ready to be saved.
        layout: heads that it keeps, in original ids.
        parameters_before: parameters of the model that was read (importance variables not counted).
        parameters_after: parameters of the rewritten model.
        difference: largest difference of log-probabilities between masked and rewritten model.
    """

    state: dict[str, Any]
    layout: HeadLayout
    parameters_before: int
    parameters_after: int
    difference: float


class VocabularyTask:
    """The part of a task that building a translation model asks for: two dictionaries of the right size."""

    def __init__(self, state: dict[str, Tensor], cfg: Any) -> None:
        source = len(state["encoder.embed_tokens.weight"])
        target = len(state["decoder.embed_tokens.weight"])
        self.source_dictionary = _dictionary(source)
        shared = get_option(cfg, "share_all_embeddings", False)
        self.target_dictionary = self.source_dictionary if shared else _dictionary(target)


def read_checkpoint(path: str) -> dict[str, Any]:
    """A fairseq checkpoint, in today's form: `cfg` is an OmegaConf, whatever the file holds.

    Raises:
        Refusal: no such file, cut short, not a fairseq checkpoint, or holding types that are not on the list.
    """
    if not os.path.isfile(path):
        raise Refusal(f"the checkpoint must be a file, but {path} does not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds for a broken file, all of which mean this
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refusal(f"the checkpoint must be a whole file that holds no code, but {path} cannot be read: {reason}") from error
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict) or not (state.get("cfg") or state.get("args")):
        raise Refusal(f"the checkpoint must be one of fairseq, with `model` and `cfg` or `args`, but {path} is not.")
    if "optimizer_history" in state or "optimizer" in state:
        state = checkpoint_utils._upgrade_state_dict(state)
    if state.get("cfg") is None:
        state["cfg"], state["args"] = convert_namespace_to_omegaconf(state["args"]), None
    else:
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    return state


def write_checkpoint(state: dict[str, Any], path: str) -> None:
    """Saves under a temporary name beside `path`, then renames: the old file is whole or the new one is.

    Raises:
        Refusal: the folder cannot be written to, or the disk is full.
    """
    folder = os.path.dirname(os.path.abspath(path))
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{os.path.basename(path)}.", delete=False) as file:
            temporary = file.name
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # a temporary file is its owner's alone
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise Refusal(f"the checkpoint could not be written to {path}: {error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def refuse_to_overwrite(path: str, force: bool) -> None:
    """Raises a `Refusal` where the output exists and `--force` was not given, or its folder does not exist."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise Refusal(f"the output's folder must exist, but {folder} does not.")
    if os.path.isdir(path):
        raise Refusal(f"the output must be a file, but {path} is a folder.")
    if os.path.exists(path) and not force:
        raise Refusal(f"the output must not exist without `--force`, but {path} does.")


def load_model(state: dict[str, Any]) -> Any:
    """The model of a checkpoint, with our attention; of a stock transformer, the dense one.

    Raises:
        Refusal: the checkpoint is of another family than transformer.
    """
    cfg = state["cfg"].model
    adopt_architecture(cfg, state["model"])
    model = ARCH_MODEL_REGISTRY[get_option(cfg, "arch")].build_model(cfg, VocabularyTask(state["model"], cfg))
    model.load_state_dict(dict(state["model"]), strict=True, model_cfg=cfg)
    return model.eval()


def adopt_architecture(cfg: argparse.Namespace | DictConfig, model_state: dict[str, Tensor]) -> None:
    """Makes a stock transformer's cfg, in place, one of ours that keeps all heads; leaves ours as it is."""
    name = get_option(cfg, "_name") or get_option(cfg, "arch")
    family = ARCH_MODEL_NAME_REGISTRY.get(name)
    if family not in ("transformer", "dsp_transformer"):
        raise Refusal(f"the checkpoint must be of a `transformer` architecture, but is {name} (of {family or 'no known'} family).")
    ours = f"dsp_{name}" if family == "transformer" else name
    if ours not in ARCH_MODEL_REGISTRY:
        ours = "dsp_transformer"  # an architecture that another plug-in registered; its cfg is complete
    if family == "transformer":
        _fill_defaults(cfg, name)
        set_option(cfg, "head_layout", str(_full_layout(cfg)))
        for option in ("unpruned_heads", "head_selection"):
            set_option(cfg, option, None)
    set_option(cfg, "_name", ours)
    set_option(cfg, "arch", ours)


def chosen_layout(state: dict[str, Any], model: Any, text: str | None, budget: int | None) -> HeadLayout:
    """The heads to keep: given, or the model's own choice at the trained or another budget.

    Args:
        text: a layout (`--layout`).
        budget: K (`--unpruned-heads`).

    Raises:
        Refusal: no choice can be made, or it does not fit the model.
    """
    if text is not None:
        layout = parse_layout(text, "--layout")
        if not layout.within(model.layout):
            raise Refusal(f"`--layout` must name heads that the model has ({model.layout}), but is {layout}.")
        if budget is not None and budget != layout.count:
            raise Refusal(f"`--unpruned-heads` must agree with `--layout`, which keeps {layout.count}, but is {budget}.")
        return layout
    gates: HeadGates | None = model.head_gates
    if gates is None:
        if budget is not None or "fairseq_dsp" in state or model.layout.count == model.layout.grid.total:
            kind = "was rewritten already" if "fairseq_dsp" in state else "has no importance variables"
            raise Refusal(
                f"the checkpoint {kind} and keeps {model.layout.count} of {model.layout.grid.total} heads: say with "
                "`--layout` which of them to keep."
            )
        return model.layout  # fixed heads: nothing to choose, the training state goes
    if budget is None:
        return model.deployed_layout()
    if not 0 <= budget <= gates.grid.total:
        raise Refusal(f"`--unpruned-heads` must be between 0 and {gates.grid.total} (the heads of this model), but is {budget}.")
    return model.layout.narrow([float(mark) for mark in HeadScores(gates.grid, gates.importance).keep_top(budget).kept])


def rewrite(path: str, layout_text: str | None = None, budget: int | None = None) -> Rewrite:
    """The checkpoint with exactly the chosen heads, checked against the masked model.

    Raises:
        Refusal: the checkpoint or the choice is not fit; every reason that can be known is named.
    """
    state = read_checkpoint(path)
    _refuse_not_finite(state["model"], path)
    dense_cfg = state["cfg"].model
    model = load_model(state)
    layout = chosen_layout(state, model, layout_text, budget)
    model_state = dict(state["model"])
    model.upgrade_state_dict(model_state)
    dims = {site: attention.head_dim for site, attention in attentions(model, model.layout.grid)}
    current = model.layout

    cfg = copy.deepcopy(dense_cfg)
    method = _provenance(cfg, model)
    for name in ("unpruned_heads", "head_selection", "initial_temperature", "final_temperature", "cooldown_updates"):
        set_option(cfg, name, None)
    for name in ("pipelined", "keep_sampling"):
        set_option(cfg, name, False)
    set_option(cfg, "head_layout", str(layout))
    small_state = shrink_state(model_state, layout, dims, current)
    whole_cfg = state["cfg"]
    whole_cfg.model = cfg
    _make_task_stock(whole_cfg)
    rewritten = {
        "args": None,
        "cfg": OmegaConf.to_container(whole_cfg, resolve=True, enum_to_str=True),
        "model": small_state,
        "criterion": None,
        "optimizer_history": [
            {**entry, "num_updates": entry.get("num_updates", 0)} for entry in state.get("optimizer_history", [])[-1:]
        ],
        "task_state": state.get("task_state", {}),
        "extra_state": _kept_extra_state(state.get("extra_state", {})),
        "fairseq_dsp": {
            "format": FORMAT,
            "layout": str(layout),
            "kept": layout.count,
            "total": layout.grid.total,
            **method,
        },
    }
    before = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("head_gates."))
    small = load_model({"cfg": whole_cfg, "model": small_state})
    after = sum(p.numel() for p in small.parameters())
    if (found := small.layout) != layout:
        raise AssertionError(f"the rewritten model keeps {found} instead of {layout}")
    model.bake() if layout == model.deployed_layout() and model.head_gates is None else None
    difference = _compare(model, small, layout)
    if not difference <= TOLERANCE:
        raise Refusal(f"the rewritten model must agree with the masked one to {TOLERANCE}, but differs by {difference:.2g}.")
    return Rewrite(rewritten, layout, before, after, difference)


def resolve_layout(text: str) -> HeadLayout:
    """The layout that `--head-layout` names: a text, or a checkpoint whose heads are meant.

    Raises:
        Refusal: neither.
    """
    if os.path.exists(text) or text.endswith(".pt"):
        return load_model(read_checkpoint(text)).deployed_layout()
    return parse_layout(text, "--head-layout")


def parse_layout(text: str, option: str) -> HeadLayout:
    """A layout from the command line; a `Refusal` names the option."""
    try:
        return HeadLayout.parse(text)
    except ValueError as error:
        raise Refusal(f"`{option}` must be a layout: {error}") from error


def _compare(masked: Any, small: Any, layout: HeadLayout) -> float:
    """Largest difference of log-probabilities on a random batch with padding, masked against rewritten, in float32."""
    if masked.head_gates is not None:
        masked.head_gates.eval()
    mask_heads(masked, layout, masked.layout)
    generator = torch.Generator().manual_seed(0)
    source_words, target_words = (len(side.embed_tokens.weight) for side in (masked.encoder, masked.decoder))
    lengths = torch.tensor([7, 5, 3])
    source = torch.randint(4, max(source_words, 5), (3, 7), generator=generator).clamp_max(source_words - 1)
    target = torch.randint(4, max(target_words, 5), (3, 6), generator=generator).clamp_max(target_words - 1)
    for row, length in enumerate(lengths.tolist()):
        source[row, length:] = masked.encoder.padding_idx
    outputs = []
    with torch.no_grad():
        for model in (masked, small):
            model.float().eval()
            net_output = model(source, lengths, target)
            outputs.append(model.get_normalized_probs(net_output, log_probs=True, sample={"target": target}))
    return (outputs[0] - outputs[1]).abs().max().item()


def _dictionary(size: int) -> Dictionary:
    dictionary = Dictionary()
    for index in range(size - len(dictionary)):
        dictionary.add_symbol(f"word{index}")
    return dictionary


def _fill_defaults(cfg: argparse.Namespace | DictConfig, name: str) -> None:
    """Applies the stock architecture's defaults, which an older checkpoint's options may lack."""
    from fairseq.models import ARCH_CONFIG_REGISTRY

    if isinstance(cfg, DictConfig):
        OmegaConf.set_struct(cfg, False)
    ARCH_CONFIG_REGISTRY[name](cfg)


def _full_layout(cfg: Any) -> HeadLayout:
    encoder = (int(get_option(cfg, "encoder_attention_heads")),) * int(get_option(cfg, "encoder_layers"))
    decoder = (int(get_option(cfg, "decoder_attention_heads")),) * int(get_option(cfg, "decoder_layers"))
    from fairseq_dsp.heads import HeadGrid

    return HeadLayout.full(HeadGrid(encoder, decoder, decoder))


def _provenance(cfg: Any, model: Any) -> dict[str, Any]:
    from fairseq_dsp import __version__

    config = PruningConfig.from_model_cfg(cfg)
    method = config.head_selection or ("dsp" if model.head_gates is not None else "given")
    return {"method": method, "seed": config.seed, "version": __version__}


def _make_task_stock(cfg: DictConfig) -> None:
    """A rewritten model has no budget left to hold, so it asks for no task of ours."""
    task = cfg.get("task")
    if get_option(task, "_name") == "translation_dsp":
        set_option(task, "unpruned_heads", None)


def _kept_extra_state(extra: dict[str, Any]) -> dict[str, Any]:
    """What the trainer needs to load; moving averages and the best score belong to the model that was."""
    return {name: value for name, value in extra.items() if not name.startswith("ema") and name not in ("best", "val_loss")}


def _refuse_not_finite(model_state: dict[str, Any], path: str) -> None:
    broken = [
        name
        for name, value in model_state.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise Refusal(f"the checkpoint's weights must be finite, but {path} has NaN or infinity in {', '.join(broken[:5])}.")
