"""Every option of ours that travels with the model, declared once. Read by `methods`, `plugin` and `checkpoints`.

The options live in the checkpoint's `cfg.model`, next to fairseq's own, because plain `fairseq-generate` builds its task
from the command line and would lose anything that only the task knows. `cfg.model` is an argparse Namespace after
`fairseq-train` and an OmegaConf dict after `fairseq-hydra-train`; this module reads and writes both.
"""

from __future__ import annotations

import argparse
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, open_dict

from fairseq_dsp.errors import Refusal

# A range of budgets, such as 4..72.
_RANGE = re.compile(r"(\d{1,6})\.\.(\d{1,6})")

# What `--unpruned-heads` takes for a number in a method that finds its own.
AUTO = "auto"

# Of `PruningConfig`, what no command line of a model declares.
UNDECLARED = ("seed", "importance_lr", "derived", "prices")
# What came after rewritten checkpoints of format 1: these name it only where the training's do, and stay as they were elsewhere.
LATER: tuple[str, ...] = ("recipe", "nested_law", "sandwich", "self_distillation", "importance_from", "derived")
LATER += ("ffn_group", "budget", "sentence", "prices", "norm_penalty", "norm", "threshold_penalty", "threshold_target")
LATER += ("prune", "spectral_norm", "costs")


