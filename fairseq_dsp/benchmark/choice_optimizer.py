"""The optimizer of an arm of `choice`, as fairseq-train's."""

from __future__ import annotations

from typing import Any

from fairseq_dsp.errors import Refusal
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.plugin.optimizer import DspAdam, DspAdamConfig


def optimizer_of(model: DspTransformerModel, lr: float, options: dict[str, Any]) -> DspAdam:
    cfg = DspAdamConfig(
        lr=[lr], adam_betas="(0.9, 0.98)", clip_norm=1.0, fp16=False, memory_efficient_fp16=False,
        fp16_no_flatten_grads=False, **optimizer_options(options),
    )  # fmt: skip
    return DspAdam(cfg, [parameter for parameter in model.parameters() if parameter.requires_grad])


def optimizer_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of an arm's options that are the optimizer's.

    Raises:
        Refusal: a value of the wrong type.
    """
    found: dict[str, Any] = {}
    if "importance_lr" in options:
        try:
            found["importance_lr"] = float(options["importance_lr"])
        except ValueError:
            raise Refusal(f"`--importance-lr` must be a number, but is {options['importance_lr']}.") from None
    if "importance_lr_follows_scheduler" in options:
        found["importance_lr_follows_scheduler"] = str(options["importance_lr_follows_scheduler"]).lower() == "true"
    return found
