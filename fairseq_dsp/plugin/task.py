"""A head budget for any translation task of fairseq (`BudgetTask`), and `translation_dsp`: fairseq's translation task with it.

It holds the budget, refuses data folders that fairseq stumbles over, sees that all parts of a learned method are there, tells
the optimizer when heads are fixed, logs what becomes of them (`progress`), warns of a cooldown that the run cannot reach, and
builds validation and test batches that keep the last one.
"""

import functools
import logging
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass.configs import CheckpointConfig
from fairseq.logging import metrics
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import II

from fairseq_dsp.config import PruningConfig, architecture_of, set_option
from fairseq_dsp.errors import Refusal, exit_on_refusal, noted
from fairseq_dsp.files.data_folder import DataFolder
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.options.costing import settle_budget
from fairseq_dsp.options.kinds import chosen_of, refuse_heads_of_other_kinds, refuse_unfit_choice
from fairseq_dsp.options.languages import BILINGUAL, BILINGUAL_BUDGET, BUDGET_TASK
from fairseq_dsp.options.objections import objections, objections_to_backend, objections_to_unknown_options
from fairseq_dsp.options.records import CriterionOptions, OptimizerOptions, TaskOptions, TrainingOptions, given_of_ours
from fairseq_dsp.options.starting import objections_to_lack_of_start, objections_to_start, settle_floor
from fairseq_dsp.plugin.best_metric import forget_earlier_runs, objections_to_metric
from fairseq_dsp.plugin.criterion import LabelSmoothedCrossEntropyDspCriterion
from fairseq_dsp.plugin.importance_start import objections_to_importance_from, start_importance
from fairseq_dsp.plugin.model import DspTransformerModel, unwrap
from fairseq_dsp.plugin.optimizer import dsp_adam_of, refuse_rates
from fairseq_dsp.plugin.progress import HeadProgress, at_each_budget, tell_what_is_given
from fairseq_dsp.plugin.settling import Settling

logger = logging.getLogger("fairseq_dsp.task")  # as logs have always named it


# fairseq reads the types of these fields at run time: no postponed annotations here, and Optional for its parser.
@dataclass
class TranslationDspConfig(TranslationConfig):
    # text, so that a wrong value is ours to explain in one sentence
    unpruned_heads: Optional[str] = field(
        default=None,
        metadata={
            "help": "how many attention heads the model may keep, from 0 to all of them; with --head-selection hard-concrete or site-threshold "
            "also auto: the model then keeps every head whose gate is open"
        },
    )
    seed: int = II("common.seed")
    log_interval: int = II("common.log_interval")
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")
    update_freq: Any = II("optimization.update_freq")
    save_dir: str = II("checkpoint.save_dir")
    restore_file: str = II("checkpoint.restore_file")
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    if "continue_once" in CheckpointConfig.__dataclass_fields__:
        continue_once: Optional[str] = II("checkpoint.continue_once")
    checkpoint_suffix: str = II("checkpoint.checkpoint_suffix")
    reset_optimizer: bool = II("checkpoint.reset_optimizer")
    reset_dataloader: bool = II("checkpoint.reset_dataloader")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    disable_validation: bool = II("dataset.disable_validation")
    ddp_backend: Any = II("distributed_training.ddp_backend")


