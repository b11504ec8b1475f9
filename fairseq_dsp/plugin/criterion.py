"""fairseq's label-smoothed cross entropy, with a teacher if one is given, plus the method's penalty; logs temperature and penalty."""

import math
import time
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.logging import metrics
from omegaconf import II

from fairseq_dsp.errors import Refusal, exit_on_refusal
from fairseq_dsp.modules.label_smoothing import distilled_nll, label_smoothed_nll
from fairseq_dsp.modules.nested_gates import NestedGates
from fairseq_dsp.plugin.model import DspTransformerModel, unwrap
from fairseq_dsp.plugin.teacher import (
    DISTILLATION,
    Said,
    Teacher,
    objections_to_distillation,
    objections_to_languages,
    objections_to_vocabulary,
)

# Names under which a model of a range of budgets logs its loss at each that is looked at, before the number of heads.
AT_BUDGET = "nll_k"


# fairseq reads the types of these fields at run time: no postponed annotations here, and Optional for its parser.
@dataclass
class DspCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    teacher: Optional[str] = field(
        default=None,
        metadata={"help": "a trained model's checkpoint, whose distribution over words is learned beside the target"},
    )
    distillation: Optional[float] = field(
        default=None,
        metadata={"help": "share of what is learned from --teacher (default: 0.5), the rest from the target"},
    )
    save_dir: str = II("checkpoint.save_dir")
    restore_file: str = II("checkpoint.restore_file")
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    checkpoint_suffix: str = II("checkpoint.checkpoint_suffix")
    reset_optimizer: bool = II("checkpoint.reset_optimizer")


