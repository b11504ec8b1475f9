"""What a training starts from: the checkpoint that fairseq is about to load, and whether this training may go on from it.

fairseq goes on from whatever lies in the save folder, and compares names and shapes. A checkpoint's options say what it was
trained for. Asked by `task` when training starts, and by `model` where another task trains it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import zipfile
from dataclasses import dataclass, replace
from typing import Any

import torch
from fairseq.file_io import PathManager

from fairseq_dsp.config import PruningConfig, architecture_of, flag, set_option
from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.files.checkpoint import family_of
from fairseq_dsp.files.weights import refuse_broken_weights
from fairseq_dsp.guards.untrusted import strange_options
from fairseq_dsp.guards.versions import settle_device_marks
from fairseq_dsp.methods import Method, method_class
from fairseq_dsp.methods.nested import OPTIONS
from fairseq_dsp.methods.recipe import PAPER
from fairseq_dsp.modules.gates import STATE_PREFIX, are_marks
from fairseq_dsp.options.computation import computation, differences
from fairseq_dsp.options.kinds import objections_to_other_kinds
from fairseq_dsp.options.languages import objections_to_going_on
from fairseq_dsp.options.records import Options, TrainingOptions, given_of_ours, saved_options
from fairseq_dsp.options.stored_layout import resolve_layout
from fairseq_dsp.units.layout import Layout

logger = logging.getLogger("fairseq_dsp.starting")  # as logs have always named it

# What a training was asked for, whatever its method.
_AS_GIVEN = ("unpruned_heads", "budget", "prune", "sentence", "costs", "cross_floor", "spectral_norm")
_ANEW = "another `--save-dir` or `--reset-optimizer` starts anew"


@dataclass(frozen=True)
class Start:
    """A checkpoint that training starts from.

    Attributes:
        path: its file.
        option: that which named it; `save_dir` where nobody did, and fairseq goes on from what it left there.
        state: what the file holds. Weights are read from it only when they are looked at.
    """

    path: str
    option: str
    state: dict[str, Any]

    @property
    def options(self) -> Any:
        """The model's options when it was trained, flat; None where the file has none."""
        return saved_options(self.state, "model")

    @property
    def updates(self) -> int:
        """Updates made so far."""
        history = self.state.get("optimizer_history") or [{}]
        return int(history[-1].get("num_updates", 0))

    @property
    def epoch(self) -> int:
        """The epoch that comes next, or that is under way, from 1."""
        return int(self.state.get("extra_state", {}).get("train_iterator", {}).get("epoch", 1))

    @property
    def chooses_heads(self) -> bool:
        """Whether it has importance variables."""
        return any(name.startswith(STATE_PREFIX) for name in self.state["model"])

    @property
    def fixed_heads(self) -> int | None:
        """How many heads it has fixed; None where it has fixed none."""
        marks = self.state["model"].get(f"{STATE_PREFIX}fixed_mask", torch.zeros(0))
        return int(marks.sum()) if are_marks(marks) else None


def find_start(training: TrainingOptions) -> tuple[str, str] | None:
    """Path of the checkpoint that fairseq will load, and the option that names it; None where there is none yet."""
    suffix = training.checkpoint_suffix
    last = os.path.join(
        "checkpoints" if training.save_dir is None else training.save_dir, f"checkpoint_last{suffix}.pt"
    )
    if not training.is_last_restored:
        path = training.restore_file.replace(".pt", f"{suffix}.pt")
        found = [(path, "save_dir" if os.path.realpath(path) == os.path.realpath(last) else "restore_file")]
    else:
        others = [(getattr(training, name), name) for name in ("continue_once", "finetune_from_model")]
        found = [(last, "save_dir"), *((path, name) for path, name in others if path)]
    return next(((path, name) for path, name in found if PathManager.isfile(path)), None)


def settle_floor(training: TrainingOptions, model_cfg: Options) -> None:
    """Writes `--cross-floor` into the model's options where it is not given: what a checkpoint that is gone on from was
    trained with, which is none for those of earlier versions, else one head.

    Args:
        model_cfg: the model's.
    """
    given = given_of_ours(model_cfg)
    asked = str(given.get("unpruned_heads", given.get("budget", 0)))
    if "cross_floor" in given or re.search(r"(^|,)((heads|sublayers)=)?0(,|$)", asked):
        return
    start = start_to_go_on_from(training, anew_too=True)
    floor: Any = "1" if start is None else given_of_ours(start.options).get("cross_floor")
    if floor is not None:
        set_option(model_cfg, "cross_floor", floor)


