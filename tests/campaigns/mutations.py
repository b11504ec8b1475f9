"""Hypothesis strategies for broken inputs: layouts, JSON, checkpoints' options, weights and bytes."""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from tests.campaigns.material import LAYOUT, NEURONS

_TEXTS = (
    "",
    " ",
    "é",
    "\u202e",
    "\x00",
    "\ud800",
    "٣",
    "nan",
    "true",
    "None",
    "-1",
    "1e9",
    "../../x",
    "'",
    "%s{}",
    "a" * 5000,
)
_NUMBERS = (0, -1, 1, 2, 3, 13, 10**9, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, math.nan, math.inf, -math.inf)
_SIMPLE = st.one_of(
    st.none(), st.booleans(), st.sampled_from(_NUMBERS), st.integers(), st.floats(), st.sampled_from(_TEXTS), st.text(max_size=8)
)  # fmt: skip
# what JSON can hold
VALUES = st.one_of(
    _SIMPLE,
    st.lists(_SIMPLE, max_size=3),
    st.dictionaries(st.text(max_size=3), _SIMPLE, max_size=2),
    st.just(LAYOUT),
    st.just([[]] * 50),
)
# what a pickle of a checkpoint can hold besides
OBJECTS = st.one_of(
    VALUES,
    st.sampled_from(((), (1, 2), b"bytes", argparse.Namespace(), argparse.Namespace(arch="transformer"), torch.float16)),
    st.sampled_from((torch.zeros(2), torch.tensor(math.nan), torch.tensor(7), torch.zeros(0), torch.ones(3, 3).bool())),
    st.just({1: 2}),
)  # fmt: skip

# Options that fairseq evaluates as Python: where it builds a model and, the last, an optimizer.
_EVALUATED = ("adaptive_softmax_cutoff", "encoder_xformers_att_config", "decoder_xformers_att_config", "adam_betas")
# how fairseq has saved options: those of legacy architectures, those of others (hydra's too), and before 0.10
FORMS = ("cfg with a Namespace", "cfg of dicts", "args")
SECRET = "DSP_CAMPAIGN_SECRET"  # an environment variable
# what OmegaConf would follow, by the names of today's and of 2.0's resolver, or stumble over
INTERPOLATIONS = (f"${{oc.env:{SECRET}}}", f"${{env:{SECRET}}}", "${common.seed}", "${", "???")

BUDGETS = st.one_of(
    st.integers(-3, 15).map(str), st.sampled_from(("10" * 30, "9" * 5000, "-0", "+5", "5.0", "five", "٥", "1_0", "nan"))
)  # fmt: skip


LAYOUTS = (LAYOUT, "enc:11.11/dec:11.11/cross:11.11", "enc:/dec:/cross:", f"{LAYOUT}/{NEURONS}")
MEASURES = ("5", "0.5", "heads=5,ffn=9", "parameters=0.8", "parameters=2.3k", "macs=0.7", "latency=0.6")


def layout_texts() -> st.SearchStrategy[str]:
    """A layout, changed; or any text."""
    return _changed_texts(LAYOUTS, ("0", "1", ".", "/", ":", "enc:", "ffn-dec:", "1" * 5000))


def budget_texts() -> st.SearchStrategy[str]:
    """A budget of a measure, changed; or any text."""
    return _changed_texts(
        MEASURES, ("0", "1", ".", "=", ",", "-", "e9", "k", "ffn=", "macs=", "latency=", "nan", "9" * 5000)
    )


@st.composite
def _changed_texts(draw: st.DrawFn, texts: tuple[str, ...], pieces: tuple[str, ...]) -> str:
    """One of the texts with a few characters replaced, removed or put in; or any text."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text(max_size=60))
    text = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(text)))
        piece = draw(st.one_of(st.sampled_from(pieces), st.characters()))
        text = text[:place] + piece + text[place + draw(st.integers(0, 2)) :]
    return text


@st.composite
def trees(draw: st.DrawFn, base: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """A copy of nested dicts, lists and Namespaces in which one to three values are others, are gone, or are new."""
    tree = [copy.deepcopy(base)]
    for _ in range(draw(st.integers(1, 3))):
        places = [(tree, 0), *_places(tree[0])]
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "move")))
        if what == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=5))] = copy.deepcopy(draw(values))  # a strategy gives its constants themselves
        elif what == "remove" and holder is not tree:
            del holder[key]
        elif what == "move":
            other, where = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = copy.deepcopy(other[where])
        else:
            holder[key] = copy.deepcopy(draw(values))
    return tree[0]


@st.composite
def json_files(draw: st.DrawFn, base: list[Any], lines: bool) -> bytes:
    """JSON values, a line each or one alone, with changed values or, sometimes, changed bytes."""
    if draw(st.integers(0, 4)):
        base = draw(trees(base)) if lines else [draw(trees(base[0]))]
        if not isinstance(base, list):
            base = [base]
    content = "".join(json.dumps(each) + "\n" for each in base).encode()
    special = draw(st.integers(0, 60))
    if special == 0:
        return b"[" * 100_000
    if special == 1:
        return content.replace(b"1", b"9" * 5000, 1)
    return content if draw(st.integers(0, 3)) else draw(damaged(content, ()))


@st.composite
def damaged(draw: st.DrawFn, content: bytes, boundaries: tuple[int, ...]) -> bytes:
    """Bytes that were cut, at a boundary or anywhere, or of which some have changed, are gone or are new."""
    place = draw(st.integers(0, len(content)))
    what = draw(st.sampled_from(("cut", "boundary", "flip", "flip", "zero", "remove", "insert", "double")))
    if what == "cut" or what == "boundary" and not boundaries:
        return content[:place]
    if what == "boundary":
        return content[: max(draw(st.sampled_from(boundaries)) + draw(st.integers(-1, 1)), 0)]
    if what == "flip":
        changed = bytearray(content)
        for _ in range(draw(st.integers(1, 3)) if content else 0):
            changed[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    size = draw(st.integers(1, 4096))
    if what == "zero":
        return content[:place] + bytes(min(size, len(content) - place)) + content[place + size :]
    if what == "remove":
        return content[:place] + content[place + size :]
    return (
        content[:place] + (content if what == "double" else draw(st.binary(min_size=1, max_size=9))) + content[place:]
    )


@st.composite
def options(draw: st.DrawFn, base: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint whose options, history or outline are changed; its weights are not."""
    small = {name: value for name, value in base.items() if name not in ("model", "last_optimizer_state")}
    if draw(st.integers(0, 19)) == 0:  # what decides who reads the rest, one option among a hundred
        model = copy.deepcopy(vars(small["cfg"]["model"]))
        model["_name"] = model["arch"] = draw(OBJECTS)
        small["cfg"] = {**small["cfg"], "model": argparse.Namespace(**model)}
    elif draw(st.booleans()):  # where most of what is read is
        small["cfg"] = {**small["cfg"], "model": draw(trees(small["cfg"]["model"], OBJECTS))}
    else:
        small = draw(trees(small, OBJECTS))
    return {**small, "model": base["model"]} if isinstance(small, dict) else small


