"""`translation_dsp`: fairseq's translation task with a head budget, and with no sentence lost.

It holds the budget, refuses data folders that fairseq stumbles over, sees that all parts of a learned method are there, tells
the optimizer when heads are fixed, logs what becomes of them (`progress`), warns of a cooldown that the run cannot reach, and
builds validation and test batches that keep the last one.
"""

import functools
import logging
import sys
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq import checkpoint_utils
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.logging import metrics
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import II

from fairseq_dsp.config import PruningConfig, architecture_of, get_option, set_option
from fairseq_dsp.errors import Refusal, exit_on_refusal, noted
from fairseq_dsp.files.data_folder import DataFolder
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.plugin.costing import settle_budget
from fairseq_dsp.plugin.criterion import AT_BUDGET, LabelSmoothedCrossEntropyDspCriterion
from fairseq_dsp.plugin.importance_start import objections_to_importance_from, start_importance
from fairseq_dsp.plugin.model import DspTransformerModel, unwrap
from fairseq_dsp.plugin.objections import BUDGET_TASK, objections, objections_to_backend, objections_to_unknown_options
from fairseq_dsp.plugin.optimizer import IMPORTANCE_LR, dsp_adam_of
from fairseq_dsp.plugin.options import TrainingOptions, TransformerOptions
from fairseq_dsp.plugin.progress import HeadProgress, at_each_budget
from fairseq_dsp.plugin.settling import Settling
from fairseq_dsp.plugin.starting import objections_to_lack_of_start, objections_to_start, settle_floor

logger = logging.getLogger("fairseq_dsp.task")  # as logs have always named it

_ACCURACY = ("accuracy", "n_correct", "total")


