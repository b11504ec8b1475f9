"""Spectral normalisation of named linear maps while a model trains (Miyato et al. 2018, as torch has it; after Lin et al. 2020).

    W = s · V / sigma(V)

sigma is the largest singular value, tracked by a step of power iteration in every pass of a training, s a number that is trained. A map
without s could not grow. Both are folded into the weight before anything is deployed. Called by `plugin/model`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm

from fairseq_dsp.errors import Refusal, exit_on_refusal

# Maps that `--spectral-norm` may name, of all layers.
MAPS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def parse_maps(text: str) -> tuple[str, ...]:
    """Names of maps, with commas between.

    Raises:
        Refusal: others are named, or one twice.
    """
    named = tuple(text.split(","))
    if set(named) - set(MAPS) or len(set(named)) < len(named):
        raise Refusal(
            f"`--spectral-norm` must be names of maps ({', '.join(MAPS)}) with commas between, but is {text}."
        )
    return named


def normalise(model: nn.Module, text: str | None) -> None:
    """Gives the maps of these names a spectral norm, in place; the model computes what it computed. None is for no map."""
    layers = [layer for layer in model.modules() if hasattr(layer, "precheckpoint_forward")] if text is not None else []
    recomputed = {module for layer in layers for module in layer.modules()}
    for name, module in [*model.named_modules()] if text is not None else ():
        if name.rpartition(".")[2] in parse_maps(str(text)) and module.weight.numel():
            spectral_norm(module, "weight")
            (norm,) = module.parametrizations.weight
            norm.__class__ = _Norm
            norm.recomputed = module in recomputed
            norm.eval()  # or torch's look at the weight would be a step
            sigma = torch.vdot(norm._u, torch.mv(module.parametrizations.weight.original, norm._v))
            parametrize.register_parametrization(module, "weight", _Scale(sigma.detach()))
            module.train(module.training)


def fold(model: nn.Module) -> None:
    """Undoes `normalise`: maps have plain weights, which are what the last pass would have computed with."""
    for module in [each for each in model.modules() if parametrize.is_parametrized(each, "weight")]:
        module.eval()
        of_copies = type(module)  # which torch makes, and takes the weight from: all copies of a model share it
        own = {name: value for name, value in vars(of_copies).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(of_copies.__name__, of_copies.__bases__, own)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        module.train(model.training)


class _Norm(_SpectralNorm):
    """torch's, which takes a step of power iteration a pass.

    fairseq runs a layer whose activations are recomputed (`--checkpoint-activations`) without gradient first, and with gradient when it goes
    backward. A step in between would make the second run another function than the one whose loss is known. So there the first pass after a
    backward one takes the step, and all passes until the next backward one compute with the same weights.

    Attributes:
        recomputed: the map is of such a layer.
        went_backward: since the last step.
    """

    recomputed, went_backward = False, True

    def _power_method(self, weight_mat: Tensor, n_power_iterations: int) -> None:
        if weight_mat.dtype in (torch.float16, torch.bfloat16):
            with exit_on_refusal():
                raise Refusal(
                    "`--spectral-norm` must be trained in float32, or with `--amp`, but is in "
                    f"{str(weight_mat.dtype).removeprefix('torch.')}."
                )
        if self.recomputed and torch.is_grad_enabled():
            self.went_backward = True
        elif not self.recomputed or self.went_backward:
            self.went_backward = False
            super()._power_method(weight_mat, n_power_iterations)


class _Scale(nn.Module):
    """s, by which a map of largest stretch 1 is multiplied."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return self.scale * weight
