"""Options and weights of models whose neurons are units: what fits, asked before a model is built. Called by `objections` and `model`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from omegaconf import DictConfig
from torch import Tensor

from fairseq_dsp.config import flag, given_options
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.neurons import NEURONS

_MOST_NEURONS = 1 << 16  # of a feed-forward network before any is gone: its weights do not show it where none is left


def objections_to_neurons(cfg: argparse.Namespace | DictConfig) -> list[str]:
    """Sentences on options that read the weights of feed-forward networks around the gates of their neurons."""
    value = given_options(cfg).get("scale_fc")
    if value in (None, False, 0, "", "None"):
        return []
    return [f"`scale_fc` has no meaning where neurons are pruned: its norm mixes them, but it is {value}."]


def objections_to_widths(
    cfg: argparse.Namespace | DictConfig, layout: Layout, weights: Mapping[str, Tensor]
) -> list[str]:
    """Sentences on a checkpoint whose weights do not have the neurons that its options name.

    Args:
        cfg: the model's, whose sizes are numbers.
        layout: the checkpoint's own; neurons are units of it.
    """
    given = given_options(cfg)
    group = given.get("ffn_group")
    if not isinstance(group, int) or isinstance(group, bool) or group < 1:
        return [f"{flag('ffn_group')} must be a whole number of at least 1, as neurons were pruned, but is {group}."]
    found = []
    for stack in NEURONS.stacks:
        groups = layout.grid.of(stack.name)
        layers = len({name.split(".")[2] for name in weights if name.startswith(f"{stack.side}.layers.")})
        if len(groups) != layers:
            found.append(
                f"`--head-layout` must name the neurons of {layers} layers in {stack.name}, as the checkpoint's weights have them, "
                f"but names those of {len(groups)}."
            )
            continue
        name = f"{stack.side}_ffn_embed_dim"
        width = given.get(name, groups[0] * group if groups else 1)
        if not 0 < float(width) <= _MOST_NEURONS or any(count * group != float(width) for count in groups):
            found.append(
                f"{flag(name)} must be {flag('ffn_group')} times the groups of every layer in {stack.name} ({group} times "
                f"{', '.join(map(str, sorted(set(groups))))}) and at most {_MOST_NEURONS}, but is {width}."
            )
        for site in (site for site in layout.grid.sites if site.stack == stack.name):
            wanted = len(layout.units(site)) * group
            fc1, fc2 = (weights.get(f"{stack.module_name(site.layer)}.{part}.weight") for part in ("fc1", "fc2"))
            there = [None if fc1 is None else fc1.shape[0], None if fc2 is None else fc2.shape[-1]]
            if there != [wanted, wanted]:
                found.append(
                    f"layer {site.layer} in {stack.name} must have {wanted} neurons, as `--head-layout` says, but the checkpoint's "
                    f"weights have {there[0]} in fc1 and {there[1]} in fc2."
                )
    return found
