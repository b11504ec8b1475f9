"""Which arms a plan has, in the order in which they run: those of the first seeds come first."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fairseq_dsp.units.layout import HEAD_STACKS

from .levels import levels
from .setting import Job, Setting

LOW, HIGH = 1e-3, 4e-3  # learning rates of the first plan, and of the others
_PAPER = {"budget": "constant", "relax": "succ", "t": (0.1, 1e-8), "ilr": 0.2, "floor": 0}
_GENTLE = {"budget": "constant", "relax": "succ", "t": (0.5, 0.01), "ilr": 0.05, "floor": 0}

# Heads in cross-attention and in the decoder's self-attention, by budget.
_RULES = {
    6: ((3, 3), (4, 2), (3, 2), (3, 1), (2, 2), (4, 1), (5, 1), (6, 0)),
    12: ((6, 6), (6, 4), (6, 3), (4, 4), (8, 2)),
    24: ((12, 6), (9, 9), (8, 8)),
}
_LATER_RULES = {6: ((5, 1), (4, 2)), 12: ((8, 2), (8, 4), (6, 6))}


class _Arms:
    """Makes the jobs of one budget, seed and learning rate."""

    def __init__(self, kept: int, seed: int, lr: float) -> None:
        self.kept, self.seed, self.lr = kept, seed, lr

    def __call__(self, arm: str, family: str, **options: Any) -> Job:
        return Job(arm, self.kept, self.seed, family, options, self.lr)

    def rule(self, cross: int, dec: int) -> Job:
        return self(f"strat{cross}+{dec}", "fixed", cross=cross, dec=dec)


def tune(seed: int) -> Iterator[Job]:
    """One layout at eight learning rates and schedules."""
    for lr in (5e-4, LOW, 2e-3, HIGH):
        for schedule in ("linear", "isqrt"):
            yield Job(
                f"tune {lr} {schedule}", 6, seed, "fixed", {"cross": 3, "dec": 3, "note": "tune"}, lr, schedule=schedule
            )


def landscape(setting: Setting, seed: int, count: int = 60) -> Iterator[Job]:
    """Six heads whose sublayers are drawn, each as likely as any other, with at least one in cross-attention; the same draws for all seeds."""
    generator = random.Random(0)
    sites = [(stack, layer) for stack in HEAD_STACKS for layer in range(setting.layers)]
    for _ in range(count):
        counts: dict[tuple[str, int], int] = {}
        while not any(stack == "cross" for stack, _ in counts):
            counts = {}
            for _ in range(6):
                site = generator.choice(sites)
                counts[site] = counts.get(site, 0) + 1
        listed = [[list(site), number] for site, number in counts.items()]
        yield Job("landscape", 6, seed, "fixed", {"counts": listed}, LOW)


def first_choosers(kept: int, seed: int) -> Iterator[Job]:
    """The choosers of the first plan."""
    make = _Arms(kept, seed, LOW)
    yield make("proj-cubic", "learned")
    yield make("proj-cubic-rewind", "learned", rewind=1)
    yield make("elim-sq", "elim")
    yield make("elim-sq-rewind", "elim", rewind=1)
    yield make("proj-const", "learned", budget="constant")
    yield make("gentle", "learned", **_GENTLE)
    yield make("paper", "learned", **_PAPER)
    yield make("elim-abs", "elim", score="abs")
    yield make("elim-sentence", "elim", score="sentence")
    yield make("proj-cubic-shared", "learned", norm="shared")
    yield make("proj-cubic-decay", "learned", decay=0.04)
    yield make("proj-cubic-w40", "learned", window=0.4)
    yield make("elim-sq-w40", "elim", window=0.4)
    yield make("elim-probe", "elim", probe=4)
    yield make("proj-cubic-layer", "learned", floor="layer")
    for name in ("fisher", "gradient", "fisher-full"):
        yield make(name, "scored", by=name)
    yield make("iter-fisher", "removed", by="scores")
    yield make("loss-elim", "removed", by="loss")
    for draw in (0, 1):
        yield make(f"random{draw}", "fixed", draw=draw)


def rules(kept: int, seed: int, lr: float, which: dict[int, tuple[tuple[int, int], ...]]) -> Iterator[Job]:
    """Heads drawn with given counts by type, spread over the layers."""
    for cross, dec in which[kept]:
        yield _Arms(kept, seed, lr).rule(cross, dec)


def second_choosers(kept: int, seed: int) -> Iterator[Job]:
    """The choosers of the second plan."""
    make = _Arms(kept, seed, HIGH)
    yield make("fisher", "scored", by="fisher")
    yield make("obs-cutonly", "obs", cutonly=1)
    yield make("obs", "obs")
    yield make("proj-const", "learned", budget="constant")
    yield make("proj-const-rewind", "learned", budget="constant", rewind=1)
    yield make("obs-5stages", "obs", stages=5)
    yield make("obs-5stages-cutonly", "obs", stages=5, cutonly=1)
    yield make("fisher-recut", "scored", by="fisher", recut=1)
    yield make("fisher-disc.8", "scored", by="fisher", disc=0.8)
    yield make("fisher-disc.6", "scored", by="fisher", disc=0.6)
    yield make("fisher-shuffled", "scored", by="fisher", shuffle=1)
    yield make("fisher-full", "scored", by="fisher-full")
    yield make("proj-shared-w40", "learned", norm="shared", window=0.4)
    yield make("proj-fisherinit", "learned", budget="constant", init="fisher")
    yield make("proj-fisherinit-rewind", "learned", budget="constant", init="fisher", rewind=1)
    yield make("race25", "race", race=25)
    yield make("fisher-kd", "scored", by="fisher", kd=0.5)
    yield make("obs-kd", "obs", kd=0.5)
    yield make("obs-adapt", "obs", stages=5, adapt=20)
    yield make("obs-adapt-cutonly", "obs", stages=5, adapt=20, cutonly=1)
    yield make("paper", "learned", **_PAPER)
    yield make("gentle", "learned", **_GENTLE)
    yield make("loss-elim", "removed", by="loss")
    yield make("gradient", "scored", by="gradient")
    yield make("abs", "scored", by="abs")


def third_choosers(kept: int, seed: int) -> Iterator[Job]:
    """The choosers of the third plan."""
    make = _Arms(kept, seed, HIGH)
    yield make("gradual-fisher-w20", "gradual", by="fisher", window=0.2)
    yield make("gradual-fisher-w40", "gradual", by="fisher", window=0.4)
    yield make("gradual-full-w20", "gradual", by="fisher-full", window=0.2)
    yield make("full-recut", "scored", by="fisher-full", recut=1)
    yield make("staged-fisher", "staged", by="fisher", stages=4)
    yield make("staged-full", "staged", by="fisher-full", stages=4)


def phase1(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Learning rate 1e-3: learned choosers, eliminations, one-shot scores, rules, random layouts."""
    jobs = list(tune(seeds[0]))
    for kept, some in ((6, seeds[:2]), (12, seeds[:2])):
        jobs += [job for seed in some for job in _first(kept, seed)]
    jobs += landscape(setting, seeds[0])
    for kept, some in ((6, seeds[2:4]), (24, seeds[:2])):
        jobs += [job for seed in some for job in _first(kept, seed)]
    return jobs