# fairseq reads the types of these fields at run time: no postponed annotations here, and Optional for its parser.
@dataclass
class TranslationDspConfig(TranslationConfig):
    # text, so that a wrong value is ours to explain in one sentence
    unpruned_heads: Optional[str] = field(
        default=None,
        metadata={
            "help": "how many attention heads the model may keep, from 0 to all of them; with --head-selection hard-concrete also "
            "auto: the model then keeps every head whose gate is open"
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


@register_task("translation_dsp", dataclass=TranslationDspConfig)
class TranslationDspTask(TranslationTask):
    """Translation under a head budget."""

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

    def __init__(self, cfg: TranslationDspConfig, src_dict: Any, tgt_dict: Any) -> None:
        super().__init__(cfg, src_dict, tgt_dict)
        with exit_on_refusal():  # here, for fairseq wraps the model's construction already
            if reasons := objections_to_backend(str(getattr(cfg, "ddp_backend", ""))):
                raise Refusal(*reasons)
        self._trains = False
        self._learns_heads = False
        self._adaptive_softmax = False
        self._updates_an_epoch: int | None = None
        self._warned_of_cooldown = False
        self._progress = HeadProgress()
        self._training = TrainingOptions.of(cfg)
        self._settling = Settling(self._training)
        self._model: DspTransformerModel | None = None

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Builds the model; when training starts, hands it the budget and refuses what would train dense."""
        if from_checkpoint:
            return super().build_model(cfg, from_checkpoint)
        self._trains = True
        _forget_earlier_runs()
        name = architecture_of(cfg)
        with exit_on_refusal():
            if not issubclass(ARCH_MODEL_REGISTRY.get(name, object), DspTransformerModel):
                raise Refusal(
                    f"`--arch` must be a dsp_transformer for `--task translation_dsp`, but is {name}, which would train "
                    "dense: for that, use `--task translation`."
                )
            reasons = []
            for option, value in (("unpruned_heads", self.cfg.unpruned_heads), ("seed", self.cfg.seed)):
                given = get_option(cfg, option, value)
                if value is not None and str(given) != str(value):
                    reasons.append(f"`task.{option}` and `model.{option}` must agree, but are {value} and {given}.")
                set_option(cfg, option, given)
            set_option(cfg, BUDGET_TASK, "translation_dsp")
            with noted(reasons):
                total = getattr(TransformerOptions.of(cfg).grid, "total", None)
                folder = self.cfg.data, self.cfg.source_lang, self.cfg.target_lang
                for option, value in settle_budget(PruningConfig.from_model_cfg(cfg), total, *folder).items():
                    set_option(cfg, option, value)
            settle_floor(self._training, cfg)
            with noted(reasons):
                reasons += objections(cfg) or self._settling.begin(cfg) or objections(cfg)
            reasons += objections_to_unknown_options(cfg) + objections_to_lack_of_start(self._training, cfg)
            # an option that cannot be read is among the reasons already
            reasons += [reason for reason in objections_to_start(self._training, cfg) if reason not in reasons]
            if not reasons:
                reasons += objections_to_importance_from(self._training, PruningConfig.from_model_cfg(cfg))
            if reasons:
                raise Refusal(*dict.fromkeys(reasons))
        model = super().build_model(cfg, from_checkpoint)
        with exit_on_refusal():
            start_importance(self._training, PruningConfig.from_model_cfg(cfg), model)
        model.adopts_dense_state, model.unchecked = True, None
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
        reasons = self._objections_to_metric(criterion)
        if self._learns_heads and not isinstance(criterion, LabelSmoothedCrossEntropyDspCriterion):
            reasons.append(
                "`--criterion` must be label_smoothed_cross_entropy_dsp for `--task translation_dsp`, but is "
                f"{get_option(cfg, '_name')}."
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

    def _objections_to_metric(self, criterion: Any) -> list[str]:
        """Sentences on a metric that no validation yields: fairseq looks for it when the first one is over."""
        metric, largest = self.cfg.best_checkpoint_metric, self.cfg.maximize_best_checkpoint_metric
        if not self._trains or self.cfg.disable_validation:
            return []
        if metric == "bleu" and not self.cfg.eval_bleu:
            return ["`--best-checkpoint-metric bleu` needs `--eval-bleu`, but it is not given."]
        errors, successes = ("loss", "nll_loss", "ppl"), ("bleu", "accuracy")
        if metric in (successes if not largest else errors):
            logger.warning(
                "`--best-checkpoint-metric %s` %s `--maximize-best-checkpoint-metric` keeps the worst checkpoint.",
                metric,
                "with" if largest else "without",
            )
        if not isinstance(criterion, LabelSmoothedCrossEntropyCriterion):
            return []  # what others log is theirs to know
        if metric in _ACCURACY and not criterion.report_accuracy:
            return [f"`--best-checkpoint-metric {metric}` needs `--report-accuracy`, but it is not given."]
        known = (*errors, "bleu", *_ACCURACY)
        if metric in (*known, "wps", "wpb", "bsz") or metric.startswith(("heads_", "importance_", AT_BUDGET)):
            return []
        return [f"`--best-checkpoint-metric` must be one of {', '.join(known)}, but is {metric}."]

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        """One micro-batch, as in fairseq."""
        if self._learns_heads:
            dsp_adam_of(optimizer).wrapper = optimizer if hasattr(optimizer, "_multiply_factor") else None
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """One update; importance variables stay where they are once the heads are fixed."""
        if not self._learns_heads:
            super().optimizer_step(optimizer, model, update_num)
            return
        adam, gates = dsp_adam_of(optimizer), unwrap(model).head_gates
        adam.importance_is_fixed = gates.is_fixed
        adam.recipe_lr = self._settling.importance_lr or IMPORTANCE_LR
        super().optimizer_step(optimizer, model, update_num)
        if not gates.is_fixed:
            self._progress.note(gates, adam.importance[0].grad, update_num + 1)
        if (update_num + 1) % (self.cfg.log_interval or 1) == 0:
            self._progress.look(gates)  # the updates whose figures fairseq prints

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        """As in fairseq; a model of a range of budgets is validated at several of them, and its loss is their mean."""
        gates = getattr(unwrap(model), "head_gates", None)
        step = functools.partial(super().valid_step, sample, model, criterion)
        return at_each_budget(gates, step) if isinstance(gates, NestedGates) else step()

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Notes the heads that are validated."""
        super().begin_valid_epoch(epoch, model)
        if self._learns_heads:
            self._progress.validate(unwrap(model).head_gates)

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Logs fairseq's figures, and what became of the heads."""
        super().reduce_metrics(logging_outputs, criterion)
        for name, value in self._progress.figures.items():
            metrics.log_scalar(name, value, weight=0, priority=320, round=3)

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Warns once, at the start, of a cooldown that the run cannot reach."""
        super().begin_epoch(epoch, model)
        gates = getattr(unwrap(model), "head_gates", None)
        if gates is not None:
            self._progress.start(gates)
        if gates is None or gates.method.fixes_at is None or self._warned_of_cooldown:
            return
        self._warned_of_cooldown = True
        limits = []
        if self.cfg.max_update:
            limits.append((self.cfg.max_update, f"`--max-update` {self.cfg.max_update}"))
        if self.cfg.max_epoch and self._updates_an_epoch is not None:
            updates = self.cfg.max_epoch * self._updates_an_epoch
            limits.append((updates, f"`--max-epoch` {self.cfg.max_epoch} ({updates} updates)"))
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
            frequency = self.cfg.update_freq
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
        return self._trains and dataset is self.datasets.get(self.cfg.train_subset)


def _forget_earlier_runs() -> None:
    """Drops the best scores that fairseq keeps on its functions.

    `fairseq-hydra-train -m` trains in one process: a run would compare itself with those before it, and leave no
    `checkpoint_best.pt`, or stop early, where they were better.
    """
    stopping = getattr(sys.modules.get("fairseq_cli.train"), "should_stop_early", None)
    for function in (checkpoint_utils.save_checkpoint, stopping):
        if function is not None:
            vars(function).pop("best", None)
