"""The first plans, whose lines are kept: what was tried before something was known."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from fairseq_dsp.units.layout import HEAD_STACKS

from .making import GENTLE, HIGH, LATER_RULES, LOW, PAPER, Arms, rules
from .setting import Job, Setting

# Heads in cross-attention and in the decoder's self-attention, by budget.
_RULES = {
    6: ((3, 3), (4, 2), (3, 2), (3, 1), (2, 2), (4, 1), (5, 1), (6, 0)),
    12: ((6, 6), (6, 4), (6, 3), (4, 4), (8, 2)),
    24: ((12, 6), (9, 9), (8, 8)),
}


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
    make = Arms(kept, seed, LOW)
    yield make("proj-cubic", "learned")
    yield make("proj-cubic-rewind", "learned", rewind=1)
    yield make("elim-sq", "elim")
    yield make("elim-sq-rewind", "elim", rewind=1)
    yield make("proj-const", "learned", budget="constant")
    yield make("gentle", "learned", **GENTLE)
    yield make("paper", "learned", **PAPER)
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


def second_choosers(kept: int, seed: int) -> Iterator[Job]:
    """The choosers of the second plan."""
    make = Arms(kept, seed, HIGH)
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
    yield make("paper", "learned", **PAPER)
    yield make("gentle", "learned", **GENTLE)
    yield make("loss-elim", "removed", by="loss")
    yield make("gradient", "scored", by="gradient")
    yield make("abs", "scored", by="abs")


def third_choosers(kept: int, seed: int) -> Iterator[Job]:
    """The choosers of the third plan."""
    make = Arms(kept, seed, HIGH)
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
        for job in (*third_choosers(kept, seed), *rules(kept, seed, HIGH, LATER_RULES))
    ]


def recorded(setting: Setting, seeds: Sequence[int]) -> list[Job]:
    """One-shot scores, and the same as the first scripts mislabelled them, whose results are kept; three seeds."""
    jobs = []
    for seed in seeds[:3]:
        for kept in (6, 12):
            make = Arms(kept, seed, HIGH)
            for name in ("fisher", "fisher-full", "abs", "gradient"):
                for recut in ({}, {"recut": 1}):
                    arm = name + ("-recut" if recut else "")
                    jobs.append(make(arm, "scored", by=name, **recut))
                    jobs.append(make(f"{arm}-mislabelled", "scored", by=name, mislabelled=1, **recut))
    return jobs


def _first(kept: int, seed: int) -> list[Job]:
    return [*first_choosers(kept, seed), *rules(kept, seed, LOW, _RULES)]
