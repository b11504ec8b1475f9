"""The dense model, cut models, and gates that are a plain vector."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY
from torch import Tensor

from fairseq_dsp.modules.site_gates import ConstantGates
from fairseq_dsp.modules.surgery import attentions, shrink_model
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.groups import with_all_of
from fairseq_dsp.units.layout import Layout

from .data import LONGEST, Data
from .setting import Setting


def build(setting: Setting, data: Data, seed: int) -> DspTransformerModel:
    """A fresh model with all heads and without gates; everything that is drawn after it follows from the seed."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    values = {f"{side}_normalize_before": True for side in ("encoder", "decoder")}
    sizes = {"layers": setting.layers, "embed_dim": setting.width, "ffn_embed_dim": setting.ffn}
    sizes["attention_heads"] = setting.heads
    values |= {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    cfg = argparse.Namespace(
        arch="dsp_transformer", _name="dsp_transformer", seed=seed, dropout=setting.dropout, head_selection="fixed",
        head_layout=str(Layout.full(setting.grid)), share_decoder_input_output_embed=True,
        max_source_positions=LONGEST, max_target_positions=LONGEST, **values,
    )  # fmt: skip
    ARCH_CONFIG_REGISTRY[cfg.arch](cfg)
    return DspTransformerModel.build_model(cfg, data.task).to(data.device)


def cut_from(
    dense: dict[str, Tensor], setting: Setting, data: Data, seed: int, layout: Layout | None = None
) -> DspTransformerModel:
    """The dense model, or what a layout leaves of it."""
    model = build(setting, data, seed)
    model.load_state_dict(dict(dense))
    if layout is not None:
        shrink(model, layout)
    return model


def shrink(model: DspTransformerModel, layout: Layout) -> None:
    """Cuts the model to a layout within its own, in place; of a layout that names no neurons, they all stay."""
    shrink_model(model, layout, current=with_all_of(model.layout, layout.grid))
    model.layout = layout


class VectorGates:
    """Gates of a model with all heads that are read from one vector, which its owner may change before any pass.

    Attributes:
        vector: [H].
    """

    def __init__(self, model: DspTransformerModel, device: str) -> None:
        self.grid, self.model = model.layout.grid, model
        self.vector = torch.ones(self.grid.total, device=device)
        sites = dict(attentions(model, self.grid))
        for site, span in self.grid.spans():
            sites[site].gates = _Slice(self, span)

    def remove(self) -> None:
        for _, attention in attentions(self.model, self.grid):
            attention.gates = None


class _Slice(ConstantGates):
    """The gates of a site, which change between passes; all its heads are computed."""

    def __init__(self, owner: VectorGates, span: slice) -> None:
        self.owner, self.span = owner, span

    def __call__(self) -> Tensor:
        return self.owner.vector[self.span]
