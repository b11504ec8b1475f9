"""A checkpoint's options in whatever form a fairseq has saved them, brought to that of today. Called by `reading`.

fairseq 0.6 to 0.9 saved a Namespace (`args`), the first ones of 1.0 an OmegaConf object, later ones a dict with a group of options
for each part, of which some are Namespaces.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from fairseq import checkpoint_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.registry import REGISTRIES
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.nodes import EnumNode, StringNode

from fairseq_dsp.config import flag

logger = logging.getLogger("fairseq_dsp.old_options")  # as logs have always named it


def plain_options(options: Any) -> Any:
    """The same options with plain containers and values for OmegaConf's objects, and references not followed.

    Args:
        options: of any kind; what holds no OmegaConf object is returned as it is, or equal.
    """
    if OmegaConf.is_config(options):
        options = OmegaConf.to_container(options, resolve=False, enum_to_str=True)
    if isinstance(options, dict):  # whose groups may be either
        return {name: plain_options(group) if OmegaConf.is_config(group) else group for name, group in options.items()}
    return options


def upgraded(state: dict[str, Any], path: str) -> dict[str, Any]:
    """The state as fairseq upgrades it: its options in `cfg`, whatever they were in.

    An option of training whose value today's fairseq does not know, such as `--ddp-backend simple`, is left out, with a
    warning: neither the model nor its sentences depend on it.

    Raises:
        Exception: whatever fairseq and hydra raise where they meet what they did not expect.
    """
    try:
        with (
            _silent("fairseq.dataclass.utils"),
            _silent("hydra.core.utils"),
        ):  # which log all options, and their own work
            return checkpoint_utils._upgrade_state_dict(state)
    except Exception:
        unknown = _unknown_values(state["args"]) if isinstance(state.get("args"), argparse.Namespace) else {}
        if not unknown:
            raise
    for name in unknown:
        delattr(state["args"], name)
    listed = ", ".join(f"{flag(name)} {value}" for name, value in unknown.items())
    logger.warning("options of %s that this fairseq does not know are left out: %s", path, listed)
    return checkpoint_utils._upgrade_state_dict(state)


def _unknown_values(args: argparse.Namespace) -> dict[str, Any]:
    """Options of training that have no such value today, or that name a part that is not registered."""
    given, found = vars(args), {}
    groups = [field.type for field in fields(FairseqConfig) if is_dataclass(field.type)]
    for group in map(OmegaConf.structured, groups):
        for name in (name for name in group if name in given):
            if not _takes(group, name, given[name]):
                found[name] = given[name]
    for part, registry in REGISTRIES.items():
        if given.get(part) is not None and given[part] not in registry["registry"]:
            found[part] = given[part]
    return found


def _takes(group: DictConfig, name: str, value: Any) -> bool:
    try:
        if isinstance(value, str) and not isinstance(group._get_node(name), (StringNode, EnumNode)):
            value = ast.literal_eval(value)  # as fairseq does, for older versions saved lists and numbers as text
        group[name] = value
    except (OmegaConfBaseException, ValueError, SyntaxError):
        return False
    return True


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    talker = logging.getLogger(name)
    before, talker.disabled = talker.disabled, True
    try:
        yield
    finally:
        talker.disabled = before