def starting_point(training: TrainingOptions) -> Start | None:
    """The checkpoint that fairseq will load; None where there is none, or none that can be read, which `objections_to_start` says."""
    found = find_start(training)
    if found is not None:
        with contextlib.suppress(Refusal):
            return Start(*found, _read(found[0]))
    return None


def start_to_go_on_from(training: TrainingOptions, anew_too: bool = False) -> Start | None:
    """The `starting_point` whose training goes on; None where there is none.

    Args:
        anew_too: also where its weights are trained on with another optimizer (`--reset-optimizer`).
    """
    found = find_start(training)
    if found is None or found[1] == "finetune_from_model":
        return None
    return None if training.reset_optimizer and not anew_too else starting_point(training)


def objections_to_start(training: TrainingOptions, model_cfg: Options) -> list[str]:
    """Sentences on the checkpoint that training starts from; empty if it may, or if there is none.

    A difference that its user has asked for, by naming the file, is logged as a warning.

    Args:
        model_cfg: the model's, with all that its architecture fills in; of a training whose own options are fit.
    """
    found = find_start(training)
    if found is None:
        return []
    reasons: list[str] = []
    with noted(reasons):
        start = Start(*found, _read(found[0]))
        refuse_broken_weights({**start.state["model"]}, start.path)
        reasons += _other_computation(start, model_cfg) + objections_to_going_on(start.state, model_cfg, start.path)
        now = PruningConfig.from_model_cfg(model_cfg)
        if start.option != "finetune_from_model":
            reasons += _objections_to_going_on(start, training, now)
        if not reasons and start.chooses_heads and start.options is not None and method_class(now).learned:
            reasons += objections_to_other_kinds(PruningConfig.from_model_cfg(start.options), now, start.path)
    return reasons


def objections_to_lack_of_start(training: TrainingOptions, model_cfg: Options) -> list[str]:
    """Sentences on a checkpoint that training should start from, and that is not there. Arguments as above."""
    start = training.finetune_from_model
    if start and not PathManager.isfile(start):
        what = "is a folder" if os.path.isdir(start) else "does not exist"
        return [f"`--finetune-from-model` must be a checkpoint, but {start} {what}."]
    if str(given_of_ours(model_cfg).get("pipelined")).lower() == "true" and find_start(training) is None:
        return ["`--pipelined` needs a trained dense checkpoint (`--finetune-from-model dense.pt`), but none is given."]
    return []


