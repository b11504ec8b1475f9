"""Builds the model that a checkpoint describes, without its data folder.

fairseq's registries build it, so `model` must be registered. Called by `teacher`, the rooms of checkpoints and exports, and the API.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from omegaconf import DictConfig
from torch import Tensor, nn

from fairseq_dsp.config import architecture_of, set_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import family_of, read_checkpoint
from fairseq_dsp.modules.surgery import remove_gates
from fairseq_dsp.options.records import TransformerOptions
from fairseq_dsp.options.stored_options import fitting_its_own_options, refuse_unfit_options
from fairseq_dsp.units.fingerprint import fingerprint
from fairseq_dsp.units.layout import Layout

if TYPE_CHECKING:
    from fairseq_dsp.plugin.model import DspTransformerModel

_SIDES = ("encoder", "decoder")


class VocabularyTask:
    """What building a translation model asks of a task: two dictionaries of the right size."""

    def __init__(self, model_state: dict[str, Tensor], cfg: argparse.Namespace | DictConfig) -> None:
        self.source_dictionary = _dictionary(len(model_state["encoder.embed_tokens.weight"]))
        if TransformerOptions.of(cfg).shares_dictionary:
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
    refuse_unfit_options(cfg, state["model"])
    for side in _SIDES:  # the weights come with the checkpoint: no need of the files that they started from
        set_option(cfg, f"{side}_embed_path", None)
    with fitting_its_own_options():
        adopt_architecture(cfg)
        with _without_initialisation():
            model = ARCH_MODEL_REGISTRY[architecture_of(cfg)].build_model(cfg, VocabularyTask(state["model"], cfg))
        model.adopt_state_dict(dict(state["model"]))
    return model.eval()


def ungated(path: str) -> tuple[DspTransformerModel, Any, dict[str, str]]:
    """The model of a checkpoint, in float32, the options of its task, and the fingerprint of its weights; all its heads are on.

    What is scored is thus the function of the weights alone, whatever the importance variables of a gated checkpoint say.
    """
    state = read_checkpoint(path)
    recompute_nothing(state["cfg"].model)
    model = load_model(state)
    marks = fingerprint(model.weights())
    if model.head_gates is not None:
        remove_gates(model, model.layout.grid)
    return model.float(), state["cfg"].task, marks


def recompute_nothing(cfg: argparse.Namespace | DictConfig) -> None:
    """Makes the model of a cfg, in place, one for scorers: a pass must run once, with the scorer's gates in its graph."""
    for name in ("checkpoint_activations", "offload_activations"):
        set_option(cfg, name, False)


def adopt_architecture(cfg: argparse.Namespace | DictConfig) -> None:
    """Makes a stock transformer's cfg, in place, one of ours that keeps all heads; leaves ours as it is."""
    name = architecture_of(cfg)
    if family_of(name) == "transformer":
        ARCH_CONFIG_REGISTRY[name](cfg)  # defaults that an older checkpoint's options lack
        grid = TransformerOptions.of(cfg).grid
        assert grid is not None  # they are complete now
        set_option(cfg, "head_layout", str(Layout.full(grid)))
        # an architecture that another plug-in registered has no twin; its options are complete by now
        name = f"dsp_{name}" if f"dsp_{name}" in ARCH_MODEL_REGISTRY else "dsp_transformer"
    set_option(cfg, "_name", name)
    set_option(cfg, "arch", name)


def deployed(path: str, option: str) -> DspTransformerModel:
    """The model of a checkpoint, in evaluation mode, with the heads that it deploys and no others; its parameters are frozen.

    Args:
        option: that which named it, for the sentence.

    Raises:
        Refusal: it cannot be read, or deploys nothing by itself.
    """
    try:
        model = load_model(read_checkpoint(path))
        model.bake()
    except Refusal as refusal:
        raise Refusal(*(f"`{option}`: {reason}" for reason in refusal.reasons)) from refusal
    return model.requires_grad_(False)


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
