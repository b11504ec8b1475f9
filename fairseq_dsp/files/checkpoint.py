"""Reads and writes fairseq checkpoints. Called by `options/stored_layout`, `checkpoints`, the exports and the commands."""

from __future__ import annotations

import argparse
import copy
import os
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from fairseq.models import ARCH_MODEL_NAME_REGISTRY
from omegaconf import DictConfig, ListConfig

from fairseq_dsp.config import architecture_of, set_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.old_options import plain_options, upgraded
from fairseq_dsp.files.spectral import folded, is_unfolded
from fairseq_dsp.files.weights import refuse_broken_weights
from fairseq_dsp.guards.untrusted import strange_options, why_unread
from fairseq_dsp.guards.versions import config_of_checkpoint, settle_device_marks

if TYPE_CHECKING:
    from fairseq_dsp.files.output import OutputFile

# The entry of a rewritten checkpoint that says where it came from, and the last version of what it means. Format 1 is of heads alone,
# and of a checkpoint without this entry, for training writes none; in format 2 neurons may be gone too.
PROVENANCE, FORMAT = "fairseq_dsp", 2

_GROUPS = ("common", "task", "criterion", "optimizer")

# What there is in place of a family that cannot be taken: the one of fairseq's task with a model for each language pair.
_INSTEAD = {"multilingual_transformer": " (for several language pairs, of `--task translation_multi_simple_epoch`)"}


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint of a transformer, brought to fairseq's present form: with `cfg`, never `args`. Spectral norms are folded.

    Its weights stay what they are whatever becomes of the file: a training that goes on copies its next checkpoint into the very
    file of the last or best one.

    Raises:
        Refusal: no such file, cut short or damaged, written to meanwhile, holding types that are not on the list, not fairseq's, of
            another family, of a later format, or with weights that are not finite.
    """
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "is none" if os.path.exists(path) else "does not exist"
        raise Refusal(f"the checkpoint must be a file, but {path} {what}.")
    try:
        before = _stamp_of(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            check_sums(path)
        # Lazily where the format allows it: the optimizer's state is twice the model and is not wanted here.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        if isinstance(state, dict):
            state["cfg"] = plain_options(state.get("cfg"))
            if zipped:  # tensors that share memory still do
                state["model"] = copy.deepcopy(state.get("model"))
        if _stamp_of(path) != before:
            raise ValueError("it was written to meanwhile.")
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
    model_cfg: Any = options.get("model") if isinstance(options, dict) else options
    architecture = architecture_of(model_cfg)
    family = family_of(architecture)
    if family not in ("transformer", "dsp_transformer"):
        instead = _INSTEAD.get(family or "", "")
        raise Refusal(
            f"the checkpoint must be of a `transformer` architecture{instead}, but {path} is of {architecture} ({family or 'unknown'})."
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
            _look_at_groups(state["cfg"])
        state = upgraded(state, path)
        state["extra_state"]["train_iterator"] = dict(state["extra_state"]["train_iterator"])
    except Exception as error:  # whatever meets what it did not expect
        raise Refusal(
            f"the checkpoint's options and history must be as fairseq writes them, but those of {path} are not: "
            f"{_first_line(error)}"
        ) from error
    state["args"] = None
    if is_unfolded(state["model"]):
        state["model"] = folded(state["model"])
        set_option(state["cfg"].model, "spectral_norm", None)
    return state


def _stamp_of(path: str) -> tuple[int, ...]:
    """What changes where a file is written to, or another takes its name."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _look_at_groups(cfg: DictConfig) -> None:
    """Raises:
    TypeError: what others read as a group of options is none.
    """
    for name in _GROUPS:
        group = cfg.get(name)
        if group is not None and not isinstance(group, (DictConfig, argparse.Namespace)):
            kind = "list" if isinstance(group, ListConfig) else type(group).__name__
            raise TypeError(f"`{name}` is no group of options, but of the type {kind}.")


def family_of(architecture: str | None) -> str | None:
    """The model behind an architecture's name, such as `transformer`; None for an unknown one."""
    return ARCH_MODEL_NAME_REGISTRY.get(architecture)


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