@dataclass(frozen=True)
class PruningConfig:
    """Options of pruning. Help texts are the metadata; `None` means "not given"."""

    head_selection: str | None = field(
        default=None,
        metadata={
            "help": "how the heads are chosen: dsp (Gumbel soft top-K, the default), ste (straight-through top-K), "
            "simple (a hard sample with the gradient of exact marginals), "
            "hard-concrete (L0 gates), lagrangian (L0 gates that meet the budget), pass (L0 gates driven to the budget and to 0 or 1), "
            "function-norm (a penalty on what units add to the residual stream, by which they are ranked), "
            "site-threshold (a learned share of every sublayer), "
            "fixed (drawn at random with --seed, or given by --head-layout, and trained from the start) "
            "or stratified (drawn with the counts of --head-counts, and trained from the start)",
        },
    )
    unpruned_heads: int | str | None = field(
        default=None,
        metadata={
            "help": "K, how many heads the model may keep, or a range of such numbers (4..72)",
            "words": (AUTO,),
            "range": True,
        },
    )
    budget: str | None = field(
        default=None, metadata={"help": "in place of --unpruned-heads: a number, a share (0.25), auto, heads=18,ffn=0.5, parameters=20M, macs=0.5 or latency=40ms"}
    )  # fmt: skip
    prune: str | None = field(
        default=None, metadata={"help": "what is chosen among: heads (the default), ffn (--ffn-group), heads,ffn, or sublayers alone"}
    )  # fmt: skip
    sentence: str | None = field(
        default=None,
        metadata={"help": "what macs= is counted of: S,T,BEAM (default: validation set's mean lengths, 5)"},
    )
    costs: str | None = field(
        default=None, metadata={"help": "what units take, of fairseq-dsp-bench --costs, for latency="}
    )
    prices: str | None = None  # what `--budget` comes to in this model, as `units/prices` writes it
    head_layout: str | None = field(
        default=None,
        metadata={
            "help": "build a model with these heads only: a layout (enc:…/dec:…/cross:…, with /ffn-enc:…/ffn-dec:… for groups of neurons too) "
            "or a checkpoint to take it from"
        },
    )
    ffn_group: int | None = field(
        default=None,
        metadata={
            "help": "how many neurons of a feed-forward network are one unit (default: twice the size of a head; for a --head-layout with "
            "ffn-enc and ffn-dec as many as its marks say)",
        },
    )
    head_counts: str | None = field(
        default=None,
        metadata={
            "help": "how many heads stratified keeps where: rule (the default: two thirds cross-attention, spread over the "
            "layers), even (every sublayer as many), numbers by type (enc=0,dec=2,cross=4), or a layout or checkpoint whose "
            "counts by sublayer are taken and whose heads are drawn anew"
        },
    )
    cross_floor: str | None = field(
        default=None,
        metadata={
            "help": "cross-attention heads that stay whatever chooses: a number (default: 1), or layer for one in every "
            "decoder layer"
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "where settings of the choice come from that are not given: auto (from the length of the training: the projection "
            "at temperatures from 1 to 0.1, a window of 40 %% of the updates, an importance learning rate of 25 divided by it) or "
            "paper (the published ones); default: auto, but paper where temperatures are given without --relaxation"
        },
    )
    pipelined: bool = field(
        default=False, metadata={"help": "train the importance variables alone, on top of a dense checkpoint (--finetune-from-model)"}
    )  # fmt: skip
    initial_temperature: float | None = field(
        default=None, metadata={"help": "temperature of dsp at the first update (default: 0.1)"}
    )
    final_temperature: float | None = field(
        default=None, metadata={"help": "temperature of dsp at the end of the cooldown (default: 1e-8)"}
    )
    relaxation: str | None = field(
        default=None,
        metadata={"help": "soft top-K of dsp: successive-softmax (the paper's, default), or projection for any K"},
    )
    budget_schedule: str | None = field(
        default=None, metadata={"help": "how many heads are on until the cooldown is over: K (constant, the default), or all at first and then fewer and fewer (cubic)"}
    )  # fmt: skip
    budget_start_updates: int | None = field(
        default=None,
        metadata={"help": "of --budget-schedule cubic: updates with all heads on (default: 0; advice: of warm-up)"},
    )
    cooldown_updates: int | None = field(
        default=None, metadata={"help": "updates after which the chosen heads are fixed (default: 15000, with --pipelined 250; hard-concrete: never)"}
    )  # fmt: skip
    keep_sampling: bool = field(
        default=False, metadata={"help": "go on drawing heads after the cooldown, as the paper's code does, instead of fixing them"}
    )  # fmt: skip
    spectral_norm: str | None = field(
        default=None, metadata={"help": "linear maps of all layers that train with a spectral norm and a scale, such as fc1,fc2,out_proj,v_proj"}
    )  # fmt: skip
    l0_penalty: float | None = field(
        default=None, metadata={"help": "what an open head costs hard-concrete, in loss per target token (default: 0.05)"}
    )  # fmt: skip
    norm_penalty: float | None = field(
        default=None, metadata={"help": "what function-norm asks for a mean norm of 1, in loss per target token (default: 0.03)"}
    )  # fmt: skip
    norm: str | None = field(
        default=None, metadata={"help": "norms of function-norm: absolute (the default) or relative to the stream that is added to"}
    )  # fmt: skip
    threshold_penalty: float | None = field(
        default=None, metadata={"help": "what site-threshold asks, in loss per target token, while all is on that the target leaves out (default: 10)"}
    )  # fmt: skip
    threshold_target: float | None = field(
        default=None, metadata={"help": "share of the heads that costs site-threshold nothing (default: that of the budget; none with auto)"}
    )  # fmt: skip
    lagrangian_warmup: int | None = field(
        default=None, metadata={"help": "updates in which lagrangian goes from all heads to the budget (default: half of --cooldown-updates)"}
    )  # fmt: skip
    nested_law: str | None = field(
        default=None,
        metadata={
            "help": "which number of heads of a range (--unpruned-heads 4..72) an update trains: log-uniform (the default: the largest "
            "in a quarter of the updates, else small ones as often as large ones in proportion) or uniform"
        },
    )
    sandwich: bool = field(
        default=False, metadata={"help": "of a range: every update trains the largest number of heads, a drawn one and the smallest"}
    )  # fmt: skip
    self_distillation: float | None = field(
        default=None, metadata={"help": "of a sandwich: share of what smaller numbers of heads learn from the largest (default: 0)"}
    )  # fmt: skip
    importance_from: str | None = field(
        default=None, metadata={"help": "begin with importance in the order of these scores of the weights that training starts from (--finetune-from-model)"}
    )  # fmt: skip
    importance_lr: float | None = None  # as the recipe derived it; that of the command line is the optimizer's
    derived: str | None = None  # names of the options that the recipe has set, with commas between
    seed: int = 1

    @property
    def kept_heads(self) -> int | None:
        """K; None where it is not given, and where the method finds its own (`auto`)."""
        return self.unpruned_heads if isinstance(self.unpruned_heads, int) else None

    @property
    def budget_range(self) -> tuple[int, int] | None:
        """The smallest and the largest K; None where the budget is no range."""
        found = _RANGE.fullmatch(self.unpruned_heads) if isinstance(self.unpruned_heads, str) else None
        return None if found is None else (int(found[1]), int(found[2]))

    @classmethod
    def from_model_cfg(cls, cfg: argparse.Namespace | DictConfig) -> PruningConfig:
        """Reads the options from a model's cfg, filling in defaults.

        Raises:
            Refusal: a value of the wrong type.
        """
        reasons = []
        values: dict[str, Any] = {}
        for option in fields(cls):
            try:
                given = get_option(cfg, option.name)
                ranged = "range" in option.metadata and isinstance(given, str) and _RANGE.fullmatch(given)
                if given in option.metadata.get("words", ()) or ranged:
                    values[option.name] = given
                    continue
                values[option.name] = _convert(get_option(cfg, option.name, option.default), str(option.type))
            except (TypeError, ValueError):
                kind = {"int": "a whole number", "float": "a number", "bool": "true or false"}
                wanted = kind[str(option.type).split(" ")[0]]
                reasons.append(f"{flag(option.name)} must be {wanted}, but is {get_option(cfg, option.name)!r}.")
        if reasons:
            raise Refusal(*reasons)
        return cls(**values)


