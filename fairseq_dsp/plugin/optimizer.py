"""`dsp_adam`: fairseq's adam, with a learning rate, a clip and no weight decay of their own for importance variables."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq import utils
from fairseq.logging import metrics
from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from omegaconf import II
from torch import Tensor

from fairseq_dsp.errors import Refusal, exit_on_refusal, noted
from fairseq_dsp.modules.gates import IMPORTANCE_GROUP, HeadGates
from fairseq_dsp.options.languages import BILINGUAL_BUDGET
from fairseq_dsp.units.chosen import parse_rates

# A near-tie at a low temperature has a huge derivative, and a single such update would fill Adam's second moment for
# thousands of updates. Gradients of useful updates, means over the batch, stay far below.
_LARGEST_GRADIENT = 1e3

# The paper's recipe (its repository's README).
IMPORTANCE_LR = 0.2

RATES_OPTION = "--importance-lr-of"


# fairseq reads the types of these fields at run time: no postponed annotations in this module.
@dataclass
class DspAdamConfig(FairseqAdamConfig):
    importance_lr: Optional[float] = field(
        default=None,
        metadata={"help": "learning rate of the importance variables (default: that of the recipe; the paper's: 0.2)"},
    )
    importance_lr_follows_scheduler: bool = field(
        default=False,
        metadata={"help": "scale --importance-lr as the scheduler scales --lr, instead of keeping it constant"},
    )
    importance_lr_of: Optional[str] = field(
        default=None,
        metadata={
            "help": "learning rates of kinds of units that have another one than --importance-lr (heads=0.5,ffn=0.1)"
        },
    )
    fp16: bool = II("common.fp16")
    memory_efficient_fp16: bool = II("common.memory_efficient_fp16")
    fp16_no_flatten_grads: bool = II("common.fp16_no_flatten_grads")
    clip_norm: float = II("optimization.clip_norm")


@register_optimizer("dsp_adam", dataclass=DspAdamConfig)
class DspAdam(FairseqAdam):
    """Adam over two groups: the weights as `--optimizer adam` has them, and the importance variables.

    Attributes:
        importance_is_fixed: set by the task; while true the importance variables do not move, momentum included.
        recipe_lr: learning rate of the importance variables where none is given; set by the task.
        places: where the units of every kind lie in the importance; set by the task.
        wrapper: fairseq's half-precision optimizer around this one, if any; set by the task.
        found_inf: set by torch's gradient scaler (`--amp`) while it steps: 1 where a gradient is not finite.
    """

    # fairseq unscales the gradients of the torch optimizer within, and then steps this one, of which torch's scaler does not
    # know that: it would divide them by the scale again. With this mark it leaves them as they are.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None

    def __init__(self, cfg: DspAdamConfig, params: Iterable[torch.nn.Parameter]) -> None:
        params = list(params)
        with exit_on_refusal():
            _check(cfg, params)
        self.importance_is_fixed = False
        self.recipe_lr = IMPORTANCE_LR
        self.places: dict[str, slice] = {}
        self._rates = parse_rates(cfg.importance_lr_of, RATES_OPTION)
        self.wrapper: Any = None
        self.weights = [p for p in params if getattr(p, "param_group", None) != IMPORTANCE_GROUP]
        self.importance = [p for p in params if getattr(p, "param_group", None) == IMPORTANCE_GROUP]
        groups: list[dict[str, Any]] = [{"params": self.weights}]
        if self.importance:
            groups.append({"params": self.importance, "lr": self._importance_lr(cfg), "weight_decay": 0.0})
        super().__init__(cfg, groups)

    def set_lr(self, lr: float) -> None:
        """Sets the weights' learning rate; that of the importance variables stays, or follows in proportion."""
        super().set_lr(lr)
        self._restore_importance_options()

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Loads the moments; the importance variables' learning rate is the command's, not the checkpoint's."""
        theirs = [len(group["params"]) for group in state_dict["param_groups"]]
        if theirs[:1] == [len(self.weights)] and theirs[1:] != [len(self.importance)] * bool(self.importance):
            with exit_on_refusal():
                raise Refusal(
                    "`--head-selection` must stay the method that the checkpoint was trained with (or add `--reset-optimizer`): "
                    f"its optimizer has {sum(theirs[1:])} variables beside the weights, and this method's has {len(self.importance)}."
                )
        super().load_state_dict(state_dict, optimizer_overrides)
        self._restore_importance_options()

    def _restore_importance_options(self) -> None:
        """Undoes what fairseq writes to all groups: overrides, and a scheduler that goes past `set_lr` (plateaus)."""
        importance_lr = max(self._rates_in_use())
        if self.cfg.importance_lr_follows_scheduler:
            base = self.cfg.lr[0] if isinstance(self.cfg.lr, Collection) else self.cfg.lr
            importance_lr *= self.get_lr() / base
        for group in self.param_groups[1:]:
            group.update(lr=importance_lr, weight_decay=0.0)

    def _importance_lr(self, cfg: DspAdamConfig) -> float:
        return self.recipe_lr if cfg.importance_lr is None else cfg.importance_lr

    def _rates_in_use(self) -> list[float]:
        """The learning rates that some kind of units, or another variable of the method, has."""
        all_have_one = bool(self.places) and set(self.places) <= set(self._rates) and len(self.importance) == 1
        return [*self._rates.values(), *([] if all_have_one else [self._importance_lr(self.cfg)])]

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Any = None) -> Tensor:
        """Clips the two groups apart, logs the importance variables' norm, returns the weights'.

        The norm returned is NaN or infinite if either is, so that fairseq stops, or lowers its loss scale.
        """
        norm = utils.clip_grad_norm_(self.weights, max_norm, aggregate_norm_fn) if self.weights else torch.zeros(())
        if not self.importance:
            return norm
        raw = utils.clip_grad_norm_(self.importance, max_norm, aggregate_norm_fn)
        importance_norm = raw
        if self.wrapper is not None:
            # The wrapper asks for the norm only (max_norm 0) and will scale all gradients by its factor and by the
            # weights' clip: give the importance variables their own clip and take the weights' back.
            factor, clip_norm = self.wrapper._multiply_factor, self.cfg.clip_norm
            importance_norm = factor * raw
            if clip_norm > 0 and self.weights:  # alone, the importance variables' norm is the one it clips by
                ratio = _clip(importance_norm, clip_norm) / _clip(factor * norm, clip_norm)
                if torch.isfinite(ratio):
                    for parameter in self.importance:
                        if parameter.grad is not None:
                            parameter.grad.mul_(ratio.to(parameter.grad))
        metrics.log_scalar("importance_gnorm", importance_norm, weight=1, priority=401, round=3)
        if not self.weights:
            return raw
        return torch.where(torch.isfinite(raw).to(norm.device), norm, raw.to(norm))

    def step(self, closure: Any = None, scale: float = 1.0, groups: Any = None) -> None:
        """One update; fixed importance variables are left out of it, so not even their momentum moves them.

        There is none where torch's gradient scaler has found gradients that are not finite.
        """
        if self.found_inf is not None and bool(self.found_inf):
            return
        self._restore_importance_options()
        for parameter in self.importance:
            if self.importance_is_fixed:
                parameter.grad = None
            elif parameter.grad is not None:
                bound = _LARGEST_GRADIENT * scale  # apex divides by it in its own step, of sums and scaled losses
                parameter.grad.clamp_(-bound, bound)
        before = [parameter.detach().clone() for parameter in self.importance] if self._rates else []
        super().step(closure, scale, groups)
        for parameter, old, part in zip(
            self.importance, before, self._parts_of_steps() if before else (), strict=False
        ):
            parameter.data.copy_(torch.lerp(old, parameter.detach(), part.to(old)))

    def _parts_of_steps(self) -> list[Tensor]:
        """How much of Adam's step, which is in proportion to its rate, is each kind's own: [H] of the importance, one of other variables.

        Adam steps with the largest of all rates.
        """
        with exit_on_refusal():
            _refuse_strangers(self._rates, self.places)
        base, largest = self._importance_lr(self.cfg), max(self._rates_in_use()) or 1.0
        of_units = torch.full_like(self.importance[0], base / largest, dtype=torch.float32)
        for kind, rate in self._rates.items():
            of_units[self.places[kind]] = rate / largest
        return [of_units, *[torch.tensor(base / largest) for _ in self.importance[1:]]]