@register_criterion("label_smoothed_cross_entropy_dsp", dataclass=DspCriterionConfig)
class LabelSmoothedCrossEntropyDspCriterion(LabelSmoothedCrossEntropyCriterion):
    """loss = (1 - a) label-smoothed cross entropy + a KL(teacher || model) + sample size · penalty(importance).

    The penalty is scaled by the sample size, by which fairseq divides, so that its weight means the same at any batch
    size and any `--update-freq`. a is 0 without a teacher, and in validation.
    """

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
        cfg: Any = None,
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        self.cfg = cfg
        self.teacher: Teacher | Said | None = None
        self.share = 0.0
        self._prepared = cfg is None
        # a task of the old kind has `args`, one of the new `cfg`
        self._task = getattr(task, "args", None) or getattr(task, "cfg", None)
        self._words = {"encoder": len(getattr(task, "source_dictionary", ())), "decoder": len(task.target_dictionary)}
        self._apart: list[torch.Tensor] = []  # of every pass of the batch that the teacher has taught; likewise:
        self._seconds: list[float] = []
        self._said: torch.Tensor | None = None

    def prepare(self) -> None:
        """Reads the teacher, once. Called when training starts: fairseq builds criterions for validation too.

        Raises:
            SystemExit: options that cannot be honoured.
        """
        if self._prepared:
            return
        self._prepared = True
        with exit_on_refusal():
            if reasons := objections_to_distillation(self.cfg):
                raise Refusal(*reasons)
            if self.cfg.teacher is not None:
                teacher = Teacher.of(self.cfg.teacher)
                reasons = objections_to_vocabulary(self.cfg.teacher, teacher, self._words)
                if reasons := reasons or objections_to_languages(self.cfg.teacher, self._task):
                    raise Refusal(*reasons)
                self.teach(teacher, DISTILLATION if self.cfg.distillation is None else self.cfg.distillation)

    def teach(self, teacher: Teacher, share: float) -> None:
        """From now on so much is learned from a teacher."""
        self.teacher, self.share = teacher, share

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, Any, dict[str, Any]]:
        """Computes the loss of a batch; see fairseq's criterion for the result."""
        dsp_model = unwrap(model)
        if model.training and not isinstance(dsp_model, DspTransformerModel):
            with exit_on_refusal():
                raise Refusal(
                    "`--criterion label_smoothed_cross_entropy_dsp` needs an `--arch` of dsp_transformer, but the model is "
                    f"{type(dsp_model).__name__}, which would train dense."
                )
        if model.training:
            self.prepare()
        gates = getattr(dsp_model, "head_gates", None)
        if model.training and isinstance(gates, NestedGates):
            loss, sample_size, logged = self._of_each(gates, lambda: self._of_pass(model, sample, reduce))
        else:
            loss, sample_size, logged = self._of_pass(model, sample, reduce)
        if self._apart:
            apart = sum(self._apart) / len(self._apart)
            logged |= {"teacher_kl": apart, "teacher_seconds": sum(self._seconds), "teacher_batches": 1}
            self._apart, self._seconds = [], []
        if gates is not None and model.training:
            penalty = gates.penalty()
            if penalty is not None:
                loss = loss + sample_size * penalty
                logged["head_penalty"] = penalty.detach()
            logged["dsp_batches"] = 1
            if gates.budget_now is not None and gates.budget_now.is_even and not gates.is_fixed and not gates.varies:
                logged["heads_on"] = gates.budget_now.count
            temperature = gates.method.temperature(gates.update)
            if temperature is not None:
                logged["temperature"] = 0.0 if gates.is_fixed else temperature
        return loss, sample_size, logged

    def _of_pass(self, model: Any, sample: dict[str, Any], reduce: bool) -> tuple[Any, Any, dict[str, Any]]:
        return super().forward(model, sample, reduce=reduce)

    def _of_each(self, gates: NestedGates, of_pass: Any) -> tuple[Any, Any, dict[str, Any]]:
        """The mean over the budgets that an update trains; the largest may teach the others (`--self-distillation`)."""
        passes, before = gates.nested.passes_at(gates.update), (self.teacher, self.share)
        losses, logs = [], []
        try:
            for k in passes:
                with gates.at(k):
                    loss, sample_size, logged = of_pass()
                losses.append(loss)
                logs.append(logged)
                if gates.nested.self_distillation and self._said is not None:
                    self.teacher, self.share = Said(self._said), gates.nested.self_distillation
        finally:
            (self.teacher, self.share), self._said = before, None
        for name in ("loss", "nll_loss"):
            logs[0][name] = sum(log[name] for log in logs) / len(logs)
        logs[0]["heads_on"] = sum(passes) / len(passes)
        return sum(losses) / len(losses), sample_size, logs[0]

    def compute_loss(self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, Any]:
        """fairseq's loss, computed in fewer passes over the dictionary where it is asked for as one sum."""
        dsp_model = unwrap(model)
        plain = isinstance(dsp_model, DspTransformerModel) and dsp_model.decoder.adaptive_softmax is None
        if self.teacher is not None and model.training and not plain:
            with exit_on_refusal():
                raise Refusal("`--teacher` must be given to a model with a plain softmax, but this one's is adaptive.")
        if not plain or not reduce or self.ignore_prefix_size > 0:
            return super().compute_loss(model, net_output, sample, reduce=reduce)
        target = model.get_targets(sample, net_output)
        gates = dsp_model.head_gates
        if model.training and isinstance(gates, NestedGates) and gates.nested.self_distillation and self._said is None:
            self._said = net_output[0].detach()
        if self.teacher is not None and model.training:
            begin = time.perf_counter()
            teacher = self.teacher.logits(dsp_model, sample["net_input"])
            seconds = time.perf_counter() - begin
            loss, nll, apart = distilled_nll(
                net_output[0].flatten(0, -2),
                target.flatten(),
                self.eps,
                self.padding_idx,
                teacher.flatten(0, -2),
                self.share,
            )
            if isinstance(self.teacher, Teacher):  # what the model has said itself is none of `--teacher`
                self._apart.append(apart)
                self._seconds.append(seconds)
            return loss, nll
        return label_smoothed_nll(net_output[0].flatten(0, -2), target.flatten(), self.eps, self.padding_idx)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Logs fairseq's figures, and ours averaged over the micro-batches."""
        super().reduce_metrics(logging_outputs)
        if sum(log.get("teacher_batches", 0) for log in logging_outputs):
            tokens = sum(log.get("ntokens", 0) for log in logging_outputs)
            apart = sum(log.get("teacher_kl", 0) for log in logging_outputs)
            metrics.log_scalar("teacher_kl", apart / tokens / math.log(2), tokens, priority=305, round=3)
            # the host's time: on a GPU, which works on by itself, it is no measure
            seconds = sum(log.get("teacher_seconds", 0) for log in logging_outputs)
            metrics.log_scalar("teacher_wall", seconds, weight=0, priority=306, round=3)
        budgets = {name for log in logging_outputs for name in log if name.startswith(AT_BUDGET)}
        for name in sorted(budgets, key=lambda name: int(name.removeprefix(AT_BUDGET))):
            total, tokens = (sum(log.get(part, 0) for log in logging_outputs) for part in (name, "budget_tokens"))
            metrics.log_scalar(name, total / tokens / math.log(2), tokens, priority=307, round=3)
        batches = sum(log.get("dsp_batches", 0) for log in logging_outputs)
        if not batches:
            return
        for name, digits in (("temperature", None), ("head_penalty", 4), ("heads_on", 1)):
            if any(name in log for log in logging_outputs):
                mean = sum(log.get(name, 0) for log in logging_outputs) / batches
                metrics.log_scalar(name, mean, weight=0, priority=310, round=digits)