class BudgetTask:
    """What a head budget adds to a translation task of fairseq; stands before the task among a class's parents.

    Attributes:
        budget_name: what `--task` takes for the class.
        stock_name: likewise, for the same task without a budget.
        given: what the task's options say.
    """

    budget_name: str
    stock_name: str

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.given = TaskOptions.of(self.options)
        with exit_on_refusal():  # here, for fairseq wraps the model's construction already
            if reasons := objections_to_backend(str(self.given.ddp_backend)):
                raise Refusal(*reasons)
        self._trains = self._learns_heads = self._adaptive_softmax = False
        self._updates_an_epoch: int | None = None
        self._warned_of_cooldown = False
        self._progress = HeadProgress()
        self._training = TrainingOptions.of(self.options)
        self._settling = Settling(self._training)
        self._model: DspTransformerModel | None = None

    @property
    def options(self) -> Any:
        """The task's options; tasks that fairseq calls legacy keep them as `args`."""
        return self.args if self.cfg is None else self.cfg

    def settle_languages(self, cfg: Any) -> list[str]:
        """Writes what a checkpoint must say of its languages into a model's options; returns sentences on languages and data."""
        return []

    def metrics(self) -> dict[str, str]:
        """Figures of validation, beside fairseq's, that may choose the best checkpoint, each with fairseq's that it is like."""
        return {}

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Builds the model; when training starts, hands it the budget and refuses what would train dense."""
        if from_checkpoint:
            return super().build_model(cfg, from_checkpoint)
        self._trains = True
        forget_earlier_runs()
        name = architecture_of(cfg)
        with exit_on_refusal():
            if not issubclass(ARCH_MODEL_REGISTRY.get(name, object), DspTransformerModel):
                raise Refusal(
                    f"`--arch` must be a dsp_transformer for `--task {self.budget_name}`, but is {name}, which would train "
                    f"dense: for that, use `--task {self.stock_name}`."
                )
            reasons = []
            for option, value in (("unpruned_heads", self.given.unpruned_heads), ("seed", self.given.seed)):
                given = given_of_ours(cfg).get(option, value)
                if value is not None and str(given) != str(value):
                    reasons.append(f"`task.{option}` and `model.{option}` must agree, but are {value} and {given}.")
                set_option(cfg, option, given)
            set_option(cfg, BUDGET_TASK, self.budget_name)
            with noted(reasons):
                settle_budget(cfg, self.given.data, *self.given.languages)
            settle_floor(self._training, cfg)
            with noted(reasons):
                settled = self._settling.begin(cfg)  # first, for what is given must fit what it fills in
                reasons += objections(cfg) or settled
            reasons += objections_to_unknown_options(cfg) + objections_to_lack_of_start(self._training, cfg)
            reasons += self.settle_languages(cfg)
            # an option that cannot be read is among the reasons already
            reasons += [reason for reason in objections_to_start(self._training, cfg) if reason not in reasons]
            if not reasons:
                reasons += objections_to_importance_from(self._training, PruningConfig.from_model_cfg(cfg))
            if reasons:
                raise Refusal(*dict.fromkeys(reasons))
            given = PruningConfig.from_model_cfg(cfg)
        model, config = super().build_model(cfg, from_checkpoint), PruningConfig.from_model_cfg(cfg)
        with exit_on_refusal():
            refuse_heads_of_other_kinds(chosen_of(config, model.layout), given)
            refuse_unfit_choice(model.head_gates, config)
            refuse_rates(OptimizerOptions.of(cfg).importance_lr_of, model.head_gates)
            start_importance(self._training, config, model)
        model.adopts_dense_state, model.unchecked = True, None
        tell_what_is_given(model, config)
        self.adopt(model)
        return model

    def adopt(self, model: DspTransformerModel) -> None:
        """Notes what training will ask of the model; `build_model` calls it, and whoever has a model from elsewhere."""
        self._model = model
        self._learns_heads = model.head_gates is not None
        self._adaptive_softmax = model.decoder.adaptive_softmax is not None

    def build_criterion(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """Builds the criterion; refuses one that would lose the penalty, or that cannot train the model or choose the best."""
        criterion = super().build_criterion(cfg, *args, **kwargs)  # fairseq 0.12.2 takes the cfg alone
        reasons = objections_to_metric(self.given, criterion, self.metrics()) if self._trains else []
        if self._learns_heads and not isinstance(criterion, LabelSmoothedCrossEntropyDspCriterion):
            reasons.append(
                f"`--criterion` must be label_smoothed_cross_entropy_dsp for `--task {self.budget_name}`, but is "
                f"{CriterionOptions.of(cfg).name}."
            )
        if self._adaptive_softmax and isinstance(criterion, LabelSmoothedCrossEntropyDspCriterion):
            # fairseq's criterion, from which ours comes, has no gradient there
            reasons.append(
                "`--adaptive-softmax-cutoff` must not be given with `--criterion label_smoothed_cross_entropy_dsp`: only "
                "`--criterion adaptive_loss` trains it, with given heads (`--head-layout`)."
            )
        if reasons:
            with exit_on_refusal():
                raise Refusal(*reasons)
        if self._trains and isinstance(criterion, LabelSmoothedCrossEntropyDspCriterion):
            criterion.prepare()
        return criterion

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        """One micro-batch, as in fairseq."""
        if self._learns_heads:
            wrapper = optimizer if hasattr(optimizer, "_multiply_factor") else None
            dsp_adam_of(optimizer, self.budget_name).wrapper = wrapper
            unwrap(model).head_gates.begin_batch(counts=not ignore_grad)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """One update; importance variables stay where they are once the heads are fixed."""
        if not self._learns_heads:
            super().optimizer_step(optimizer, model, update_num)
            return
        adam, gates = dsp_adam_of(optimizer, self.budget_name), unwrap(model).head_gates
        adam.importance_is_fixed = gates.is_fixed
        adam.recipe_lr, adam.places = self._settling.rate(adam.cfg.importance_lr), gates.chosen.places()
        super().optimizer_step(optimizer, model, update_num)
        gates.end_update()
        if not gates.is_fixed:
            self._progress.note(gates, adam.importance[0].grad, update_num + 1)
        if (update_num + 1) % (self.given.log_interval or 1) == 0:
            self._progress.look(gates)  # the updates whose figures fairseq prints

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        """As in fairseq; a model of a range of budgets is validated at several of them, and its loss is their mean."""
        gates = getattr(unwrap(model), "head_gates", None)
        step = functools.partial(self.validate, sample, model, criterion)
        return at_each_budget(gates, step) if isinstance(gates, NestedGates) else step()

    def validate(self, sample: Any, model: Any, criterion: Any) -> Any:
        """fairseq's validation of a batch, with the heads that the model has now."""
        return super().valid_step(sample, model, criterion)

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Notes the heads that are validated."""
        super().begin_valid_epoch(epoch, model)
        if self._learns_heads:
            self._progress.validate(unwrap(model).head_gates)

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Logs fairseq's figures, and what became of the heads."""
        super().reduce_metrics(logging_outputs, criterion)
        for name, value in self._progress.figures.items():
            metrics.log_scalar(name, value, weight=0, priority=320, round=6 if name == "norm_threshold" else 3)

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Warns once, at the start, of a cooldown that the run cannot reach."""
        super().begin_epoch(epoch, model)
        gates = getattr(unwrap(model), "head_gates", None)
        if gates is not None:
            self._progress.start(gates)
        if gates is None or gates.method.fixes_at is None or self._warned_of_cooldown:
            return
        self._warned_of_cooldown = True
        limits, last_update, last_epoch = [], self._training.max_update, self._training.max_epoch
        if last_update:
            limits.append((last_update, f"`--max-update` {last_update}"))
        if last_epoch and self._updates_an_epoch is not None:
            updates = last_epoch * self._updates_an_epoch
            limits.append((updates, f"`--max-epoch` {last_epoch} ({updates} updates)"))
        for updates, limit in limits:
            if updates <= gates.method.fixes_at:
                logger.warning(
                    "`--cooldown-updates` should be below the end of training, but is %d and %s ends it first: the heads "
                    "will never be fixed.",
                    gates.method.fixes_at,
                    limit,
                )

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As in fairseq, but validation and generation keep the last batch.

        fairseq drops a last batch whose size does not divide by `--required-batch-size-multiple` (8 by default).
        """
        training = self._is_training_set(dataset)
        if not training:
            kwargs["required_batch_size_multiple"] = 1
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if training:
            frequency = self.given.update_freq
            frequency = frequency if isinstance(frequency, int) else (list(frequency or [1]))[-1]
            self._updates_an_epoch = -(-len(iterator) // frequency)
            if self._model is not None:
                self._settling.finish(self._model, self._updates_an_epoch)
        return iterator

    def can_reuse_epoch_itr(self, dataset: Any) -> bool:
        """As in fairseq, but every epoch of training makes its own batches.

        fairseq seeds their making by the epoch and keeps the first ones: a run that is resumed in its second epoch would
        go on with other batches than one that was never stopped.
        """
        return not self._is_training_set(dataset) and super().can_reuse_epoch_itr(dataset)

    def _is_training_set(self, dataset: Any) -> bool:
        return self._trains and dataset is self.datasets.get(self.given.train_subset)


@register_task(BILINGUAL_BUDGET, dataclass=TranslationDspConfig)
class TranslationDspTask(BudgetTask, TranslationTask):
    """Translation under a head budget."""

    budget_name, stock_name = BILINGUAL_BUDGET, BILINGUAL
    cfg: TranslationDspConfig

    @classmethod
    def setup_task(cls, cfg: TranslationDspConfig, **kwargs: Any) -> "TranslationDspTask":
        """fairseq's, which leaves a folder without the languages or with broken dictionaries to a traceback."""
        if "://" not in cfg.data:
            with exit_on_refusal():
                found = DataFolder(cfg.data, cfg.source_lang, cfg.target_lang, "the data folder")
                found.dictionaries()
                cfg.source_lang, cfg.target_lang = found.source, found.target
        return super().setup_task(cfg, **kwargs)