def expressions(marker: Path) -> tuple[str, ...]:
    """Python that makes a folder, or never ends, or wants 80 GB."""
    return (f"__import__('os').mkdir({str(marker)!r})", "9**9**9", "[1]*10**10")


@st.composite
def acting_options(draw: st.DrawFn, base: dict[str, Any], marker: Path) -> tuple[dict[str, Any], str]:
    """A checkpoint one of whose options is text that Python or OmegaConf would act upon; the option and the text."""
    cfg, form = copy.deepcopy(base["cfg"]), draw(st.sampled_from(FORMS))
    text = draw(st.sampled_from((*expressions(marker), *INTERPOLATIONS)))
    evaluated = [(vars(cfg["model"]), name) for name in _EVALUATED]
    others = _leaves(cfg["model"] if form == "args" else cfg)
    holder, key = draw(st.one_of(st.sampled_from(evaluated), st.sampled_from(others)))
    holder[key] = text
    return in_form({**base, "cfg": cfg}, form), f"{key} = {text} in {form}"


def in_form(base: dict[str, Any], form: str) -> dict[str, Any]:
    """The checkpoint, whose `cfg.model` is a Namespace, with its options saved in one of the `FORMS`."""
    if form == "args":
        return {**base, "args": base["cfg"]["model"], "cfg": None}
    if form == "cfg of dicts":
        return {**base, "cfg": {**base["cfg"], "model": vars(base["cfg"]["model"])}}
    return base


@st.composite
def weights(draw: st.DrawFn, base: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
    """A checkpoint one of whose tensors is not as it should be; its name, and what is wrong with it."""
    name = draw(st.sampled_from(sorted(base["model"])))
    tensor = base["model"][name]
    what = draw(st.sampled_from(("not finite", "not finite", "not finite", "shape", "kind", "gone", "new", "strange")))
    model = dict(base["model"])
    if what == "not finite" and tensor.numel():
        model[name] = tensor.clone()
        model[name].view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(
            st.sampled_from((math.nan, math.inf, -math.inf))
        )
    elif what == "shape":
        model[name] = draw(st.sampled_from((tensor.unsqueeze(0), tensor[:0], torch.zeros(()), torch.zeros(3, 5, 7))))
    elif what == "kind":
        model[name] = draw(
            st.sampled_from((tensor.half(), tensor.double(), tensor.int(), tensor.bool(), tensor.to_sparse()))
        )
    elif what == "gone":
        del model[name]
    elif what == "new":
        model[draw(st.one_of(st.text(max_size=9), st.just("encoder.layers.7.fc1.weight")))] = tensor
    else:  # of a tensor without elements too, which cannot be other than finite
        what = "strange"
        model[draw(st.sampled_from((name, 3, ("a",))))] = draw(OBJECTS)
    return {**base, "model": model}, name, what


def boundaries_of(content: bytes) -> tuple[int, ...]:
    """Where records of a zip file and of its directory begin, and where the content of each record does."""
    found = {
        match.start()
        for match in re.finditer(rb"PK\x01\x02|PK\x03\x04|PK\x05\x06|PK\x06\x06|PK\x06\x07|PK\x07\x08", content)
    }
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        for record in file.infolist():
            name, extra = (int.from_bytes(content[record.header_offset + at :][:2], "little") for at in (26, 28))
            start = record.header_offset + 30 + name + extra
            found |= {start, start + record.file_size}
    return tuple(sorted(found | {len(content)}))


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    """Every holder and key of a value that holds nothing itself."""
    return [(holder, key) for holder, key in _places(tree) if not _places(holder[key])]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every holder and key in a tree; a Namespace is held as its dict."""
    holder = vars(tree) if isinstance(tree, argparse.Namespace) else tree
    keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
    return [place for key in keys for place in [(holder, key), *_places(holder[key])]]
