"""What a transformer's options say of it: its family and its heads."""

from __future__ import annotations

import argparse

from fairseq.models import ARCH_MODEL_NAME_REGISTRY
from omegaconf import DictConfig

from fairseq_dsp.config import get_option
from fairseq_dsp.units.groups import with_groups
from fairseq_dsp.units.layout import Grid


def family_of(architecture: str | None) -> str | None:
    """The model behind an architecture's name, such as `transformer`; None for an unknown one."""
    return ARCH_MODEL_NAME_REGISTRY.get(architecture)


def grid_of_options(cfg: argparse.Namespace | DictConfig) -> Grid | None:
    """The heads of the transformer that a cfg of either kind describes, and its neurons where the cfg groups them; None where it
    does not say yet.

    Raises:
        Refusal: the neurons cannot be grouped so.
    """
    heads, neurons = {}, {}
    group = get_option(cfg, "ffn_group")
    for side in ("encoder", "decoder"):
        sizes = [get_option(cfg, f"{side}_{name}") for name in ("layers", "attention_heads", "ffn_embed_dim")]
        if None in (sizes if group is not None else sizes[:2]):
            return None
        layers, width, ffn = sizes
        heads[side] = (int(width),) * int(layers)
        neurons[f"ffn-{side[:3]}"] = (int(ffn or 0),) * int(layers)
    grid = Grid.of_heads(heads["encoder"], heads["decoder"], heads["decoder"])
    return grid if group is None else with_groups(grid, neurons, int(group))