def flag(name: str) -> str:
    """The option as a user writes it: `unpruned_heads` -> `--unpruned-heads`."""
    return "`--" + name.replace("_", "-") + "`"


def whole_number(given: int | str | None, option: str, least: int | None = None) -> int | None:
    """An option's number, None where it is not given.

    Args:
        given: a number, or its text on a command line.

    Raises:
        Refusal: it is no whole number, or below `least`.
    """
    if given is None:
        return None
    try:
        number = int(given) if isinstance(given, str) else operator.index(given)
    except (TypeError, ValueError):
        raise Refusal(f"{flag(option)} must be a whole number, but is {given!r}.") from None
    if least is not None and number < least:
        raise Refusal(f"{flag(option)} must be at least {least}, but is {given}.")
    return number


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declares the model's options for fairseq's command lines. The budget is declared by the task, others by fairseq or nobody."""
    for option in fields(PruningConfig):
        if option.name in ("unpruned_heads", *UNDECLARED):
            continue
        name = "--" + option.name.replace("_", "-")
        if option.type == "bool":
            parser.add_argument(name, action="store_true", help=option.metadata["help"])
        else:
            kind = {"int": int, "float": float, "str": str}[str(option.type).split(" ")[0]]
            parser.add_argument(name, type=kind, help=option.metadata["help"])


def get_option(cfg: argparse.Namespace | DictConfig | Mapping[str, Any], name: str, default: Any = None) -> Any:
    """An option of a cfg of any kind, a checkpoint's plain dict too; `default` where the cfg has none."""
    if isinstance(cfg, (DictConfig, Mapping)):
        value = cfg.get(name) if name in cfg else None  # OmegaConf 2.0 does not forgive an unknown name
    else:
        value = getattr(cfg, name, None)
    return default if value is None else value


def given_options(cfg: argparse.Namespace | DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """All options of a cfg of any kind, by name; those that are None are not given and left out."""
    names = map(
        str, cfg if isinstance(cfg, (DictConfig, Mapping)) else vars(cfg)
    )  # of a built model: fairseq's own record
    return {name: value for name in names if (value := get_option(cfg, name)) is not None}


def architecture_of(cfg: argparse.Namespace | DictConfig | dict[str, Any]) -> str | None:
    """Name of the architecture that a cfg describes; None where it gives none, or no text."""
    name = get_option(cfg, "_name") or get_option(cfg, "arch")
    return name if isinstance(name, str) else None


def set_option(cfg: argparse.Namespace | DictConfig, name: str, value: Any) -> None:
    """Writes an option into a cfg of either kind, in place, so that the checkpoint carries it."""
    if isinstance(cfg, DictConfig):
        with open_dict(cfg):
            cfg[name] = value
    else:
        setattr(cfg, name, value)


def _convert(value: Any, type_name: str) -> Any:
    if value is None or type_name.startswith("str"):
        return value if value is None else str(value)
    if type_name.startswith("bool"):
        if isinstance(value, bool):
            return value
        if str(value).lower() not in ("true", "false"):
            raise ValueError
        return str(value).lower() == "true"
    if type_name.startswith("int"):
        if isinstance(value, bool) or isinstance(value, float) and not value.is_integer():
            raise ValueError
        return int(value)
    if isinstance(value, bool):
        raise ValueError
    return float(value)
