"""The lookup task as a test: heads that suffice learn it, chance does not, and a fast slice of both."""

from __future__ import annotations

import pytest

from fairseq_dsp.benchmark.arms import parse_arm
from fairseq_dsp.benchmark.choosing import Bench, Setting

K = 4
PROJECTION = "dsp:relaxation=projection,initial_temperature=1,final_temperature=0.1,importance_lr=0.2"


def test_heads_that_suffice_learn_the_roles_and_without_cross_attention_nothing_of_the_source_is_known() -> None:
    bench = Bench(Setting(variant="roles", updates=300), seed=1)
    good = bench.run(parse_arm("sufficient"), K)
    blind = bench.run(parse_arm("fixed:head_layout=enc:1000.0000/dec:1100.1000/cross:0000.0000"), K)
    assert good.accuracy >= 0.95
    assert max(blind.lookups[:2]) <= 0.4  # a guess among four
    assert blind.loss >= 2 * 1.386 - 0.1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_there_is_headroom_for_a_choice_and_learned_heads_win_some_of_it() -> None:
    seeds = range(1, 11)
    losses: dict[str, list[float]] = {"sufficient": [], "fixed": [], PROJECTION: []}
    for seed in seeds:
        bench = Bench(Setting(variant="roles", start="dense", updates=300, dense_updates=900, lr=2e-3), seed)
        for arm, found in losses.items():
            found.append(bench.run(parse_arm(arm), K).loss)
    assert max(losses["sufficient"]) <= 0.05, losses
    assert sum(losses["fixed"]) >= sum(losses["sufficient"]) + len(seeds), losses
    assert all(learned < chance for learned, chance in zip(losses[PROJECTION], losses["fixed"], strict=True)), losses
    assert sum(losses[PROJECTION]) <= sum(losses["fixed"]) / 10, losses
