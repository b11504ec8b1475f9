"""Reads and writes fairseq checkpoints, and builds the model that one describes without its data folder.

Called by `rewriting`, by the commands, and by `model` to look up the heads of another checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY
from omegaconf import DictConfig
from torch import Tensor, nn

from fairseq_dsp.compat import config_of_checkpoint, settle_device_marks
from fairseq_dsp.config import architecture_of, get_option, grid_of_options, set_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.heads import HeadLayout
from fairseq_dsp.objections import objections_to_stored_options
from fairseq_dsp.old_options import plain_options, upgraded
from fairseq_dsp.output import OutputFile
from fairseq_dsp.untrusted import strange_options, why_unread

if TYPE_CHECKING:
    from fairseq_dsp.model import DspTransformerModel


# The entry of a rewritten checkpoint that says where it came from, and the version of what it means. A checkpoint without it
# is format 1 too: training writes none.
PROVENANCE, FORMAT = "fairseq_dsp", 1

_SIDES = ("encoder", "decoder")


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of a transformer, brought to fairseq's present form: with `cfg`, never `args`.

    Raises:
        Refusal: no such file, cut short or damaged, holding types that are not on the list, not fairseq's, of another
            family, of a later format, or with weights that are not finite.
    """
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "is none" if os.path.exists(path) else "does not exist"
        raise Refusal(f"the checkpoint must be a file, but {path} {what}.")
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            check_sums(path)
        # Lazily where the format allows it: the optimizer's state is twice the model and is not wanted here.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        if isinstance(state, dict):
            state["cfg"] = plain_options(state.get("cfg"))
    except Exception as error:  # torch raises a dozen kinds for a broken file
        raise Refusal(f"the checkpoint must be whole and hold no code, but {path} {why_unread(error)}") from error
    given = (state.get("args"), state.get("cfg")) if isinstance(state, dict) else ()
    options = next((each for each in given if isinstance(each, (argparse.Namespace, dict))), None)
    if not options or not isinstance(state.get("model"), dict):
        raise Refusal(f"the checkpoint must be one of fairseq, with `model` and `cfg` or `args`, but {path} is not.")
    if strange := strange_options(options, groups=1 if isinstance(options, argparse.Namespace) else 2):
        raise Refusal(
            "the checkpoint's options must be numbers, text that refers to nothing, and containers of them, but in "
            f"{path} others are in {', '.join(strange[:5])}."
        )
    model_cfg = options.get("model") if isinstance(options, dict) else options
    architecture = architecture_of(model_cfg)
    family = family_of(architecture)
    if family not in ("transformer", "dsp_transformer"):
        raise Refusal(
            f"the checkpoint must be of a `transformer` architecture, but {path} is of {architecture} ({family or 'unknown'})."
        )
    _refuse_later_format(state.get(PROVENANCE), path)
    settle_device_marks(state["model"])
    refuse_broken_weights(state["model"], path)
    if "optimizer_history" not in state and "best_loss" not in state:  # weights alone
        history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
        iterator = {"epoch": 1, "iterations_in_epoch": 0}
        state.update(optimizer_history=[history], extra_state={"train_iterator": iterator})
    try:
        if state.get("args") is None:
            state["cfg"] = config_of_checkpoint(state["cfg"])
        state = upgraded(state, path)
        state["extra_state"]["train_iterator"] = dict(state["extra_state"]["train_iterator"])
    except Exception as error:  # whatever meets what it did not expect
        raise Refusal(
            f"the checkpoint's options and history must be as fairseq writes them, but those of {path} are not: "
            f"{_first_line(error)}"
        ) from error
    state["args"] = None
    return state


def check_sums(path: str) -> None:
    """Checks a checkpoint's content: torch does not where it reads lazily, and a flipped byte is a wrong weight that nobody sees.

    Raises:
        ValueError: a record's content is not that which was written.
        zipfile.BadZipFile: it is no archive, or cut.
    """
    with zipfile.ZipFile(path) as file:
        broken = file.testzip()
    if broken is not None:
        raise ValueError(f"the checksum of {broken} is wrong.")


