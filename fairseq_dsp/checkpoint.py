"""Reads and writes fairseq checkpoints, and builds the model that one describes without its data folder.

Called by `rewriting`, by the commands, and by `model` to look up the heads of another checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fairseq_dsp.config import get_option, set_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.heads import HeadGrid, HeadLayout

if TYPE_CHECKING:
    from fairseq_dsp.model import DspTransformerModel


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of a transformer, brought to fairseq's present form: with `cfg`, never `args`.

    Raises:
        Refusal: no such file, cut short, holding types that are not on the list, not fairseq's, or of another family.
    """
    if not os.path.isfile(path):
        raise Refusal(f"the checkpoint must be a file, but {path} does not exist.")
    try:
        # Lazily where the format allows it: the optimizer's state is twice the model and is not wanted here.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises a dozen kinds for a broken file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refusal(f"the checkpoint must be whole and hold no code, but {path} cannot be read: {reason}") from error
    options = state.get("args") or state.get("cfg") if isinstance(state, dict) else None
    if not options or not isinstance(state.get("model"), dict):
        raise Refusal(f"the checkpoint must be one of fairseq, with `model` and `cfg` or `args`, but {path} is not.")
    model_cfg = options.get("model") if isinstance(options, dict) else options
    name = model_cfg.get if isinstance(model_cfg, dict) else lambda key: getattr(model_cfg, key, None)
    family = family_of(name("_name") or name("arch"))
    if family not in ("transformer", "dsp_transformer"):
        raise Refusal(
            f"the checkpoint must be of a `transformer` architecture, but {path} is of {name('_name') or name('arch')} "
            f"({family or 'unknown'})."
        )
    if "optimizer_history" not in state and "best_loss" not in state:  # weights alone
        history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
        iterator = {"epoch": 1, "iterations_in_epoch": 0}
        state.update(optimizer_history=[history], extra_state={"train_iterator": iterator})
    if state.get("args") is None:
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    state = checkpoint_utils._upgrade_state_dict(state)
    state["args"] = None
    return state


def write_checkpoint(state: dict[str, Any], path: str) -> None:
    """Saves a checkpoint atomically; see `write_atomically`."""
    write_atomically(path, lambda file: torch.save(state, file), "checkpoint")


def write_atomically(path: str, write: Callable[[Any], Any], what: str) -> None:
    """Writes under a temporary name beside `path`, then renames: the old file is whole or the new one is.

    Args:
        write: writes the content into the binary file that it is given.
        what: what is written, for the refusal.

    Raises:
        Refusal: the folder cannot be written to, or the disk is full.
    """
    temporary = None
    try:
        folder, name = os.path.split(os.path.abspath(path))
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
            temporary = file.name
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # a temporary file is made for its owner alone
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise Refusal(f"the {what} could not be written to {path}: {error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def refuse_to_overwrite(path: str, force: bool) -> None:
    """Checks an output before any work is done.

    Raises:
        Refusal: it exists and `--force` was not given, is a folder, or its folder does not exist.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise Refusal(f"the output's folder must exist, but {folder} does not.")
    if os.path.isdir(path):
        raise Refusal(f"the output must be a file, but {path} is a folder.")
    if os.path.exists(path) and not force:
        raise Refusal(f"the output must not exist without `--force`, but {path} does.")


class VocabularyTask:
    """What building a translation model asks of a task: two dictionaries of the right size."""

    def __init__(self, model_state: dict[str, Tensor], cfg: argparse.Namespace | DictConfig) -> None:
        self.source_dictionary = _dictionary(len(model_state["encoder.embed_tokens.weight"]))
        if get_option(cfg, "share_all_embeddings", False):
            self.target_dictionary = self.source_dictionary
        else:
            self.target_dictionary = _dictionary(len(model_state["decoder.embed_tokens.weight"]))


def load_model(state: dict[str, Any]) -> DspTransformerModel:
    """The model of a checkpoint, in evaluation mode, with our attention. A stock transformer's cfg becomes one of ours.

    Its parameters are the state's own tensors, in their precision: nothing is copied.

    Raises:
        Refusal: the weights do not fit the options.
    """
    cfg = state["cfg"].model
    adopt_architecture(cfg)
    if "encoder.embed_tokens.weight" not in state["model"] or "decoder.embed_tokens.weight" not in state["model"]:
        raise Refusal("the checkpoint's weights must be a translation model's, but embeddings are missing.")
    with _without_initialisation():
        model = ARCH_MODEL_REGISTRY[get_option(cfg, "arch")].build_model(cfg, VocabularyTask(state["model"], cfg))
    try:
        model.adopt_state_dict(dict(state["model"]))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise Refusal(f"the checkpoint's weights must fit its own options, but do not: {reason}") from error
    return model.eval()


def family_of(architecture: str | None) -> str | None:
    """The model behind an architecture's name, such as `transformer`; None for an unknown one."""
    return ARCH_MODEL_NAME_REGISTRY.get(architecture)


def adopt_architecture(cfg: argparse.Namespace | DictConfig) -> None:
    """Makes a stock transformer's cfg, in place, one of ours that keeps all heads; leaves ours as it is."""
    name = get_option(cfg, "_name") or get_option(cfg, "arch")
    if family_of(name) == "transformer":
        ARCH_CONFIG_REGISTRY[name](cfg)  # defaults that an older checkpoint's options lack
        heads = {
            side: (get_option(cfg, f"{side}_attention_heads"),) * get_option(cfg, f"{side}_layers")
            for side in ("encoder", "decoder")
        }
        grid = HeadGrid(heads["encoder"], heads["decoder"], heads["decoder"])
        set_option(cfg, "head_layout", str(HeadLayout.full(grid)))
        # an architecture that another plug-in registered has no twin; its options are complete by now
        name = f"dsp_{name}" if f"dsp_{name}" in ARCH_MODEL_REGISTRY else "dsp_transformer"
    set_option(cfg, "_name", name)
    set_option(cfg, "arch", name)


def resolve_layout(text: str) -> HeadLayout:
    """The layout that `--head-layout` names: a text, or a checkpoint whose heads are meant.

    Raises:
        Refusal: neither.
    """
    if os.path.exists(text) or text.endswith(".pt"):
        try:
            return load_model(read_checkpoint(text)).deployed_layout()
        except Refusal as refusal:
            raise Refusal(*(f"`--head-layout`: {reason}" for reason in refusal.reasons)) from refusal
    return parse_layout(text, "--head-layout")


def parse_layout(text: str, option: str) -> HeadLayout:
    """A layout from a command line.

    Raises:
        Refusal: the text is none; the sentence names the option.
    """
    try:
        return HeadLayout.parse(text)
    except ValueError as error:
        raise Refusal(f"`{option}` must be a layout: {error}") from error


@contextlib.contextmanager
def _without_initialisation() -> Iterator[None]:
    """Leaves fresh parameters as memory that nobody has touched: a state is about to take their place."""
    names = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    with mock.patch.multiple(nn.init, **{name: lambda tensor, *_, **__: tensor for name in names}):
        yield


def _dictionary(size: int) -> Dictionary:
    dictionary = Dictionary()
    for index in range(size - len(dictionary)):
        dictionary.add_symbol(f"word{index}")
    return dictionary
