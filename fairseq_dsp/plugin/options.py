"""What a transformer's options say of it: its family and its heads."""

from __future__ import annotations

import argparse

from fairseq.models import ARCH_MODEL_NAME_REGISTRY
from omegaconf import DictConfig

from fairseq_dsp.config import get_option
from fairseq_dsp.units.layout import Grid


def family_of(architecture: str | None) -> str | None:
    """The model behind an architecture's name, such as `transformer`; None for an unknown one."""
    return ARCH_MODEL_NAME_REGISTRY.get(architecture)


def grid_of_options(cfg: argparse.Namespace | DictConfig) -> Grid | None:
    """The heads of the transformer that a cfg of either kind describes; None where it does not say yet."""
    heads = {}
    for side in ("encoder", "decoder"):
        layers, width = get_option(cfg, f"{side}_layers"), get_option(cfg, f"{side}_attention_heads")
        if layers is None or width is None:
            return None
        heads[side] = (int(width),) * int(layers)
    return Grid.of_heads(heads["encoder"], heads["decoder"], heads["decoder"])
