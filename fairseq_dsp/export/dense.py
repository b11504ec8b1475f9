"""Folds a layout into a checkpoint of stock fairseq's shapes: removed heads are there, but compute nothing.

    W_Q, W_K, W_V: zero rows for a removed head;  W_O: zero columns
    fc1, fc2: the neurons that are left, and zeros up to the widest feed-forward network of the encoder or of the decoder

so sum_i Attention_i runs over all heads and equals the sum over those that are kept. Of heads nothing is saved by it, but the file
loads where this package is not installed: in fairseq's commands, and in all that builds models through fairseq. (Tools that
take the options for an argparse Namespace, as CTranslate2's own converter does, cannot read it: see `stock`.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairseq_dsp.checkpoints.agreement import TOLERANCE, largest_difference
from fairseq_dsp.checkpoints.stock import STOCK_NAMES, build_stock, stock_cfg
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.modules.surgery import attentions, mask_heads, shrink_state, widen_state
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.groups import group_of, has_neurons
from fairseq_dsp.units.kinds import KIND_OF
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.neurons import NEURONS


@dataclass(frozen=True)
class DenseExport:
    """What `fold` made of a checkpoint.

    Attributes:
        state: the stock checkpoint, ready to be saved.
        layout: heads that still compute something.
        difference: largest difference of log-probabilities to the model that was read.
    """

    state: dict[str, Any]
    layout: Layout
    difference: float


def fold(path: str) -> DenseExport:
    """The checkpoint as a transformer of stock fairseq, checked against the model that was read.

    Args:
        path: a checkpoint of a transformer: trained with a budget, rewritten, or dense.

    Raises:
        Refusal: the checkpoint is not fit, or the folded model would compute something else.
    """
    state = read_checkpoint(path)
    model = load_model(state)
    layout = model.deployed_layout()
    weights = dict(state["model"])
    model.upgrade_state_dict(weights)
    cfg = stock_cfg(state["cfg"])
    widths = {site: attention.head_dim for site, attention in attentions(model, layout.grid)}
    wide = _side_by_side(layout)
    if has_neurons(layout.grid):
        group = group_of(layout.grid, model.neurons, "--head-layout")
        widths |= {site: group for site in layout.grid.sites if site not in widths}
        for stack in NEURONS.stacks:
            if counts := wide.grid.of(stack.name):
                cfg["model"][f"{stack.side}_ffn_embed_dim"] = group * counts[0]
    weights = widen_state(shrink_state(weights, layout, model.layout), wide, widths)
    stock = build_stock(cfg, weights)
    mask_heads(model, layout, model.layout)
    difference = largest_difference(model, stock)
    if not difference <= TOLERANCE:
        raise Refusal(
            f"folded and masked model must agree to {TOLERANCE}, but differ by {difference:.2g} in log-probability."
        )
    history = {key: STOCK_NAMES.get(str(value), value) for key, value in state["optimizer_history"][-1].items()}
    folded = {
        "args": None,
        "cfg": cfg,
        "model": weights,
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        # no meters: they hold numpy's numbers, which torch's safe loading refuses without this package
        "extra_state": {"train_iterator": dict(state["extra_state"]["train_iterator"])},
    }
    return DenseExport(folded, layout, difference)


def _side_by_side(layout: Layout) -> Layout:
    """The layout of the folded model: heads at their places, groups of neurons first in as many as the widest network keeps.

    Stock fairseq has one width for all layers of a side. At least one group stays, of zeros.
    """
    counts, kept = [], []
    for site, there in layout.grid.counts:
        marks = layout.marks(site)
        if KIND_OF[site.stack] is NEURONS:
            there = max(1, *layout.surviving.of(site.stack))
            marks = tuple(place < sum(marks) for place in range(there))
        counts.append((site, there))
        kept += marks
    return Layout(Grid(tuple(counts)), tuple(kept))
