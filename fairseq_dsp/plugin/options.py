"""What a transformer's options say of it: its heads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY
from omegaconf import DictConfig

from fairseq_dsp.config import architecture_of, get_option
from fairseq_dsp.units.layout import Grid


def completed(cfg: argparse.Namespace | DictConfig | Mapping[str, Any]) -> argparse.Namespace:
    """A model's options, and what its architecture fills in where they give nothing. The cfg stays as it is.

    Args:
        cfg: flat, of any age; an architecture that is not registered fills in nothing.
    """
    names = map(str, vars(cfg) if isinstance(cfg, argparse.Namespace) else cfg)
    given = {name: get_option(cfg, name) for name in names}
    found = argparse.Namespace(**{name: value for name, value in given.items() if value is not None})
    fill_in = ARCH_CONFIG_REGISTRY.get(architecture_of(found))
    if fill_in is not None:
        fill_in(found)
    return found


def grid_of_options(cfg: argparse.Namespace | DictConfig) -> Grid | None:
    """The heads of the transformer that a cfg of either kind describes; None where it does not say yet."""
    heads = {}
    for side in ("encoder", "decoder"):
        layers, width = get_option(cfg, f"{side}_layers"), get_option(cfg, f"{side}_attention_heads")
        if layers is None or width is None:
            return None
        heads[side] = (int(width),) * int(layers)
    return Grid.of_heads(heads["encoder"], heads["decoder"], heads["decoder"])
