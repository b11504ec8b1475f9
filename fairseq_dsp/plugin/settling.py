"""`Settling`: fills in what a training's recipe says, and writes it into the model's cfg, which the checkpoint carries.

Held by `task`. What follows from the length of the training is known when fairseq has made the batches of its first epoch; nothing
has been drawn by then. A training that goes on takes what its checkpoint was trained with.
"""

from __future__ import annotations

import logging
from typing import Any

from fairseq_dsp.config import PruningConfig, flag, set_option
from fairseq_dsp.errors import Refusal, exit_on_refusal, noted
from fairseq_dsp.methods import method_class, objections_to_method
from fairseq_dsp.methods.nested import Nested
from fairseq_dsp.methods.recipe import derive, needs_length, objections_to_recipe, recipe_of
from fairseq_dsp.methods.schedule import AUTO
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.options.records import Options, TrainingOptions, given_of_ours
from fairseq_dsp.options.starting import start_to_go_on_from
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.plugin.optimizer import IMPORTANCE_LR

logger = logging.getLogger(__name__)


class Settling:
    """The recipe of one training.

    Args:
        training: what fairseq's options say of it.

    Attributes:
        importance_lr: what the recipe derived or the checkpoint was trained with; None where neither says.
    """

    def __init__(self, training: TrainingOptions) -> None:
        self.training = training
        self.importance_lr: float | None = None
        self._pending: Options | None = None
        self._window: int | None = None  # as given beside a recipe that is given too, until the length is known
        self._model_cfg: Options | None = None

    def begin(self, model_cfg: Options) -> list[str]:
        """Before the model is built: fills in what is known already.

        Returns:
            sentences on what cannot be.
        """
        reasons: list[str] = []
        with noted(reasons):
            config = PruningConfig.from_model_cfg(model_cfg)
            reasons += objections_to_recipe(config)
            if reasons or not method_class(config).has_window or self._goes_on(model_cfg, config):
                return reasons
            reasons += self._objections_to_length(config)
            self._window = config.cooldown_updates if config.recipe == AUTO else None
            self._model_cfg = model_cfg
            set_option(model_cfg, "recipe", recipe_of(config))
            self._fill_in(model_cfg, config, None)
            if needs_length(config):
                self._pending = model_cfg
            else:
                _tell(PruningConfig.from_model_cfg(model_cfg))
        return reasons

    def finish(self, model: DspTransformerModel, updates_an_epoch: int) -> None:
        """When batches are made: fills in what follows from the number of updates, once.

        Raises:
            SystemExit: a value that was given does not fit those that follow.
        """
        window, self._window = self._window, None
        if (
            window is not None
            and self.training.max_epoch > 0
            and window >= (updates := self._updates(updates_an_epoch))
        ):
            with exit_on_refusal():
                raise Refusal(_too_long(window, f"the {updates} updates of `--max-epoch` {self.training.max_epoch}"))
        model_cfg, self._pending = self._pending, None
        if model_cfg is None or model.head_gates is None:
            return
        updates = self._updates(updates_an_epoch)
        self._fill_in(model_cfg, PruningConfig.from_model_cfg(model_cfg), updates)
        config = PruningConfig.from_model_cfg(model_cfg)
        with exit_on_refusal():
            if reasons := objections_to_method(config):
                raise Refusal(*reasons)
        model.head_gates.take(method_class(config).from_config(config))
        if isinstance(model.head_gates, NestedGates) and (nested := Nested.from_config(config)) is not None:
            model.head_gates.nested = nested
        _tell(config, f" of {updates} updates")

    def rate(self, given: float | None) -> float:
        """The importance's learning rate where the optimizer is given none.

        What it is given was not derived, even where the model's options do not say so, as hydra's: from now on they do, and the log.
        """
        cfg, self._model_cfg = self._model_cfg, None
        names = str(given_of_ours(cfg).get("derived", "")).split(",") if cfg is not None and given is not None else []
        if cfg is not None and "importance_lr" in names:
            set_option(cfg, "importance_lr", given)
            set_option(cfg, "derived", ",".join(name for name in names if name != "importance_lr") or None)
            self.importance_lr = given
            logger.info("`--importance-lr` is %s as given, and nothing that is derived", given)
        return IMPORTANCE_LR if self.importance_lr is None else self.importance_lr

    def _goes_on(self, model_cfg: Options, config: PruningConfig) -> bool:
        """Whether training goes on from a checkpoint of the method; takes what its recipe had derived, unless another is asked for."""
        start = start_to_go_on_from(self.training)
        if start is None or start.options is None or not start.chooses_heads:
            return False
        before = PruningConfig.from_model_cfg(start.options)
        if method_class(before) is not method_class(config) or config.recipe not in (None, before.recipe):
            return start.option == "save_dir"  # which `starting` refuses
        given = given_of_ours(model_cfg)
        for name in ("recipe", "derived", *(before.derived or "").split(",")):
            if name and name not in given and getattr(before, name) is not None:
                set_option(model_cfg, name, getattr(before, name))
        if before.recipe is not None and "importance_lr" not in given:
            set_option(model_cfg, "importance_lr", before.importance_lr)
        self.importance_lr = given_of_ours(model_cfg).get("importance_lr")
        return True

    def _objections_to_length(self, config: PruningConfig) -> list[str]:
        longest = self.training.max_update
        if config.recipe == AUTO and 0 < longest <= (config.cooldown_updates or 0):
            return [_too_long(config.cooldown_updates, f"`--max-update` {longest}")]
        if not needs_length(config) or longest > 0 or self.training.max_epoch > 0:
            return []
        return [
            "`--max-update` or `--max-epoch` must be given for `--recipe auto`, which derives the window of the choice from the length of "
            f"the training, or the window itself ({flag('cooldown_updates')}), but none is."
        ]

    def _updates(self, an_epoch: int) -> int:
        limits = [
            self.training.max_update,
            self.training.max_epoch * an_epoch,
        ]
        return min(limit for limit in limits if limit > 0)

    def _fill_in(self, model_cfg: Options, config: PruningConfig, updates: int | None) -> None:
        values: dict[str, Any] = derive(config, updates)
        for name, value in values.items():
            set_option(model_cfg, name, value)
        names = [name for name in (config.derived or "").split(",") if name] + list(values)
        set_option(model_cfg, "derived", ",".join(names) or None)
        self.importance_lr = given_of_ours(model_cfg).get("importance_lr")


def _too_long(window: int | None, end: str) -> str:
    return (
        f"{flag('cooldown_updates')} must be below {end} with `--recipe {AUTO}`, or no update is left for the heads that are chosen, but "
        f"is {window}."
    )


def _tell(config: PruningConfig, length: str = "") -> None:
    if config.derived:
        told = ", ".join(f"{flag(name)} {getattr(config, name)}" for name in config.derived.split(","))
        logger.info("`--recipe %s`%s: %s", config.recipe, length, told)