def refuse_rates(text: str | None, gates: HeadGates | None) -> None:
    """Asked when a model is built, where its options are also the optimizer's, and again when it steps.

    Raises:
        Refusal: `--importance-lr-of` does not read as it should, or names a kind that is not chosen.
    """
    rates = parse_rates(text, RATES_OPTION)
    if gates is not None:
        _refuse_strangers(rates, gates.chosen.places())


def _refuse_strangers(rates: Collection[str], kinds: Collection[str]) -> None:
    if strangers := [kind for kind in rates if kind not in kinds]:
        raise Refusal(
            f"`{RATES_OPTION}` must name kinds that are chosen ({', '.join(kinds)}), but names {', '.join(strangers)}."
        )


def dsp_adam_of(optimizer: Any, task: str = BILINGUAL_BUDGET) -> DspAdam:
    """Our optimizer inside fairseq's half-precision wrappers.

    Args:
        task: the name of the task that asks.

    Raises:
        SystemExit: it is not there; hydra lets any optimizer through until here.
    """
    inner = getattr(optimizer, "fp32_optimizer", None) or getattr(optimizer, "wrapped_optimizer", None) or optimizer
    if not isinstance(inner, DspAdam):
        with exit_on_refusal():
            raise Refusal(
                f"`--optimizer` must be dsp_adam for `--task {task}`, but is {type(inner).__name__}: importance "
                "variables would have neither their learning rate nor their schedule."
            )
    return inner


def _clip(norm: Tensor, max_norm: float) -> Tensor:
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def _check(cfg: DspAdamConfig, params: list[torch.nn.Parameter]) -> None:
    reasons: list[str] = []
    with noted(reasons):
        parse_rates(cfg.importance_lr_of, RATES_OPTION)
    if cfg.importance_lr is not None and not 0 <= cfg.importance_lr < float("inf"):
        reasons.append(f"`--importance-lr` must be a number of at least 0, but is {cfg.importance_lr}.")
    if cfg.fp16 and not cfg.memory_efficient_fp16 and not cfg.fp16_no_flatten_grads:
        reasons.append(
            "`--fp16` needs `--fp16-no-flatten-grads` (common.fp16_no_flatten_grads=true) with `--optimizer dsp_adam`, "
            "but it is false."
        )
    elif not any(hasattr(parameter, "param_group") for parameter in params):
        reasons.append(
            "`--optimizer dsp_adam` needs an `--arch` of dsp_transformer, but the model is another, which would train dense."
        )
    if reasons:
        raise Refusal(*reasons)
