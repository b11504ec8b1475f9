"""How good the gradient is that a method gives the importance: a table of bias, noise and living share, in seconds.

    python -m fairseq_dsp.benchmark.estimators

There is no model: n heads have values by a power law, heads of one group of four replace each other in part, and the loss is
a quadratic function of the gates. The truth is the gradient of the expected loss of K heads drawn one after the other by
softmax of the importance (what Gumbel noise and a top-K draw), by the score function over very many draws. Every estimator
is the method itself: one draw is the gradient of one update. Three states of the importance are judged: normal
values of deviation 0.3 as at the start, 1.5 as when half has been learned, and 4 as when nearly all is decided.

- bias: cosine of the mean gradient to the truth; 1 is none.
- one draw: mean cosine of one draw to the truth.
- noise: root of the mean squared distance to the mean, by the length of the mean. The mean of D draws of noise alone has
  noise near the root of D, and a bias that means nothing.
- living: share of heads whose gradient is above a hundredth of the largest.

A common shift of all importance changes no choice, so all gradients are judged without their mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.errors import Refusal, exit_on_refusal
from fairseq_dsp.methods import METHODS
from fairseq_dsp.methods.method import Method
from fairseq_dsp.units.budget import Budget

STATES = {"start": 0.3, "half learned": 1.5, "nearly decided": 4.0}
TEMPERATURES = (1.0, 0.5, 0.1, 0.01)
_GROUP, _REDUNDANCY, _POWER = 4, 0.5, 1.2
_CHUNK = 20_000  # draws of the truth at once
_LIVING = 0.01
_WIDTH = 132


def estimators() -> dict[str, PruningConfig]:
    """Options of all methods that draw K heads, by the table's names."""
    found = {
        f"dsp, {relaxation}, t = {t:g}": _options(
            "dsp", relaxation=relaxation, initial_temperature=t, final_temperature=t
        )
        for relaxation in ("successive-softmax", "projection")
        for t in TEMPERATURES
    }
    return {**found, "ste": _options("ste"), "simple": _options("simple")}


def _options(method: str, **options: Any) -> PruningConfig:
    return PruningConfig(head_selection=method, **options)


@dataclass(frozen=True)
class Problem:
    """A loss of n gates: L(g) = -values·g + g'·shared·g / 2.

    Args:
        values: [n], what each head is worth alone.
        shared: [n, n], symmetric, zero on its diagonal: what two heads have in common.
    """

    values: Tensor
    shared: Tensor

    @classmethod
    def of(cls, heads: int, seed: int) -> Problem:
        """Values rank^-1.2 in random order; heads of a group of four share half the geometric mean of their values."""
        order = torch.randperm(heads, generator=torch.Generator().manual_seed(seed))
        values = (order + 1.0) ** -_POWER
        groups = torch.arange(heads) // _GROUP
        same = (groups[:, None] == groups) & ~torch.eye(heads, dtype=torch.bool)
        return cls(values, same * _REDUNDANCY * (values[:, None] * values).sqrt())

    def loss(self, gates: Tensor) -> Tensor:
        """[..., n] -> [...]."""
        return (gates * (0.5 * gates @ self.shared - self.values)).sum(dim=-1)


@dataclass(frozen=True)
class Quality:
    """What the table says of one estimator in one state; see the module's text."""

    bias: float
    one_draw: float
    noise: float
    living: float


def true_gradient(problem: Problem, importance: Tensor, kept: int, draws: int, seed: int) -> Tensor:
    """Gradient of the expected loss of K heads that are drawn one after the other, by the score function: [n] float64.

    E[ (L - mean L) · d/dw log p ],     p(h_1 .. h_K) = prod_j  exp w_{h_j} / sum of exp w of the heads not drawn yet
    """
    generator = torch.Generator().manual_seed(seed)
    weights = importance.double().exp()
    found = torch.zeros_like(weights)
    for first in range(0, draws, _CHUNK):
        count = min(_CHUNK, draws - first)
        uniform = torch.rand(count, len(weights), generator=generator, dtype=torch.float64)
        order = (weights.log() - torch.log(-torch.log(uniform))).topk(kept).indices
        remaining = weights.repeat(count, 1)
        score = torch.zeros_like(remaining)
        for drawn in order.split(1, dim=1):
            score -= remaining / remaining.sum(dim=1, keepdim=True)
            remaining = remaining.scatter(1, drawn, 0.0)
        chosen = torch.zeros_like(remaining).scatter_(1, order, 1.0)
        losses = problem.loss(chosen.to(problem.values)).double()
        found += (losses - losses.mean()) @ (score + chosen)
    return found / draws


