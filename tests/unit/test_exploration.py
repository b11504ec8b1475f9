"""The exploration's pure parts: names, means, tests paired by seed, rank correlations, schedules, allocations, plans."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/translation"))

import explore_report
from exploration import reading
from exploration.families import counts_text, spread
from exploration.plans import PLANS
from exploration.reconstruction import allocate
from exploration.removal import Remaining, kept_at
from exploration.running import head_of, key_of
from exploration.scores import in_order_of_passes, keep_top_discounted
from exploration.setting import Setting

from fairseq_dsp.units.layout import Layout, Site

RESULTS = Path(__file__).parents[2] / "examples/translation/results/gpu-nvidia-h200-2026-11-26"
SMALL = Setting(layers=2, heads=2)


def line(arm: str, seed: int, nats: float, kept: int = 6, **more: object) -> dict:
    return {"arm": arm, "K": kept, "seed": seed, "nats": nats, "a": {"family": "scored"}, **more}


def test_means_are_by_arm_the_lowest_first_and_the_landscape_is_left_out():
    lines = [
        line("a", 1, 3.0),
        line("a", 2, 3.2),
        line("b", 1, 3.05),
        line("landscape", 1, 1.0),
        line("a", 1, 9.0, kept=12),
    ]
    assert reading.by_arm(lines, 6) == {"b": {1: 3.05}, "a": {1: 3.0, 2: 3.2}}
    rows = list(explore_report.summary(lines))
    assert rows[0] == "| nats | 6 heads | 12 heads |"
    assert rows[2:] == ["| b | 3.050 (1) |  |", "| a | 3.100 ± 0.100 (2) | 9.000 (1) |"]


def test_lines_of_the_first_scripts_get_the_names_of_todays_arms():
    options = {"cross": 5, "dec": 1}
    assert reading.name_of({"arm": "strat", "a": options}) == "strat5+1"
    assert reading.name_of({"arm": "random", "a": {"draw": 1}}) == "random1"
    assert reading.name_of({"arm": "random", "a": {}}) == "random0"
    assert reading.name_of({"arm": "random", "a": {"level": "random"}}) == "random"
    assert reading.name_of({"arm": "counts", "a": {"note": "landscape"}}) == "landscape"


def test_arms_of_the_first_scripts_that_were_misled_are_never_taken_for_those_that_do_as_they_say():
    old = {"arm": "fisher", "K": 6, "a": {"family": "fisher"}, "t": 35}
    new = {"arm": "fisher", "K": 6, "a": {"family": "scored", "by": "fisher"}, "schedule": "linear"}
    assert [reading.name_of(each) for each in (old, new)] == ["fisher \N{DAGGER}", "fisher"]
    lines = [{**each, "seed": seed, "nats": 3.0 + seed} for seed, each in enumerate((old, new))]
    assert {name: list(values) for name, values in reading.by_arm(lines, 6).items()} == {
        "fisher \N{DAGGER}": [0],
        "fisher": [1],
    }
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    for number in (1, 2, 3):  # as the page of the results marks them
        for each in explore_report._read(str(RESULTS / f"phase{number}.jsonl")):
            name = reading.name_of(each)
            assert "K" not in each or name == "landscape" or f"| {name} |" in text, name


def test_the_best_of_several_arms_is_compared_with_the_others():
    lines = [line("new", s, 3.0 + s / 10 + (s == 2) / 100, bleu=20 + s) for s in (1, 2, 3)]
    lines += [line("strat4+2", s, 3.1 + s / 10, bleu=19 + s) for s in (1, 2, 3)]
    lines += [line("paper", s, 3.2 + s / 10) for s in (1, 2, 3)]
    (_, _, *rows) = explore_report.table(lines, 6, ["paper", "strat4+2"])
    assert rows[0].endswith("| -0.097 ± 0.003 | 0.001 |")
    assert rows[1] == "| strat4+2 | 3.300 ± 0.058 | 1: 3.200, 2: 3.300, 3: 3.400 | | |"
    (head, _, *rows) = explore_report.table(
        lines, 6, ["paper", "strat4+2"], "bleu"
    )  # the best is the highest, and paper has none
    assert head == "| 6 heads | bleu | by seed | less strat4+2 | p |"
    assert [row.split(" | ")[0] for row in rows] == ["| new", "| strat4+2"]


def test_a_choice_stands_beside_its_counts_shuffled_and_the_best_rule():
    lines = [line("new", s, 3.0 + s / 10) for s in (1, 2)] + [line("new-shuffled", s, 3.05 + s / 10) for s in (1, 2)]
    assert list(explore_report.heads_matter(lines[:2], 6, ["nats"])) == []
    for rule, offset in (("strat4+2", 0.2), ("strat5+1", 0.1)):
        lines += [line(rule, s, 3.0 + offset + s / 10 + (s == 1) / 100) for s in (1, 2)]
    (_, _, row) = explore_report.heads_matter(lines, 6, ["nats"])
    assert row.startswith("| new | nats | strat5+1 | 3.150 ± 0.050 | 3.200 ± 0.050 | 3.255 ± 0.045 | -0.050 ± ")
    assert row.endswith("| -0.105 ± 0.005 | 0.030 |")


def test_rank_correlation_against_a_slow_count():
    draw = random.Random(0)
    values = [(draw.random(), draw.random()) for _ in range(7)]
    ranks = [[sorted(side).index(value) for value in side] for side in zip(*values, strict=True)]
    apart = sum((one - other) ** 2 for one, other in zip(*ranks, strict=True))
    lines = [line("a", seed, nats, cut=early) for seed, (early, nats) in enumerate(values)]
    assert reading.rank_correlation(lines, "cut") == pytest.approx(1 - 6 * apart / (7 * 48))
    assert reading.rank_correlation(lines[:2], "cut") is None
    assert reading.rank_correlation([line("a", seed, 1.0, cut=seed) for seed in range(5)], "cut") is None


@pytest.mark.parametrize(
    ("options", "alone"),
    [({"family": "scored"}, True), ({"family": "scored", "recut": 1}, False), ({"family": "scored", "kd": 0.5}, False),
     ({"family": "obs"}, False), ({"family": "obs", "cutonly": 1}, True), ({"family": "staged"}, False),
     ({"family": "fixed", "scratch": 1}, False), ({"family": "small"}, False)],
)  # fmt: skip
def test_an_arm_that_rescales_or_has_a_teacher_does_more_than_cut(options: dict, alone: bool):
    assert reading.only_cuts({"cut": 4.0, "a": options}) == alone
    assert not reading.only_cuts({"a": options})  # moved weights while it chose


def test_the_number_of_heads_falls_from_all_to_k_and_never_rises():
    found = [kept_at(update, 30, 150, 72, 6) for update in range(200)]
    assert found[:30] == [72] * 30
    assert found[150:] == [6] * 50
    assert all(before >= after for before, after in itertools.pairwise(found))
    assert kept_at(0, 30, 150, 72, 6, "constant") == 6


def test_the_last_cross_attention_head_never_goes():
    left = Remaining(SMALL.grid)
    while left.count > 1:
        left.remove(left.candidates(-torch.arange(12.0))[0])
    assert left.layout.by_type()["cross"] == (1, 4)
    assert left.candidates(torch.zeros(12)) == []


def test_an_allocation_costs_no_more_than_any_other():
    draw = random.Random(1)
    costs = {Site(stack, 0): [draw.random() for _ in range(4)] for stack in ("enc", "dec", "cross")}
    for k in range(1, 10):
        found = allocate(costs, k)
        fit = [n for n in itertools.product(range(4), repeat=3) if sum(n) == k and n[2] >= 1]
        best = min(sum(each[n] for each, n in zip(costs.values(), numbers, strict=True)) for numbers in fit)
        assert sum(found.values()) == k
        assert found[Site("cross", 0)] >= 1
        assert sum(costs[site][n] for site, n in found.items()) == pytest.approx(best)


def test_a_discount_spreads_heads_over_sublayers():
    scores = torch.tensor([9.0, 8, 5, 1, 1, 1, 1, 1, 1, 1, 4, 1])
    assert counts_text(keep_top_discounted(SMALL.grid, scores, 3, 1.0)) == "enc:2.1/dec:0.0/cross:0.0"
    assert counts_text(keep_top_discounted(SMALL.grid, scores, 3, 0.1)) == "enc:1.1/dec:0.0/cross:0.1"


def test_scores_in_the_order_of_passes_have_cross_attention_beside_self_attention():
    found = in_order_of_passes(SMALL.grid, torch.arange(12))
    assert found.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]


def test_heads_are_spread_over_layers():
    assert [spread(count, 3) for count in (0, 1, 2, 4, 5)] == [[0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 2, 1], [1, 2, 2]]


def test_the_target_has_all_seeds_of_what_it_compares_and_runs_nothing_again_that_decided():
    setting, seeds = Setting(), [1, 2, 3, 4, 5, 6]
    jobs = PLANS["target"](setting, seeds)
    for kept in (6, 12):
        for arm in (
            "fisher-recut",
            "staged-full",
            "fisher",
            "gradient",
            "random-floor",
            "paper",
            "staged-full-shuffled",
            "recipe",
        ):
            assert [job.seed for job in jobs if (job.arm, job.kept) == (arm, kept)] == seeds
    decided = {key_of(head_of(job, setting)) for job in PLANS["decisive"](setting, seeds)}
    again = [job for job in jobs if key_of(head_of(job, setting)) in decided]
    assert {job.arm for job in again} == {"staged-full", "strat5+1", "strat8+4", "paper"}
    assert [job.kept for job in jobs if job.arm == "dense-more"] == [72] * 6
    assert {job.seed for job in jobs[:28]} == {1, 2}  # of every control, before the other seeds
    assert {job.arm for job in jobs if job.kept == 24} == {"fisher-recut", "staged-full", "strat12+6", "recipe"}


def test_a_range_stands_beside_a_training_for_every_number_of_heads_that_it_is_judged_at():
    jobs = PLANS["ranges"](Setting(), [4, 5])
    for seed in (4, 5):
        judged = [[job.kept, *job.options["judged"]] for job in jobs if job.family == "range" and job.seed == seed]
        assert judged == [[6, 12, 24, 72]] * 3
        assert [job.kept for job in jobs if job.arm in ("recipe", "dense-more") and job.seed == seed] == judged[0]
    others = {key_of(head_of(job, Setting())) for job in PLANS["target"](Setting(), [4, 5])}
    assert {job.arm for job in jobs if key_of(head_of(job, Setting())) in others} == {"recipe", "dense-more"}


def test_arms_from_scratch_need_no_dense_model_and_are_no_arms_of_a_trained_one():
    setting = Setting()
    jobs = PLANS["scratch"](setting, [4, 5])
    assert len(jobs) == 24
    assert all(job.seeds == [] and head_of(job, setting)["U"] == setting.dense_updates for job in jobs)
    others = {job.arm for plan in ("target", "decisive", "phase1") for job in PLANS[plan](setting, [4, 5])}
    assert not others & {job.arm for job in jobs}


def test_neighbours_stand_beside_dsp_and_scores_that_are_cut_and_fitted_alike():
    jobs = PLANS["neighbours"](Setting(), [4, 5, 6])
    arms = {job.arm for job in jobs}
    assert arms > {
        "function-norm",
        "site-threshold",
        "paper",
        "one-shot-cut",
        "gradient-recut",
        "fisher-recut",
        "random-recut",
    }
    for arm in arms:
        assert [(job.kept, job.seed) for job in jobs if job.arm == arm] == [(6, 4), (6, 5), (12, 4), (12, 5)]
    assert all(job.options.get("recut") for job in jobs if job.family == "scored")
    assert {(job.seed, *job.seeds) for job in jobs if job.arm == "one-shot-cut"} == {(4, 4, 5), (5, 5, 4)}
    for plan in ("decisive", "recorded"):  # whose arms of these names are the same, and not run again
        others = {key_of(head_of(job, Setting())) for job in PLANS[plan](Setting(), [4, 5, 6])}
        shared = {job.arm for job in jobs if key_of(head_of(job, Setting())) in others}
        assert shared == ({"paper"} if plan == "decisive" else {"gradient-recut", "fisher-recut"})


@pytest.mark.parametrize("plan", PLANS)
def test_no_arm_of_a_plan_is_there_twice(plan: str):
    setting = Setting()
    jobs = PLANS[plan](setting, [1, 2, 3, 4, 5, 6])
    other = [job for job in jobs if job.arm != "landscape"]  # whose draws may meet
    assert len({key_of(head_of(job, setting)) for job in other}) == len(other)


@pytest.mark.parametrize(("plan", "fewest"), [("neighbours", 52), ("levels", 22), ("target", 36), ("ranges", 32)])
def test_kept_lines_are_arms_of_their_plan_which_does_not_run_them_again(plan: str, fewest: int):
    lines = explore_report._read(str(RESULTS.parent / f"cpu-amd-epyc-2-cores-2026-11-26/{plan}.jsonl"))
    seeds = [6, 1, 2, 3, 4, 5] if plan == "target" else [4, 5]
    jobs = PLANS[plan](Setting(), seeds)
    planned = {
        key_of(head_of(job, Setting()) | {"K": k}) for job in jobs for k in (job.kept, *job.options.get("judged", ()))
    }
    assert {key_of(each) for each in lines} <= planned
    assert len({key_of(each) for each in lines}) == len(lines) >= fewest
    assert all(Layout.parse(each["layout"]).count == each["K"] for each in lines if each["K"] is not None)


def test_the_kept_results_have_the_arms_of_the_plans():
    for number in (2, 3):
        lines = explore_report._read(str(RESULTS / f"phase{number}.jsonl"))
        kept = {
            (reading.name_of(each).removesuffix(reading.MISLABELLED), each["K"], each["seed"])
            for each in lines
            if "K" in each
        }
        assert kept == {(job.arm, job.kept, job.seed) for job in PLANS[f"phase{number}"](Setting(), [1, 2, 3])}
        assert all(Layout.parse(each["layout"]).count == each["K"] for each in lines if "K" in each)
