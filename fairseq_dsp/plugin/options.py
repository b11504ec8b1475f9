"""What a transformer's options say of it: its heads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY
from omegaconf import DictConfig

from fairseq_dsp.config import architecture_of, get_option
from fairseq_dsp.units.groups import Neurons, with_groups
from fairseq_dsp.units.layout import Grid
from fairseq_dsp.units.neurons import NEURONS


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
    """The heads of the transformer that a cfg of either kind describes, and its neurons where the cfg groups them; None where it
    does not say yet.

    Raises:
        Refusal: the neurons cannot be grouped so.
    """
    heads = {}
    for side in ("encoder", "decoder"):
        layers, width = get_option(cfg, f"{side}_layers"), get_option(cfg, f"{side}_attention_heads")
        if layers is None or width is None:
            return None
        heads[side] = (int(width),) * int(layers)
    grid = Grid.of_heads(heads["encoder"], heads["decoder"], heads["decoder"])
    group, neurons = get_option(cfg, "ffn_group"), neurons_of_options(cfg)
    if group is None or neurons is None:
        return grid if group is None else None
    return with_groups(grid, neurons, int(group))


def neurons_of_options(cfg: argparse.Namespace | DictConfig) -> Neurons | None:
    """The neurons of every feed-forward network of the transformer that a cfg describes; None where it does not say yet."""
    found = {}
    for stack in NEURONS.stacks:
        layers, width = get_option(cfg, f"{stack.side}_layers"), get_option(cfg, f"{stack.side}_ffn_embed_dim")
        if layers is None or width is None:
            return None
        found[stack.name] = (int(width),) * int(layers)
    return found