def drawn_gradients(method: Method, problem: Problem, importance: Tensor, kept: int, draws: int) -> Tensor:
    """Gradients that the method gives the importance in as many updates: [draws, n]."""
    found = []
    for update in range(draws):
        variables = importance.clone().requires_grad_()
        problem.loss(method.gates(variables, Budget.of_units(kept, len(variables)), update)).backward()
        assert variables.grad is not None
        found.append(variables.grad)
    return torch.stack(found)


def quality(gradients: Tensor, truth: Tensor) -> Quality:
    """Judges draws of a gradient, [draws, n], by the true one, [n]."""
    drawn, truth = (each.double() - each.double().mean(dim=-1, keepdim=True) for each in (gradients, truth))
    mean = drawn.mean(dim=0)
    largest = drawn.abs().amax(dim=1, keepdim=True)
    living = (drawn.abs() > _LIVING * largest).double().mean()
    noise = (drawn - mean).square().sum(dim=1).mean().sqrt() / mean.norm()
    one_draw = torch.cosine_similarity(drawn, truth.expand_as(drawn), dim=1).mean()
    return Quality(torch.cosine_similarity(mean, truth, dim=0).item(), one_draw.item(), noise.item(), living.item())


def judge(heads: int, kept: int, draws: int, truth_draws: int, seed: int) -> dict[str, list[Quality]]:
    """All estimators in all states: the table's rows by name, a quality for each of `STATES`."""
    problem = Problem.of(heads, seed)
    found: dict[str, list[Quality]] = {name: [] for name in estimators()}
    for deviation in STATES.values():
        importance = deviation * torch.randn(heads, generator=torch.Generator().manual_seed(seed))
        truth = true_gradient(problem, importance, kept, truth_draws, seed)
        for name, config in estimators().items():
            method = METHODS[str(config.head_selection)].from_config(config)
            found[name].append(quality(drawn_gradients(method, problem, importance, kept, draws), truth))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_dsp.benchmark.estimators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--heads", type=int, default=72, help="n (default: %(default)s)")
    parser.add_argument("--unpruned-heads", type=int, default=12, help="K (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=400, help="of every estimator (default: %(default)s)")
    parser.add_argument("--truth-draws", type=int, default=200_000, help="of the truth (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of values and importance (default: %(default)s)")
    args = parser.parse_args(arguments)
    _check(args)
    table = Table(title=f"{' / '.join(STATES)}: {args.unpruned_heads} of {args.heads} heads, {args.draws} draws")
    for column in ("estimator", "bias", "one draw", "noise", "living"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for name, states in judge(args.heads, args.unpruned_heads, args.draws, args.truth_draws, args.seed).items():
        columns = ([getattr(state, figure) for state in states] for figure in ("bias", "one_draw", "noise", "living"))
        table.add_row(name, *(" / ".join(f"{value:.2f}" for value in column) for column in columns))
    Console(width=_WIDTH).print(table)  # nine figures a line would wrap in a terminal of eighty


def _check(args: argparse.Namespace) -> None:
    """Raises:
    Refusal: options that cannot be honoured, all at once.
    """
    reasons = [
        f"`--{option.replace('_', '-')}` must be at least {least}, but is {getattr(args, option)}."
        for option, least in (("heads", 2), ("draws", 2), ("truth_draws", 2), ("seed", 0))
        if getattr(args, option) < least
    ]
    if args.heads >= 2 and not 0 < args.unpruned_heads < args.heads:
        reasons.append(
            f"`--unpruned-heads` must be between 1 and {args.heads - 1}, for there is no choice otherwise, but is "
            f"{args.unpruned_heads}."
        )
    if reasons:
        raise Refusal(*reasons)


if __name__ == "__main__":
    with exit_on_refusal():
        main()
