"""From a trained checkpoint to a small one with exactly the chosen heads. Called by the `prune` command.

A rewritten checkpoint is an ordinary one of fairseq whose `cfg.model` names a `dsp_transformer` and its `head_layout`; the
entry `fairseq_dsp` says where it came from. It is built again from its own cfg, loaded strictly and compared with the
masked model before anyone sees it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from torch import Tensor

from fairseq_dsp.checkpoints.account import Account, Demand
from fairseq_dsp.checkpoints.agreement import TOLERANCE, largest_difference
from fairseq_dsp.checkpoints.batches import loss_per_token
from fairseq_dsp.checkpoints.choosing import as_grouped, choose_layout, choose_under, refuse_budget
from fairseq_dsp.checkpoints.rescaling import cut_in_stages, input_moments, rescale_state
from fairseq_dsp.config import LATER, PruningConfig, set_option
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import FORMAT, PROVENANCE, read_checkpoint
from fairseq_dsp.methods import method_class
from fairseq_dsp.modules.surgery import mask_heads, shrink_state
from fairseq_dsp.options.records import TaskOptions, given_of_ours
from fairseq_dsp.options.widths import objections_to_neurons
from fairseq_dsp.plugin.building import load_model, recompute_nothing
from fairseq_dsp.units.floors import parse_floor
from fairseq_dsp.units.groups import group_of, has_neurons, with_all_of
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.score_file import ScoreFile
from fairseq_dsp.version import __version__

if TYPE_CHECKING:
    from fairseq_dsp.plugin.model import DspTransformerModel

Batches = list[dict[str, Any]]  # of fairseq


@dataclass(frozen=True)
class Rewrite:
    """What `rewrite` made of a checkpoint.

    Attributes:
        state: the rewritten checkpoint, ready to be saved.
        layout: heads that it keeps, in original ids.
        before: units that the model had when it was read, in original ids; all of its architecture's, or fewer.
        parameters_before: parameters of the model that was read, importance variables not counted.
        parameters_after: parameters of the rewritten model.
        difference: largest difference of log-probabilities between masked and rewritten model, before rescaling.
        losses: nats per target token on the sentences of `--rescale`: of the model that was read, of what is left of it, and of
            that rescaled; None where nothing was rescaled.
        scores: what the heads were chosen by; None where by no scores.
        account: what a `--budget` came to; None where none was given.
    """

    state: dict[str, Any]
    layout: Layout
    before: Layout
    parameters_before: int
    parameters_after: int
    difference: float
    losses: tuple[float, float, float] | None = None
    scores: ScoreFile | None = None
    account: Account | None = None


@dataclass(frozen=True)
class Stages:
    """A choice in stages, each followed by a fit; see `rescaling.cut_in_stages`.

    Attributes:
        number: of stages.
        scorer: its name.
        seed: of what it draws.
        score: of the heads that a model has, by fairseq's batches.
    """

    number: int
    scorer: str
    seed: int
    score: Callable[[DspTransformerModel, Batches], Tensor]


@dataclass(frozen=True)
class Wish:
    """What a rewritten checkpoint is to keep, and by what that is chosen; by default the model's own choice.

    Attributes:
        layout: units to keep, or a checkpoint to take them from.
        count: K, another number of heads than the trained one.
        scores: choose the K heads by these instead of the model's importance variables.
        floor: `--cross-floor`: cross-attention heads that stay whatever the scores say; None for none.
        stages: choose the K heads so, on the sentences of the fit.
        demand: `--budget`, in place of K.
    """

    layout: str | None = None
    count: int | None = None
    scores: ScoreFile | None = None
    floor: str | None = None
    stages: Stages | None = None
    demand: Demand | None = None


@dataclass
class _Choice:
    """What is kept.

    Attributes:
        account: what a `--budget` came to.
        fitted: the model that stages have cut and fitted, and the batches of their fits.
    """

    layout: Layout
    account: Account | None = None
    fitted: DspTransformerModel | None = None
    batches: Batches | None = None


def rewrite(path: str, wish: Wish, sentences: Callable[[DspTransformerModel, Any], Batches] | None = None) -> Rewrite:
    """The checkpoint with exactly the chosen heads, checked against the masked model.

    Optimizer state, moving averages, importance variables and the best score go; weights keep their precision.

    Args:
        path: a checkpoint of a transformer, of ours or of stock fairseq.
        wish: what it is to keep.
        sentences: fairseq's batches for a model and the options of its task. With them the output projections, and fc2 where neurons
            go, are fitted so that the units that stay say what all said; see `rescaling`.

    Raises:
        Refusal: the checkpoint or the choice is not fit.
    """
    state = read_checkpoint(path)
    model = load_model(state)
    if sentences is not None and model.head_gates is not None:
        raise Refusal("`--rescale` must be for a model whose heads are all on, but the checkpoint chooses among them.")
    choice = _choose(state, model, wish, sentences)
    layout, current = choice.layout, with_all_of(model.layout, choice.layout.grid)
    if has_neurons(layout.grid) and (reasons := objections_to_neurons(state["cfg"].model)):
        raise Refusal(*reasons)
    weights = dict(state["model"])
    model.upgrade_state_dict(weights)
    small_weights = shrink_state(weights, layout, current)
    provenance = _provenance(state, wish, layout)
    cfg = _small_cfg(state["cfg"], layout, model)
    small = load_model({"cfg": cfg, "model": small_weights})

    weights_before, batches = model.weight_count(), choice.batches
    if sentences is not None:
        batches = batches or sentences(model.float().eval(), state["cfg"].task)
        dense_loss, moments = loss_per_token(model, batches), {}
        if choice.fitted is None:
            lost = [site for site in layout.grid.sites if layout.marks(site) != current.marks(site)]
            moments = input_moments(model, batches, lost)
    mask_heads(model, layout, current)
    difference = largest_difference(model, small)
    if not difference <= TOLERANCE:
        raise Refusal(
            f"rewritten and masked model must agree to {TOLERANCE}, but differ by {difference:.2g} in log-probability."
        )
    losses = None
    if batches:
        cut_loss = loss_per_token(small, batches)
        small_weights = dict(small_weights)
        if choice.fitted is None:
            rescale_state(weights, small_weights, layout, current, moments)
        else:
            _take_projections(choice.fitted, small_weights)
        small = load_model({"cfg": cfg, "model": small_weights}).float().eval()
        losses = (dense_loss, cut_loss, loss_per_token(small, batches))
        provenance["rescaled"] = sum(len(batch["target"]) for batch in batches)
    rewritten = _checkpoint(state, cfg, small_weights, provenance)
    counts = weights_before, small.weight_count()
    return Rewrite(rewritten, layout, current, *counts, difference, losses, wish.scores, choice.account)


def _choose(
    state: dict[str, Any],
    model: DspTransformerModel,
    wish: Wish,
    sentences: Callable[[DspTransformerModel, Any], Batches] | None,
) -> _Choice:
    """What of a checkpoint, whose model this is, will be kept."""
    if wish.demand is not None:
        account = choose_under(model, state["cfg"].task, wish.demand, wish.scores, wish.floor)
        return _Choice(as_grouped(account.layout, model), account)
    if wish.stages is None:
        return _Choice(choose_layout(model, wish.layout, wish.count, PROVENANCE in state, wish.scores, wish.floor))
    assert sentences is not None
    if has_neurons(model.layout.grid):
        raise Refusal(
            "`--scorer` must be for a model of heads alone, but the checkpoint's feed-forward networks are cut too."
        )
    refuse_budget(model, wish.count, wish.floor, "--scorer")
    assert wish.count is not None
    batches = sentences(model.float().eval(), state["cfg"].task)
    fitted = _in_stages(state, batches, wish.count, wish.stages, wish.floor)
    return _Choice(fitted.layout, fitted=fitted, batches=batches)


def _in_stages(
    state: dict[str, Any], batches: Batches, budget: int, stages: Stages, floor: str | None
) -> DspTransformerModel:
    """What stages leave of a copy of the checkpoint's model, in float32."""
    weights = {name: value.clone() for name, value in state["model"].items()}
    options = copy.deepcopy(state["cfg"].model)  # for a copy of the whole shares them
    recompute_nothing(options)
    copied = load_model({"cfg": argparse.Namespace(model=options), "model": weights}).float().eval()
    cut_in_stages(copied, batches, budget, stages.number, lambda left: stages.score(left, batches), parse_floor(floor))
    return copied


