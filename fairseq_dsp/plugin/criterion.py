"""fairseq's label-smoothed cross entropy plus the method's penalty; logs temperature and penalty."""

from __future__ import annotations

from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.logging import metrics

from fairseq_dsp.errors import Refusal, exit_on_refusal
from fairseq_dsp.modules.label_smoothing import label_smoothed_nll
from fairseq_dsp.plugin.model import DspTransformerModel, unwrap


@register_criterion("label_smoothed_cross_entropy_dsp", dataclass=LabelSmoothedCrossEntropyCriterionConfig)
class LabelSmoothedCrossEntropyDspCriterion(LabelSmoothedCrossEntropyCriterion):
    """loss = label-smoothed cross entropy + sample size · penalty(importance).

    The penalty is scaled by the sample size, by which fairseq divides, so that its weight means the same at any batch
    size and any `--update-freq`.
    """

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, Any, dict[str, Any]]:
        """Computes the loss of a batch; see fairseq's criterion for the result."""
        dsp_model = unwrap(model)
        if model.training and not isinstance(dsp_model, DspTransformerModel):
            with exit_on_refusal():
                raise Refusal(
                    "`--criterion label_smoothed_cross_entropy_dsp` needs an `--arch` of dsp_transformer, but the model is "
                    f"{type(dsp_model).__name__}, which would train dense."
                )
        loss, sample_size, logged = super().forward(model, sample, reduce=reduce)
        gates = getattr(dsp_model, "head_gates", None)
        if gates is not None and model.training:
            penalty = gates.penalty()
            if penalty is not None:
                loss = loss + sample_size * penalty
                logged["head_penalty"] = penalty.detach()
            logged["dsp_batches"] = 1
            if gates.budget_now is not None and not gates.is_fixed:
                logged["heads_on"] = gates.budget_now.count
            temperature = gates.method.temperature(gates.update)
            if temperature is not None:
                logged["temperature"] = 0.0 if gates.is_fixed else temperature
        return loss, sample_size, logged

    def compute_loss(self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, Any]:
        """fairseq's loss, computed in fewer passes over the dictionary where it is asked for as one sum."""
        dsp_model = unwrap(model)
        plain = isinstance(dsp_model, DspTransformerModel) and dsp_model.decoder.adaptive_softmax is None
        if not plain or not reduce or self.ignore_prefix_size > 0:
            return super().compute_loss(model, net_output, sample, reduce=reduce)
        target = model.get_targets(sample, net_output)
        return label_smoothed_nll(net_output[0].flatten(0, -2), target.flatten(), self.eps, self.padding_idx)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Logs fairseq's figures, and ours averaged over the micro-batches."""
        super().reduce_metrics(logging_outputs)
        batches = sum(log.get("dsp_batches", 0) for log in logging_outputs)
        if not batches:
            return
        for name, digits in (("temperature", None), ("head_penalty", 4), ("heads_on", 1)):
            if any(name in log for log in logging_outputs):
                mean = sum(log.get(name, 0) for log in logging_outputs) / batches
                metrics.log_scalar(name, mean, weight=0, priority=310, round=digits)
