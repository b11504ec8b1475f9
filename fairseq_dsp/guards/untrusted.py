"""Keeps checkpoints from running code: fairseq's own commands load them with the plug-in as carefully as ours do.

Imported by the package before anything reads a checkpoint. SECURITY.md says what this covers and what it does not.
"""

from __future__ import annotations

import argparse
import ast
import collections
import functools
import importlib
import os
import re
import sys
import tarfile
import types
import typing

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed.utils import _TensorPlaceholder
from fairseq.logging.meters import AverageMeter, StopwatchMeter, TimeMeter
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode, BooleanNode, FloatNode, IntegerNode, StringNode

from fairseq_dsp.guards.versions import TORCH_LOADS_CARELESSLY, multiarray

# Modules of fairseq that evaluate text from a checkpoint's options, which is a literal in all honest ones.
_EVALUATING = (
    "fairseq.utils",
    "fairseq.models.transformer_lm",
    "fairseq.models.lightconv_lm",
    "fairseq.criterions.ctc",
)


def allow_checkpoint_types() -> None:
    """Lets torch's safe loading read what fairseq's checkpoints hold, and nothing else.

    Safe loading refuses every type that is not on a list. fairseq saves a Namespace (options of a legacy architecture),
    numpy numbers (BLEU statistics) and, when several processes resume, sends a whole state with OmegaConf objects from
    the first to the others. Its first versions of 1.0 saved such objects too, whose nodes may name the dataclass that they
    are typed by; 0.6 to 0.8 saved meters. None of these types runs code when it is loaded.
    """
    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            multiarray._reconstruct,
            multiarray.scalar,
            np.ndarray,
            np.dtype,
            *{type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")},
            DictConfig,
            ListConfig,
            *(AnyNode, BooleanNode, FloatNode, IntegerNode, StringNode),
            *(FairseqDataclass, *_dataclasses_below(FairseqDataclass)),
            Metadata,
            ContainerMetadata,
            typing.Any,
            typing.Dict,  # noqa: UP006 - what OmegaConf saves for a type of containers
            typing.List,  # noqa: UP006
            collections.defaultdict,
            *(bool, float, int, str, list, dict),
            *_METERS,
            *map(_by_its_old_name, _METERS),
            _TensorPlaceholder,  # where a tensor was, in what the first process sends to the others
        ]
    )


_METERS = (AverageMeter, StopwatchMeter, TimeMeter)


def _by_its_old_name(meter: type) -> type:
    """What makes a meter where a file names it as fairseq did before 0.9: `fairseq.meters.AverageMeter`."""
    return type(meter.__name__, (), {"__module__": "fairseq.meters", "__new__": lambda _: meter.__new__(meter)})


def _dataclasses_below(parent: type) -> set[type]:
    """fairseq's groups of options, at any depth; they hold values and do nothing."""
    children = set(parent.__subclasses__())
    return children.union(*map(_dataclasses_below, children))


def load_as_later_torches_do() -> None:
    """Makes `torch.load` of a torch before 2.6 as safe as later ones.

    There it asks for no list by default, and hands TorchScript and tar archives to loaders that know no list at all.
    """
    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    torch.serialization._is_torchscript_zip = lambda _: False  # an ordinary archive then, of types that are on no list
    torch.serialization.tarfile = types.SimpleNamespace(**{**vars(tarfile), "open": _refuse_tar})


def evaluate_literals_alone() -> None:
    """Makes fairseq take options that it evaluates as Python, such as `--adaptive-softmax-cutoff`, for literals.

    Expressions that stand on the command line are evaluated as ever: `--encoder-kernel-size-list '[3]*2'`.
    """
    for name in _EVALUATING:
        names = vars(importlib.import_module(name))
        names["eval"] = functools.partial(_evaluate, names)


def why_unread(error: Exception) -> str:
    """The end of a sentence on a file that torch's safe loading has refused or failed on.

    torch's own words begin with how to switch safe loading off, which nobody should do with a file from elsewhere.
    """
    text = str(error)
    if (kind := re.search(r"GLOBAL (\S+) (?:was|whose)", text)) is not None:
        return f"holds an object of the type {kind[1]}, which is not on the list of those that may be read."
    inner = text.rpartition("WeightsUnpickler error:")[2].strip()
    return f"cannot be read: {(inner.splitlines() or [type(error).__name__])[0][:400]}"


def strange_options(value: typing.Any, groups: int, name: str = "") -> list[str]:
    """Names of options that hold a tensor, an object, a group of options for a value, or text that OmegaConf would follow.

    `${oc.env:NAME}` would put a secret of whoever loads the file into what is written from it.

    Args:
        groups: how deep Namespaces may lie: fairseq saves options, or a Namespace of options for each of its parts.
    """
    if isinstance(value, DictConfig):
        value = OmegaConf.to_container(value, resolve=False)
    if isinstance(value, argparse.Namespace) and groups:
        value = vars(value)
    refers = isinstance(value, str) and ("${" in value or value == "???")
    if refers or isinstance(value, (argparse.Namespace, torch.Tensor, np.ndarray, FairseqDataclass, *_METERS)):
        return [name]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    names = [(f"{name}.{key}" if name else str(key), item) for key, item in inside]
    return [found for path, item in names for found in strange_options(item, max(groups - 1, 0), path)]


def _evaluate(names: dict[str, typing.Any], text: typing.Any) -> typing.Any:
    if not isinstance(text, str):
        raise TypeError(f"a literal must be text, but is {text!r}.")  # as `eval` does, on which fairseq relies
    try:
        return ast.literal_eval(text)
    except ValueError:
        if not _typed_by_the_user(text):
            raise
    return eval(text, names)


def _typed_by_the_user(text: str) -> bool:
    """Whether a text is an argument of this process, or of a parser at work: fairseq parses no text of a checkpoint."""
    if any(text in (word, word.partition("=")[2]) for word in sys.argv[1:]):
        return True
    frame = sys._getframe()
    parsing = argparse.ArgumentParser.parse_known_args.__code__
    while frame is not None and frame.f_code is not parsing:
        frame = frame.f_back
    return frame is not None


def _refuse_tar(*_: typing.Any, **__: typing.Any) -> None:
    raise tarfile.TarError("archives of torch before 0.4 are not read.")


allow_checkpoint_types()
if TORCH_LOADS_CARELESSLY:
    load_as_later_torches_do()
evaluate_literals_alone()
