"""`dsp_adam` alone and inside fairseq's real half-precision wrappers: the two groups are clipped apart."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from commands import budget, training
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim import build_optimizer
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from omegaconf import OmegaConf

from fairseq_dsp.modules.gates import IMPORTANCE_GROUP

CLIP = 0.5
WEIGHT_GRADIENT, IMPORTANCE_GRADIENT = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([0.25, 0.0, 0.75])
SMALL = torch.tensor([0.25, 0.0, 0.125])  # below the limit: must not be touched


def config(fp16: bool, bf16: bool, clip: float = CLIP):
    optimizer = {"_name": "dsp_adam", "lr": [0.1], "adam_betas": "(0.9, 0.98)", "fp16": fp16, "clip_norm": clip}
    optimizer |= {"fp16_no_flatten_grads": True, "tpu": False}
    optimizer |= {"memory_efficient_fp16": False}
    common = {"fp16": fp16, "bf16": bf16, "fp16_no_flatten_grads": True, "fp16_scale_window": 4}
    common |= {"fp16_init_scale": 8, "fp16_scale_tolerance": 0.0, "threshold_loss_scale": None}
    common |= {"min_loss_scale": 1e-4, "memory_efficient_fp16": False}
    return OmegaConf.create({"optimizer": optimizer, "common": common, "optimization": {"update_freq": [1]}})


def parameters(dtype: torch.dtype):
    weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=dtype))
    weight.param_group = "default"
    importance = torch.nn.Parameter(torch.zeros(3))
    importance.param_group = IMPORTANCE_GROUP
    return weight, importance


def clipped(kind: str, importance_gradient: torch.Tensor, clip: float = CLIP, pipelined: bool = False):
    """Gradients that Adam would step on: of the weight and of the importance, and the norm that fairseq logs.

    With `pipelined` importance variables are trained alone.
    """
    dtype = {"plain": torch.float32, "fp16": torch.float16, "efficient fp16": torch.float16}.get(kind, torch.bfloat16)
    cfg = config(dtype == torch.float16, dtype == torch.bfloat16, clip)
    weight, importance = parameters(dtype)
    scale = 8.0 if dtype == torch.float16 else 1.0
    trained = [importance] if pipelined else [weight, importance]
    if kind == "plain":
        inner = optimizer = build_optimizer(cfg.optimizer, trained)
    else:
        wrapper = MemoryEfficientFP16Optimizer if "efficient" in kind else FP16Optimizer
        optimizer = wrapper.build_optimizer(cfg, trained)
        inner = optimizer.fp32_optimizer if wrapper is FP16Optimizer else optimizer.wrapped_optimizer
        inner.wrapper = optimizer
        optimizer.zero_grad()
        optimizer._needs_sync = True
    weight.grad = (WEIGHT_GRADIENT * scale).to(dtype)
    importance.grad = importance_gradient * scale
    norm = optimizer.clip_grad_norm(clip)
    seen = {}

    def step(*args, **kwargs):
        for group in inner.param_groups:
            for parameter in group["params"]:
                seen[parameter.dim()] = parameter.grad.float().clone()

    with mock.patch.object(inner.optimizer, "step", step):
        optimizer.step()
    return seen.get(2), seen[1], float(norm)


KINDS = ["plain", "fp16", "bf16", "efficient fp16", "efficient bf16"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("importance_gradient", [IMPORTANCE_GRADIENT, SMALL], ids=["large", "small"])
def test_the_two_groups_are_clipped_apart(kind: str, importance_gradient: torch.Tensor):
    weight, importance, norm = clipped(kind, importance_gradient)
    tolerance = 0.01 if kind != "plain" else 1e-5
    assert weight.norm().item() == pytest.approx(CLIP, rel=tolerance)
    assert importance.norm().item() == pytest.approx(min(CLIP, importance_gradient.norm().item()), rel=tolerance)
    assert norm == pytest.approx(5.0, rel=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("importance_gradient", [IMPORTANCE_GRADIENT, SMALL], ids=["large", "small"])
def test_importance_trained_alone_is_clipped_once(kind: str, importance_gradient: torch.Tensor):
    _, importance, norm = clipped(kind, importance_gradient, pipelined=True)
    tolerance = 0.01 if kind != "plain" else 1e-5
    size = importance_gradient.norm().item()
    assert importance.norm().item() == pytest.approx(min(CLIP, size), rel=tolerance)
    assert norm == pytest.approx(size, rel=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_limit_nothing_is_clipped(kind: str):
    weight, importance, _ = clipped(kind, IMPORTANCE_GRADIENT, clip=0.0)
    assert torch.allclose(weight, WEIGHT_GRADIENT)
    assert torch.allclose(importance, IMPORTANCE_GRADIENT)


@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_the_largest_gradient_is_one_of_the_mean_loss_whatever_the_step_divides_by(scale: float):
    weight, importance = parameters(torch.float32)
    optimizer = build_optimizer(config(False, False).optimizer, [weight, importance])
    weight.grad = torch.zeros(2, 2)
    importance.grad = scale * torch.tensor([900.0, 1e9, -1e9])
    with mock.patch.object(optimizer.optimizer, "step"):
        optimizer.step(scale=scale)
    assert importance.grad.tolist() == [900.0, 1e3, -1e3]


def groups(optimizer) -> list[tuple[float, float]]:
    """Learning rate and weight decay of the weights and of the importance, as Adam steps with them."""
    for parameter in optimizer.params:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]


@pytest.mark.parametrize(("follows", "importance_lr"), [(False, 0.2), (True, 0.02)])
def test_a_scheduler_that_writes_to_all_groups_leaves_the_importance_its_learning_rate(
    follows: bool, importance_lr: float
):
    cfg = OmegaConf.merge(config(False, False).optimizer, {"importance_lr_follows_scheduler": follows})
    optimizer = build_optimizer(cfg, list(parameters(torch.float32)))
    options = {"_name": "reduce_lr_on_plateau", "lr": [0.1], "lr_shrink": 0.1, "lr_patience": 0}
    options["maximize_best_checkpoint_metric"] = False
    scheduler = build_lr_scheduler(OmegaConf.create(options), optimizer)
    for epoch, loss in enumerate([1.0, 2.0], start=1):
        scheduler.step(epoch, loss)
    assert groups(optimizer) == [(pytest.approx(0.01), 0.0), (pytest.approx(importance_lr), 0.0)]


def test_overrides_of_the_optimizer_are_for_the_weights():
    made = [build_optimizer(config(False, False).optimizer, list(parameters(torch.float32))) for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict(), {"lr": 0.3, "weight_decay": 0.1})
    assert groups(made[1]) == [(0.3, 0.1), (0.2, 0.0)]


def test_an_overflow_in_the_importance_alone_lowers_the_loss_scale():
    with pytest.raises(OverflowError):
        clipped("fp16", torch.tensor([float("inf"), 0.0, 0.0]))


def test_a_gradient_of_the_importance_that_is_no_number_stops_the_run_as_in_fairseq():
    _, _, norm = clipped("plain", torch.tensor([float("nan"), 0.0, 0.0]))
    assert norm != norm


def parsed(data: Path, *extra: str, **parts: str):
    parser = options.get_training_parser()
    arguments = [str(word) for word in training(data, data / "save", *budget(4), *extra, **parts)]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=arguments))


def test_fp16_keeps_the_importance_out_of_one_flat_gradient(data: Path):
    assert parsed(data, "--fp16").common.fp16_no_flatten_grads is True
    assert parsed(data).common.fp16_no_flatten_grads is False


def test_bf16_does_not_mean_a_tpu(data: Path):
    cfg = parsed(data, "--bf16")
    assert cfg.common.bf16 is True
    assert cfg.common.tpu is False


def test_under_hydra_fp16_without_unflattened_gradients_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    cfg = config(fp16=True, bf16=False)
    cfg.optimizer.fp16_no_flatten_grads = False
    with pytest.raises(SystemExit) as stop:
        build_optimizer(cfg.optimizer, list(parameters(torch.float16)))
    assert stop.value.code == 2
    assert "`--fp16-no-flatten-grads`" in capsys.readouterr().err


def stepped(scale: float, gradients: tuple[torch.Tensor, torch.Tensor], clip: float, fixed: bool = False):
    """Weight and importance after a step of fairseq's --amp with a gradient scaler that scales, on a CPU; and the scaler."""
    cfg = OmegaConf.merge(config(False, False, clip), {"common": {"fp16_init_scale": scale, "amp": True}})
    weight, importance = parameters(torch.float32)
    optimizer = AMPOptimizer.build_optimizer(cfg, [weight, importance])
    optimizer._grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer.fp32_optimizer.importance_is_fixed = fixed
    optimizer.backward((weight * gradients[0]).sum() + (importance * gradients[1]).sum())
    assert torch.equal(weight.grad, gradients[0] * scale)
    optimizer.multiply_grads(0.5)  # as the trainer divides by the sample size
    optimizer.clip_grad_norm(clip)
    optimizer.step()
    return weight.detach(), importance.detach(), optimizer.scaler


@pytest.mark.parametrize("clip", [0.0, 1e-7])
@pytest.mark.parametrize("fixed", [False, True])
def test_amp_steps_as_without_a_scale(clip: float, fixed: bool):
    """The kind: gradients divided by a scale that they no longer have. Small ones, or Adam's division would hide it."""
    small = WEIGHT_GRADIENT * 1e-6, SMALL * 1e-6
    plain, scaled = (stepped(scale, small, clip, fixed) for scale in (1.0, 2.0**16))
    assert plain[0].any()
    assert plain[1].any() == (not fixed)
    for ours, theirs in zip(scaled[:2], plain[:2], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
@pytest.mark.parametrize("where", [0, 1], ids=["weight", "importance"])
def test_amp_leaves_out_an_update_that_is_not_finite_and_lowers_its_scale(where: int, broken: float):
    gradients = [WEIGHT_GRADIENT.clone(), SMALL.clone()]
    gradients[where].view(-1)[0] = broken
    with mock.patch.object(torch, "equal", return_value=True):  # NaN is no NaN
        weight, importance, scaler = stepped(2.0**16, tuple(gradients), CLIP)
    assert not weight.any()
    assert not importance.any()
    assert scaler.get_scale() == 2.0**15
