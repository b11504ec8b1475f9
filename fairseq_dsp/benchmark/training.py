"""One update as fairseq-train does it: fairseq's own Trainer, task, criterion, optimizer and schedule, without data."""

from __future__ import annotations

from typing import Any

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import TASK_REGISTRY
from fairseq.trainer import Trainer
from torch import nn

from fairseq_dsp.benchmark.candidates import dictionaries_of
from fairseq_dsp.benchmark.settings import Settings
from fairseq_dsp.plugin.model import DspTransformerModel

# The README's recipe for IWSLT14 German-English.
_RECIPE = (
    "--label-smoothing 0.1 --adam-betas (0.9,0.98) --weight-decay 0.0001 --lr 5e-4 --lr-scheduler inverse_sqrt "
    "--warmup-updates 4000 --distributed-world-size 1 --log-format none"
).split()


def trainer_of(model: nn.Module, settings: Settings) -> Trainer:
    """fairseq's trainer around the model; ours are task, criterion and optimizer where the model is choosing heads."""
    gated = isinstance(model, DspTransformerModel) and model.head_gates is not None
    parts = ("translation_dsp", "label_smoothed_cross_entropy_dsp", "dsp_adam")
    if not gated:
        parts = ("translation", "label_smoothed_cross_entropy", "adam")
    arguments = ["", *_RECIPE, "--arch", "transformer_tiny"]  # the architecture is not built: the model is given
    for option, name in zip(("--task", "--criterion", "--optimizer"), parts, strict=True):
        arguments += [option, name]
    arguments += ["--cpu"] if settings.device == "cpu" else []
    if settings.dtype != "float32":
        arguments.append({"float16": "--fp16", "bfloat16": "--bf16"}[settings.dtype])
    if gated and settings.dtype == "float16":
        arguments.append("--fp16-no-flatten-grads")
    # the arguments name the task: the plug-in's parts are registered by importing the package
    parser = options.get_training_parser(default_task=parts[0])
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))
    cfg.common.tpu = False  # fairseq takes --bf16 for a TPU
    task = TASK_REGISTRY[parts[0]](cfg.task, *dictionaries_of(model))
    if gated:
        task.adopt(model)  # what its build_model would have done
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    trainer.cuda_env = None  # it would reset the peak of memory after every update
    return trainer


def update(trainer: Trainer, batch: dict[str, Any], heads_fixed: bool) -> None:
    """One update in the given phase. The batch is on the CPU, as the trainer gets it from its iterator.

    Args:
        heads_fixed: the cooldown is over; otherwise, with gates, half of it is.
    """
    gates = getattr(trainer.model, "head_gates", None)
    if gates is not None:
        end = gates.method.fixes_at
        trainer.set_num_updates(0 if end is None else end if heads_fixed else end // 2)
    trainer.train_step([batch])