def phase2(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Learning rate 4e-3: the best of phase 1 again, reconstruction, rewinding, distillation, races; three seeds."""
    jobs = [
        Job(f"fisher lr{lr}", kept, seeds[0], "scored", {"by": "fisher"}, lr)
        for lr in (2e-3, 6e-3, 9e-3)
        for kept in (6, 12)
    ]
    return jobs + [job for seed in seeds[:3] for kept in (6, 12) for job in second_choosers(kept, seed)]


def phase3(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Learning rate 4e-3: gradual removal, stages, the whole Fisher information with rescaling, rules; three seeds."""
    return [
        job
        for seed in seeds[:3]
        for kept in (6, 12)
        for job in (*third_choosers(kept, seed), *rules(kept, seed, HIGH, _LATER_RULES))
    ]


def recorded(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """One-shot scores, and the same as the first scripts mislabelled them, whose results are kept; three seeds."""
    jobs = []
    for seed in seeds[:3]:
        for kept in (6, 12):
            make = _Arms(kept, seed, HIGH)
            for name in ("fisher", "fisher-full", "abs", "gradient"):
                for recut in ({}, {"recut": 1}):
                    arm = name + ("-recut" if recut else "")
                    jobs.append(make(arm, "scored", by=name, **recut))
                    jobs.append(make(f"{arm}-mislabelled", "scored", by=name, mislabelled=1, **recut))
    return jobs


def decisive(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """What lost least so far, beside rules and the paper's recipe: all seeds, for a test that is paired by seed.

    The first pair of arms comes first, for it decides most.
    """
    jobs = []
    for kept in (6, 12):
        makers = [_Arms(kept, seed, HIGH) for seed in seeds]
        first, second = _LATER_RULES[kept][:2]
        for make in makers:
            jobs += [make("staged-full", "staged", by="fisher-full", stages=4), make.rule(*first)]
        for make in makers:
            jobs += [make("full-recut", "scored", by="fisher-full", recut=1), make.rule(*second)]
        jobs += [make("paper", "learned", **_PAPER) for make in makers]
    return jobs


def target(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """What is open of the claim that a chooser beats the rule, scores, chance and the paper's recipe: all seeds.

    Arms that `decisive` has are the same here and not run again. Two seeds of every control come first, for one that is far behind them
    decides nothing; then the other seeds; then the same heads' counts shuffled, the default, and the dense model with the same updates.
    """
    jobs = []
    for some in (seeds[:2], seeds[2:]):
        for kept in (6, 12):
            makers = [_Arms(kept, seed, HIGH) for seed in some]
            for make in makers:
                jobs += [make("staged-full", "staged", by="fisher-full", stages=4), make.rule(*_LATER_RULES[kept][0])]
            jobs += [make("fisher", "scored", by="fisher") for make in makers]
            jobs += [make("paper", "learned", **_PAPER) for make in makers]
            for name, by in (("gradient", "gradient"), ("random-floor", "random")):
                jobs += [make(name, "scored", by=by) for make in makers]
    for kept in (6, 12):
        for make in [_Arms(kept, seed, HIGH) for seed in seeds]:
            jobs += controls(make)
    return jobs + [_Arms(setting.grid.total, seed, HIGH)("dense-more", "fixed", draw=0) for seed in seeds]


def controls(make: _Arms) -> Iterator[Job]:
    """The best chooser's counts shuffled and fitted likewise, the default recipe, and its counts shuffled."""
    yield make("staged-full-shuffled", "staged", by="fisher-full", stages=4, shuffle=1, recut=1)
    yield make("recipe", "learned", budget="constant", window=0.4)
    yield make("recipe-shuffled", "learned", budget="constant", window=0.4, shuffle=1)


def neighbours(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Systems after others, then DSP and the scores that they are compared with: two seeds.

    A choice that trained the weights keeps them, or cuts the dense model; whatever cuts that is fitted (`recut`). The network of `one-shot` is
    trained on the model of the other seed.
    """
    some = seeds[:2]
    makers = [_Arms(kept, seed, HIGH) for kept in (6, 12) for seed in some]
    jobs = [job for make in makers for job in neighbour_arms(make)]
    jobs += [job for make in makers for job in beside_neighbours(make)]
    jobs += [one_shot(make, other) for make in makers for other in some if other != make.seed]
    return jobs + [job for make in makers for job in relative_norms(make)]


def beside_neighbours(make: _Arms) -> Iterator[Job]:
    """DSP as published, and scores with and without a gradient, and none at all."""
    yield make("paper", "learned", **_PAPER)
    for name in ("gradient", "fisher", "random"):
        yield make(f"{name}-recut", "scored", by=name, recut=1)


def one_shot(make: _Arms, other: int) -> Job:
    """By a network that was trained on the dense model of another seed."""
    return make("one-shot-cut", "scored", by="one-shot", taught_by=other, recut=1)


def relative_norms(make: _Arms) -> Iterator[Job]:
    """Norms relative to the stream, which grows from layer to layer where norms come first: absolute ones then favour the last."""
    yield make("function-norm-relative", "method", method="function-norm", own={"norm": "relative"})
    yield make("function-norm-relative-cut", "scored", by="function-norm-relative", recut=1)


def neighbour_arms(make: _Arms) -> Iterator[Job]:
    """Two methods and two scorers."""
    for method in ("function-norm", "site-threshold"):
        yield make(method, "method", method=method)
        yield make(f"{method}-rewind", "method", method=method, rewind=1, recut=1)
    for name in ("function-norm", "confidence"):
        yield make(f"{name}-cut", "scored", by=name, recut=1)


def levels_together(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Heads, neurons and both, at equal parameters; see `levels`."""
    return list(levels(setting, seeds, HIGH))


def smoke(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """Every chooser once, at six heads with the first seed: does it run?"""
    seed = seeds[0]
    jobs = [
        *first_choosers(6, seed),
        _Arms(6, seed, LOW).rule(3, 2),
        *second_choosers(6, seed),
        *third_choosers(6, seed),
        *controls(_Arms(6, seed, HIGH)),
        *neighbour_arms(_Arms(6, seed, HIGH)),
        one_shot(_Arms(6, seed, HIGH), seed),
        *relative_norms(_Arms(6, seed, HIGH)),
        _Arms(6, seed, HIGH)("random-floor", "scored", by="random"),
    ]
    mislabelled = [job for job in recorded(setting, [seed]) if job.arm == "fisher-mislabelled" and job.kept == 6]
    return [*jobs, *mislabelled, *list(landscape(setting, seed, 1)), *list(tune(seed))[:1]]


def _first(kept: int, seed: int) -> list[Job]:
    return [*first_choosers(kept, seed), *rules(kept, seed, LOW, _RULES)]


PLANS: dict[str, Callable[[Setting, Sequence[int]], list[Job]]] = {
    "phase1": phase1, "phase2": phase2, "phase3": phase3, "recorded": recorded, "decisive": decisive,
    "target": target, "levels": levels_together, "neighbours": neighbours, "smoke": smoke,
}  # fmt: skip
