"""The options of a model that change what is computed with the same weights. Asked by `starting` and `averaging`.

Loading compares names and shapes, so weights that were trained for another function would pass in silence.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY
from omegaconf import DictConfig

from fairseq_dsp.config import architecture_of
from fairseq_dsp.options.records import completed

# Those that also add weights or take some away are among them: the option says more than a list of names.
_COMPUTE = (
    "encoder_attention_heads",
    "decoder_attention_heads",
    "activation_fn",
    "encoder_normalize_before",
    "decoder_normalize_before",
    "no_decoder_final_norm",
    "layernorm_embedding",
    "encoder_learned_pos",
    "decoder_learned_pos",
    "no_token_positional_embeddings",
    "no_scale_embedding",
    "cross_self_attention",
)


def computation(cfg: argparse.Namespace | DictConfig | Mapping[str, Any]) -> dict[str, str]:
    """What a model's options say of its computation, as text; an option that neither they nor their architecture give is left out.

    Args:
        cfg: flat, of any age and of any architecture that is registered.
    """
    complete = completed(cfg)
    known = architecture_of(complete) in ARCH_CONFIG_REGISTRY
    absent = False if known else None  # fairseq fills in all but switches that came later
    values = {name: getattr(complete, name, absent) for name in _COMPUTE}
    return {name: str(value) for name, value in values.items() if value is not None}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """The options that differ, each with its two values. An option that one of both does not give is none."""
    return ((name, value, now[name]) for name, value in before.items() if now.get(name, value) != value)
