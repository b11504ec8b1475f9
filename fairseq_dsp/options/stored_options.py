"""What a checkpoint's options must say before a model is built of them: they may be damaged, and ask for any amount of memory."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping

from omegaconf import DictConfig
from torch import Tensor

from fairseq_dsp.config import flag, given_options
from fairseq_dsp.errors import Refusal
from fairseq_dsp.options.records import TransformerOptions, completed, defaults_of
from fairseq_dsp.options.widths import objections_to_widths
from fairseq_dsp.units.groups import has_neurons
from fairseq_dsp.units.layout import parse_layout

_MOST_POSITIONS = 1 << 20  # of a sentence; fairseq computes a vector for each


def refuse_unfit_options(cfg: argparse.Namespace | DictConfig, weights: Mapping[str, Tensor]) -> None:
    """Looks at a checkpoint's options before anything is made of them.

    Raises:
        Refusal: there are no embeddings, the layout is none, or `objections_to_stored_options` has some.
    """
    if "encoder.embed_tokens.weight" not in weights or "decoder.embed_tokens.weight" not in weights:
        raise Refusal("the checkpoint's weights must be a translation model's, but embeddings are missing.")
    if (layout := given_options(cfg).get("head_layout")) is not None:
        parse_layout(str(layout), "--head-layout")  # never a path: training writes the layout that it found there
    with fitting_its_own_options():
        if reasons := objections_to_stored_options(cfg, weights):
            raise Refusal(*reasons)
        complete = TransformerOptions.of(completed(cfg))
        # as fairseq says it when it builds the attention, but before heads are counted
        for name, side in (("encoder", complete.encoder), ("decoder", complete.decoder)):
            size = weights[f"{name}.embed_tokens.weight"].shape[-1]
            if side.heads is not None and size // side.heads * side.heads != size:
                raise AssertionError("embed_dim must be divisible by num_heads")


@contextlib.contextmanager
def fitting_its_own_options() -> Iterator[None]:
    """Turns whatever goes wrong within into a `Refusal`: fairseq trusts a model's options, and stumbles over wrong ones in any way."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise Refusal(f"the checkpoint's weights must fit its own options, but do not: {reason}") from error


def objections_to_stored_options(cfg: argparse.Namespace | DictConfig, weights: Mapping[str, Tensor]) -> list[str]:
    """Sentences on a checkpoint's options that its weights contradict, or that are no numbers where there must be some.

    Asked before a model is built: a wrong number could ask for any amount of memory and time.
    """
    found = []
    given = given_options(cfg)
    for name, default in defaults_of(cfg).items():
        value = given.get(name)
        text = isinstance(value, str) and not name.endswith(("_dim", "_positions"))
        if isinstance(default, (int, float)) and value is not None and (text or _number(value) is None):
            found.append(f"{flag(name)} must be a number, but is {str(value)[:80]}.")
    if found:
        return found
    text = given_options(cfg).get("head_layout")
    layout = parse_layout(text, "--head-layout") if isinstance(text, str) else None
    if layout is not None and has_neurons(layout.grid):
        found += objections_to_widths(cfg, layout, weights)
    else:
        layout = None
    for side, positions in (("encoder", "max_source_positions"), ("decoder", "max_target_positions")):
        layers = {name.split(".")[2] for name in weights if name.startswith(f"{side}.layers.")}
        sizes = {"layers": len(layers), "embed_dim": weights[f"{side}.embed_tokens.weight"].shape[-1]}
        if layout is None and f"{side}.layers.0.fc1.weight" in weights:
            sizes["ffn_embed_dim"] = len(weights[f"{side}.layers.0.fc1.weight"])
        for name, size in sizes.items():
            if _number(value := given.get(f"{side}_{name}", size)) != size:
                found.append(
                    f"{flag(f'{side}_{name}')} must be {size}, as the checkpoint's weights are, but is {value}."
                )
        if not 0 < (_number(value := given.get(positions, 1)) or 0) <= _MOST_POSITIONS:
            found.append(f"{flag(positions)} must be between 1 and {_MOST_POSITIONS}, but is {value}.")
    largest = max(max(value.shape, default=0) for value in weights.values())
    for name in ("decoder_input_dim", "decoder_output_dim"):
        if not 0 < (_number(value := given.get(name, 1)) or 0) <= largest:
            found.append(f"{flag(name)} must be at most {largest}, as the checkpoint's weights are, but is {value}.")
    return found


def _number(value: object) -> float | None:
    """An option's number; fairseq's command line leaves some sizes as text, such as `--decoder-output-dim`."""
    try:
        return float(value) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        return None