def _take_projections(fitted: DspTransformerModel, weights: dict[str, Tensor]) -> None:
    """Writes the output projections of a fitted model into a state of the same heads, in the state's precision."""
    found = fitted.state_dict()
    for name in (name for name in weights if ".out_proj." in name):
        weights[name] = found[name].to(weights[name].dtype)


def _provenance(state: dict[str, Any], wish: Wish, layout: Layout) -> dict[str, Any]:
    """Where a rewritten checkpoint comes from, as it says itself."""
    config = PruningConfig.from_model_cfg(state["cfg"].model)
    found = {
        "format": FORMAT if has_neurons(layout.grid) else 1,
        "version": __version__,
        **_chosen_by(config, wish.layout is not None, wish.scores or wish.stages),
        "kept": layout.count,
        "total": layout.grid.total,
        "layout": str(layout),
    }
    if wish.demand is not None:
        found["budget"] = wish.demand.request.text
    if wish.stages is not None:
        found["stages"] = wish.stages.number
    return found


def _small_cfg(cfg: Any, layout: Layout, model: DspTransformerModel) -> Any:
    """Options of a model that has these units and chooses none."""
    cfg = copy.deepcopy(cfg)
    given = given_of_ours(cfg.model)
    for option in fields(PruningConfig):
        if option.name in LATER and option.name not in given:
            continue
        if option.name not in ("seed", "importance_lr"):  # of the training, under fairseq's own names
            set_option(cfg.model, option.name, option.default)
    set_option(cfg.model, "head_layout", str(layout))
    if has_neurons(layout.grid):
        set_option(cfg.model, "ffn_group", group_of(layout.grid, model.neurons, "--layout"))
    if TaskOptions.of(cfg.task).unpruned_heads is not None:
        set_option(cfg.task, "unpruned_heads", None)
    return cfg


