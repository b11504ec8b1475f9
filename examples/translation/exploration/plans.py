"""Which arms a plan has, in the order in which they run: those of the first seeds come first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from .first_plans import (
    first_choosers,
    landscape,
    phase1,
    phase2,
    phase3,
    recorded,
    second_choosers,
    third_choosers,
    tune,
)
from .levels import levels
from .making import GENTLE, HIGH, LATER_RULES, LOW, PAPER, RECIPE, Arms
from .setting import Job, Setting


def decisive(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """What lost least so far, beside rules and the paper's recipe: all seeds, for a test that is paired by seed.

    The first pair of arms comes first, for it decides most.
    """
    jobs = []
    for kept in (6, 12):
        makers = [Arms(kept, seed, HIGH) for seed in seeds]
        first, second = LATER_RULES[kept][:2]
        for make in makers:
            jobs += [make.staged(), make.rule(*first)]
        for make in makers:
            jobs += [make("full-recut", "scored", by="fisher-full", recut=1), make.rule(*second)]
        jobs += [make("paper", "learned", **PAPER) for make in makers]
    return jobs


def target(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """What is open of the claim that a chooser beats the rule, scores, chance and the paper's recipe: all seeds.

    Arms that other plans have are the same here and not run again. Two seeds of every control come first, for one that is far behind them
    decides nothing; then a third of the heads, beside the dense model with as many updates more; then the other seeds; then the same
    heads' counts shuffled, and the default.
    """
    jobs = [job for kept in (6, 12) for job in _compared(kept, seeds[:2])]
    for seed in seeds[:2]:
        make = Arms(24, seed, HIGH)
        jobs += [
            make.fitted("fisher"),
            make.staged(),
            make.rule(*LATER_RULES[24][0]),
            make("recipe", "learned", **RECIPE),
        ]
        jobs.append(more(setting, seed))
    jobs += [job for kept in (6, 12) for job in _compared(kept, seeds[2:])]
    for kept in (6, 12):
        for make in [Arms(kept, seed, HIGH) for seed in seeds]:
            jobs += controls(make)
    return jobs + [more(setting, seed) for seed in seeds[2:]]


def _compared(kept: int, seeds: Sequence[int]) -> Iterator[Job]:
    makers = [Arms(kept, seed, HIGH) for seed in seeds]
    for make in makers:
        yield from (make.fitted("fisher"), make.rule(*LATER_RULES[kept][0]), make.staged())
    yield from (make("fisher", "scored", by="fisher") for make in makers)
    yield from (make("paper", "learned", **PAPER) for make in makers)
    for name, by in (("gradient", "gradient"), ("random-floor", "random")):
        yield from (make(name, "scored", by=by) for make in makers)


def more(setting: Setting, seed: int) -> Job:
    """The dense model with as many updates more as the other arms have."""
    return Arms(setting.grid.total, seed, HIGH)("dense-more", "fixed", draw=0)


def controls(make: Arms) -> Iterator[Job]:
    """The counts of the best choosers shuffled and fitted likewise, the default recipe, and its counts shuffled."""
    yield make("fisher-recut-shuffled", "scored", by="fisher", recut=1, shuffle=1)
    yield make("staged-full-shuffled", "staged", by="fisher-full", stages=4, shuffle=1, recut=1)
    yield make("recipe", "learned", **RECIPE)
    yield make("recipe-shuffled", "learned", **RECIPE, shuffle=1)


def neighbours(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Systems after others, then DSP and the scores that they are compared with: two seeds.

    A choice that trained the weights keeps them, or cuts the dense model; whatever cuts that is fitted (`recut`). The network of `one-shot` is
    trained on the model of the other seed.
    """
    some = seeds[:2]
    makers = [Arms(kept, seed, HIGH) for kept in (6, 12) for seed in some]
    jobs = [job for make in makers for job in neighbour_arms(make)]
    jobs += [job for make in makers for job in beside_neighbours(make)]
    jobs += [one_shot(make, other) for make in makers for other in some if other != make.seed]
    return jobs + [job for make in makers for job in relative_norms(make)]


def beside_neighbours(make: Arms) -> Iterator[Job]:
    """DSP as published, and scores with and without a gradient, and none at all."""
    yield make("paper", "learned", **PAPER)
    for name in ("gradient", "fisher", "random"):
        yield make.fitted(name)


def one_shot(make: Arms, other: int) -> Job:
    """By a network that was trained on the dense model of another seed."""
    return make("one-shot-cut", "scored", by="one-shot", taught_by=other, recut=1)


