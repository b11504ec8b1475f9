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
from fairseq_dsp.methods.recipe import AUTO, derive, needs_length, objections_to_recipe, recipe_of
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.options.records import Options, TrainingOptions, given_of_ours
from fairseq_dsp.options.starting import start_to_go_on_from
from fairseq_dsp.plugin.model import DspTransformerModel

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
            return [
                f"{flag('cooldown_updates')} must be below `--max-update` {longest} with `--recipe {AUTO}`, or no update is left for the "
                f"heads that are chosen, but is {config.cooldown_updates}."
            ]
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


def _tell(config: PruningConfig, length: str = "") -> None:
    if config.derived:
        told = ", ".join(f"{flag(name)} {getattr(config, name)}" for name in config.derived.split(","))
        logger.info("`--recipe %s`%s: %s", config.recipe, length, told)
