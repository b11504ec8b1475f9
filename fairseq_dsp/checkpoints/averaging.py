"""Averages checkpoints of one model that keep the same heads. Called by the `average` command.

fairseq's own script compares names only, and takes the sum of 0/1 marks for marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from fairseq_dsp.config import flag
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import PROVENANCE, read_checkpoint
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.options.computation import computation, differences
from fairseq_dsp.options.languages import (
    Languages,
    languages_of,
    objections_to_differences,
    objections_to_other_pairs,
    pair_of,
)
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.layout import Layout


def average(paths: Sequence[str]) -> dict[str, Any]:
    """The last checkpoint with the mean of all weights, summed in float64; the optimizer's state goes.

    Raises:
        Refusal: the checkpoints are not of one model with one choice of heads.
    """
    sums: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    layouts: dict[str, Layout | str] = {}
    computed: dict[str, dict[str, str]] = {}
    languages: dict[str, Languages | None] = {}
    pairs: dict[str, tuple[str, str] | None] = {}
    for path in paths:
        state = read_checkpoint(path)
        shapes = {name: value.shape for name, value in state["model"].items()}
        if sums and shapes != {name: value.shape for name, value in sums.items()}:
            raise Refusal(f"all checkpoints must be of one model, but {path} has other parameters than {paths[0]}.")
        for name, value in state["model"].items():
            kinds.setdefault(name, value.dtype)
            sums[name] = sums[name] + value.double() if name in sums else value.double()
        cfg = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
        languages[path], pairs[path] = languages_of(state["cfg"].task), pair_of(state["cfg"].task)
        layouts[path], computed[path] = _choice(load_model(state)), computation(state["cfg"].model)
    reasons = [
        f"all checkpoints must be of one model, but {path} has {flag(name)} {other}, and {paths[0]} {value}."
        for path, found in computed.items()
        for name, value, other in differences(computed[paths[0]], found)
    ]
    reasons += objections_to_differences(languages) + objections_to_other_pairs(pairs)
    if len(set(layouts.values())) > 1:
        listed = "; ".join(f"{path} keeps {layout}" for path, layout in layouts.items())
        reasons.append(f"all checkpoints must keep the same heads, but {listed}.")
    if reasons:
        raise Refusal(*reasons)
    mean = {name: (total / len(paths)).to(kinds[name]) for name, total in sums.items()}
    found = _choice(load_model({**state, "model": mean}))
    if found != layouts[paths[0]]:  # of a method whose ranks are no sums of what is averaged
        raise Refusal(
            f"the mean of the checkpoints must keep the heads that each of them keeps, {layouts[paths[0]]}, but keeps {found}: "
            "average checkpoints whose heads are fixed."
        )
    kept = {name: state[name] for name in ("args", "task_state", "optimizer_history", PROVENANCE) if name in state}
    extra = {name: value for name, value in state.get("extra_state", {}).items() if name == "train_iterator"}
    return {**kept, "cfg": cfg, "model": mean, "criterion": None, "extra_state": extra}


def _choice(model: DspTransformerModel) -> Layout | str:
    """The heads that are kept; of a model that is trained for a range of budgets the order in which they are."""
    gates = model.head_gates
    return " ".join(map(str, gates.order())) if isinstance(gates, NestedGates) else model.deployed_layout()