def relative_norms(make: Arms) -> Iterator[Job]:
    """Norms relative to the stream, which grows from layer to layer where norms come first: absolute ones then favour the last."""
    yield make("function-norm-relative", "method", method="function-norm", own={"norm": "relative"})
    yield make("function-norm-relative-cut", "scored", by="function-norm-relative", recut=1)


def neighbour_arms(make: Arms) -> Iterator[Job]:
    """Two methods and two scorers."""
    for method in ("function-norm", "site-threshold"):
        yield make(method, "method", method=method)
        yield make(f"{method}-rewind", "method", method=method, rewind=1, recut=1)
    for name in ("function-norm", "confidence"):
        yield make(f"{name}-cut", "scored", by=name, recut=1)


def ranges(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """One training for 6 to 72 heads, judged at four numbers of heads, beside a training for each of them: four seeds, one after the other.

    The range as it is by default, with a lower end that falls, and in the order of scores of the dense model.
    """
    jobs = []
    for seed in seeds[:4]:
        jobs.append(a_range(6, [12, 24, setting.grid.total], seed))
        jobs += [Arms(kept, seed, HIGH)("recipe", "learned", **RECIPE) for kept in (6, 12, 24)]
        jobs.append(more(setting, seed))
        jobs.append(a_range(6, [12, 24, setting.grid.total], seed, "cubic"))
    return jobs + [a_range(6, [12, 24, setting.grid.total], seed, by="fisher") for seed in seeds[:4]]


def a_range(low: int, others: list[int], seed: int, schedule: str = "constant", by: str | None = None) -> Job:
    """One training for all numbers of heads from the lowest to the largest of the others; by a score its order stays, and none is learned."""
    if by is not None:
        return Arms(low, seed, HIGH)(f"range-{by}", "range", judged=others, by=by)
    name = "range" if schedule == "constant" else f"range-{schedule}"
    own = {"own": {"budget_schedule": schedule}} if schedule != "constant" else {}
    return Arms(low, seed, HIGH)(name, "range", judged=others, window=0.4, **own)


def scratch(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Training from the first update: choosers, the rule, as many heads in every sublayer, and a dense model of that size. Two seeds."""
    return [job for kept in (12, 6) for seed in seeds[:2] for job in _from_scratch(setting, Arms(kept, seed, HIGH))]


def _from_scratch(setting: Setting, make: Arms) -> Iterator[Job]:
    for job in (
        make("recipe", "learned", **RECIPE),
        make.rule(*LATER_RULES[make.kept][0]),
        make("paper", "learned", **PAPER),
        make("dense-small", "narrow"),
        make("gentle", "learned", **GENTLE),
        make("even", "fixed", even=1),
    ):
        yield replace(job, arm=f"scratch-{job.arm}", lr=setting.lr, warm=setting.warmup, schedule="isqrt", scratch=True)


def levels_together(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Heads, neurons and both, at equal parameters; see `levels`."""
    return list(levels(setting, seeds, HIGH))


def smoke(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Every chooser once, at six heads with the first seed: does it run?"""
    seed = seeds[0]
    jobs = [
        *first_choosers(6, seed),
        Arms(6, seed, LOW).rule(3, 2),
        *second_choosers(6, seed),
        *third_choosers(6, seed),
        *controls(Arms(6, seed, HIGH)),
        *neighbour_arms(Arms(6, seed, HIGH)),
        one_shot(Arms(6, seed, HIGH), seed),
        *relative_norms(Arms(6, seed, HIGH)),
        a_range(6, [setting.grid.total], seed),
        a_range(6, [setting.grid.total], seed, by="fisher"),
        *_from_scratch(setting, Arms(6, seed, HIGH)),
        Arms(6, seed, HIGH)("random-floor", "scored", by="random"),
    ]
    mislabelled = [job for job in recorded(setting, [seed]) if job.arm == "fisher-mislabelled" and job.kept == 6]
    return [*jobs, *mislabelled, *list(landscape(setting, seed, 1)), *list(tune(seed))[:1]]


PLANS: dict[str, Callable[[Setting, Sequence[int]], list[Job]]] = {
    "phase1": phase1, "phase2": phase2, "phase3": phase3, "recorded": recorded, "decisive": decisive,
    "target": target, "ranges": ranges, "scratch": scratch, "levels": levels_together, "neighbours": neighbours, "smoke": smoke,
}  # fmt: skip