def _read(path: str) -> dict[str, Any]:
    """What a checkpoint holds.

    Raises:
        Refusal: it cannot be read without running code, is none of fairseq, or has options that are no values.
    """
    try:
        local = PathManager.get_local_path(path)
        state = torch.load(local, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(local))
    except Exception as error:  # torch raises a dozen kinds for a broken file
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
        raise Refusal(
            f"the checkpoint must be whole and hold no code, but {path} cannot be read: {first_line}"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise Refusal(f"the checkpoint must be one of fairseq, with `model` and `cfg` or `args`, but {path} is not.")
    for part in ("cfg", "args"):
        if strange := strange_options(state.get(part), groups=2):
            raise Refusal(
                f"the checkpoint's options must be numbers, text that refers to nothing, and containers of them, but in {path} "
                f"others are in {', '.join(strange[:5])}."
            )
    settle_device_marks(state["model"])
    return state


def _other_computation(start: Start, model_cfg: Options) -> list[str]:
    if start.options is None:
        return []
    return [
        f"{flag(name)} must be {before}, for which the weights of {start.path} were trained, but is {now}."
        for name, before, now in differences(computation(start.options), computation(model_cfg))
    ]


def _objections_to_going_on(start: Start, training: TrainingOptions, now: PruningConfig) -> list[str]:
    method = method_class(now).from_config(now) if method_class(now).learned else None
    anew = training.reset_optimizer
    counts = not anew and start.state.get("last_optimizer_state") is not None  # fairseq restores the number of updates
    if not counts and not anew and (reasons := _objections_to_lost_updates(start, method)):
        return reasons
    changes, updates = _changes(start, now), start.updates if counts else 0
    no_epoch = 0 < training.max_epoch < start.epoch and not training.reset_dataloader
    advice = f"{_ANEW}, with `--reset-dataloader`, for no epoch is left" if no_epoch else _ANEW
    is_fixed = method is not None and method.fixes_at is not None and method.fixes_at <= updates
    counted = is_fixed and now.kept_heads is not None and "budget" not in [name for name, *_ in changes]
    if changes and counted and start.fixed_heads not in (None, now.kept_heads):
        change = ("unpruned_heads", start.fixed_heads, now.kept_heads)
        return [_must_stay(change, start, f"its heads are fixed; {advice}")]
    nothing_left = no_epoch or 0 < training.max_update <= updates
    others = counts and _moves_or_measures_others(start, method, changes, now)
    if nothing_left or others or start.option == "save_dir" and not anew:
        return [_must_stay(change, start, advice) for change in changes]
    measures = method is not None and method.measures and start.fixed_heads is None
    if is_fixed and measures and "head_selection" in [name for name, *_ in changes]:
        return [
            f"{flag('cooldown_updates')} must be above {updates}, the updates of {start.path}, for `--head-selection {method.name}` "
            f"ranks by norms that nobody has measured there, but is {method.fixes_at}; {_ANEW}."
        ]
    for name, before, value in changes:
        logger.warning("%s was trained for %s %s and goes on with %s.", start.path, flag(name), before, value)
    return []


def _objections_to_lost_updates(start: Start, method: Method | None) -> list[str]:
    """fairseq counts updates in the optimizer's state. Without it a schedule begins again, and with it the choice."""
    if method is None or not start.chooses_heads or method.fixes_at is None and method.temperature(0) is None:
        return []
    return [
        f"the checkpoint must hold the optimizer's state to go on with its heads, but {start.path} has none: its "
        f"{start.updates} updates would not count and its heads would be chosen anew; add `--reset-optimizer` for that, or "
        f"train the heads that it has with `--head-layout {start.path}`."
    ]


Change = tuple[str, Any, Any]  # an option, what a checkpoint was trained for, what is asked for now


def _changes(start: Start, now: PruningConfig) -> list[Change]:
    """What the checkpoint was not trained for: the method, K, and all options that the method declares."""
    if start.options is None:
        return []
    architecture = architecture_of(start.options)
    if family_of(architecture) != "dsp_transformer":
        return [("head_selection", f"dense ({architecture})", method_class(now).name)]
    before = PruningConfig.from_model_cfg(start.options)
    one, other = method_class(before), method_class(now)
    found: list[Change] = [] if one is other else [("head_selection", one.name, other.name)]
    own = ("recipe", "importance_from", *OPTIONS, *other.options) if one is other else ()
    given_layout = before.head_layout is not None or now.head_layout is not None  # which says in what groups
    names = (*_AS_GIVEN, *(() if given_layout else ("ffn_group",)), *own)
    return found + [(name, getattr(before, name), getattr(now, name)) for name in names if not _same(name, before, now)]


def _same(name: str, before: PruningConfig, now: PruningConfig) -> bool:
    """Whether an option is as it was; not given is the same as the value that the method takes by itself."""
    values = [getattr(before, name), getattr(now, name)]
    if values[0] == values[1]:
        return True
    if name == "recipe":  # before there were any, all trained by the paper's
        return (values[0] or PAPER) == (values[1] or PAPER)
    if None not in values or name in (*_AS_GIVEN, "ffn_group", "importance_from", *OPTIONS):
        return False
    ways = [method_class(now).from_config(replace(now, **{name: value})) for value in values]
    return ways[0] == ways[1] and next(value for value in values if value is not None) in vars(ways[0]).values()


def _moves_or_measures_others(start: Start, method: Method | None, changes: list[Change], now: PruningConfig) -> bool:
    """Whether the optimizer's state is of other parameters than those that are trained now, or the records are of another measure."""
    other = {"pipelined", "spectral_norm", "norm"}.intersection(name for name, *_ in changes)
    if start.chooses_heads != (method is not None) or other:
        return True
    if method is not None or family_of(architecture_of(start.options)) == "dsp_transformer":
        return False
    if (counted := now.unpruned_heads is not None or now.budget is not None) or now.head_layout is None:
        return counted
    return (given := resolve_layout(now.head_layout)) != Layout.full(given.grid)


def _must_stay(change: Change, start: Start, advice: str) -> str:
    name, before, now = change
    given = [value not in (None, False) for value in (before, now)]
    if not given[0]:
        return f"{flag(name)} must not be given to go on from {start.path}, which was trained without, but is {now}: {advice}."
    rule = f"{flag(name)} must stay {before}, for which {start.path} was trained"
    return f"{rule}, but is {now if given[1] else 'not given'}: {advice}."