def _checkpoint(
    state: dict[str, Any], cfg: Any, weights: dict[str, Tensor], provenance: dict[str, Any]
) -> dict[str, Any]:
    """The rewritten checkpoint: what a training would go on with, and figures of the model that was, are left out."""
    dropped = ("best", "val_loss", "metrics", "train_meters")
    extra = {name: value for name, value in state["extra_state"].items() if name not in dropped}
    return {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": weights,
        "criterion": None,
        "optimizer_history": state["optimizer_history"][-1:],
        "task_state": state.get("task_state", {}),
        "extra_state": {name: value for name, value in extra.items() if not name.startswith("ema")},
        PROVENANCE: provenance,
    }


def _chosen_by(config: PruningConfig, by_hand: bool, scores: ScoreFile | Stages | None) -> dict[str, Any]:
    """What chose the heads: `layout` (given by hand), a scorer, or the method of the training; its seed, if it has one."""
    if by_hand:
        return {"method": "layout", "pipelined": False, "seed": None}
    if scores is not None:
        return {"method": scores.scorer, "pipelined": False, "seed": scores.seed}
    method = method_class(config)
    budget = config.kept_heads is not None or config.prices is not None
    drawn = method.learned or budget  # or given to the training as a layout
    return {"method": method.name, "pipelined": config.pipelined, "seed": config.seed if drawn else None}