def _refuse_later_format(provenance: Any, path: str) -> None:
    found = provenance.get("format") if isinstance(provenance, dict) else FORMAT
    if found not in range(1, FORMAT + 1):
        raise Refusal(
            f"the checkpoint's format must be at most {FORMAT}, the last that this fairseq_dsp knows, but {path} is of {found!r}."
        )


def write_checkpoint(state: dict[str, Any], output: OutputFile) -> None:
    """Saves a checkpoint atomically; see `OutputFile.write`."""
    output.write(lambda file: torch.save(state, file), "the checkpoint")


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
    if "encoder.embed_tokens.weight" not in state["model"] or "decoder.embed_tokens.weight" not in state["model"]:
        raise Refusal("the checkpoint's weights must be a translation model's, but embeddings are missing.")
    for side in _SIDES:  # the weights come with the checkpoint: no need of the files that they started from
        set_option(cfg, f"{side}_embed_path", None)
    if (layout := get_option(cfg, "head_layout")) is not None:
        parse_layout(str(layout), "--head-layout")  # never a path: training writes the layout that it found there
    try:
        if reasons := objections_to_stored_options(cfg, state["model"]):
            raise Refusal(*reasons)
        adopt_architecture(cfg)
        with _without_initialisation():
            model = ARCH_MODEL_REGISTRY[get_option(cfg, "arch")].build_model(cfg, VocabularyTask(state["model"], cfg))
        model.adopt_state_dict(dict(state["model"]))
    except Refusal:
        raise
    except Exception as error:  # fairseq's model trusts its options, and stumbles over wrong ones in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise Refusal(f"the checkpoint's weights must fit its own options, but do not: {reason}") from error
    return model.eval()


def family_of(architecture: str | None) -> str | None:
    """The model behind an architecture's name, such as `transformer`; None for an unknown one."""
    return ARCH_MODEL_NAME_REGISTRY.get(architecture)


def adopt_architecture(cfg: argparse.Namespace | DictConfig) -> None:
    """Makes a stock transformer's cfg, in place, one of ours that keeps all heads; leaves ours as it is."""
    name = architecture_of(cfg)
    if family_of(name) == "transformer":
        ARCH_CONFIG_REGISTRY[name](cfg)  # defaults that an older checkpoint's options lack
        grid = grid_of_options(cfg)
        assert grid is not None  # they are complete now
        set_option(cfg, "head_layout", str(HeadLayout.full(grid)))
        # an architecture that another plug-in registered has no twin; its options are complete by now
        name = f"dsp_{name}" if f"dsp_{name}" in ARCH_MODEL_REGISTRY else "dsp_transformer"
    set_option(cfg, "_name", name)
    set_option(cfg, "arch", name)


def resolve_layout(text: str, option: str = "--head-layout") -> HeadLayout:
    """The layout that an option names: a text, or a checkpoint whose heads are meant.

    Raises:
        Refusal: neither.
    """
    if os.path.exists(text) or text.endswith(".pt"):
        try:
            return load_model(read_checkpoint(text)).deployed_layout()
        except Refusal as refusal:
            raise Refusal(*(f"`{option}`: {reason}" for reason in refusal.reasons)) from refusal
    return parse_layout(text, option)


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


def refuse_broken_weights(weights: dict[str, Any], path: str) -> None:
    """Looks at all weights of a checkpoint.

    Raises:
        Refusal: some are no plain tensors, or not finite; the sentence names them.
    """
    strange = [
        name
        for name, value in weights.items()
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided
    ]
    if strange:
        raise Refusal(
            f"the checkpoint's weights must be plain tensors, but {path} has others: {str(strange[:5])[:200]}."
        )
    broken = [
        name for name, value in weights.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        raise Refusal(
            f"the checkpoint's weights must be finite, but {path} has NaN or infinity in {', '.join(broken[:5])}."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]


def _dictionary(size: int) -> Dictionary:
    dictionary = Dictionary()
    for index in range(size - len(dictionary)):
        dictionary.add_symbol(f"word{index}")
    return dictionary
