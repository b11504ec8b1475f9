"""The lookup task is what it says, arms are read and drawn as they should, and results are kept and compared in pairs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import few_examples, many_examples

from fairseq_dsp.benchmark import choice, choice_lines, lookup, roles
from fairseq_dsp.benchmark.arms import control_layout, cross_first, parse_arm
from fairseq_dsp.benchmark.choosing import Bench, Setting
from fairseq_dsp.benchmark.lookup import SPECIAL, VALUES, WORDS, Lookup, digits, sufficient_layout
from fairseq_dsp.errors import Refusal
from fairseq_dsp.methods.stratified import draw_stratified
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.units.layout import Grid, Layout

GRID = Grid.of_heads((4, 4), (4, 4), (4, 4))
seeds, lengths = st.integers(0, 2**31), st.integers(2, 20)
TINY = ["--updates", "2", "--seeds", "1-2", "--kept", "4"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@many_examples
@given(seeds, lengths)
def test_permutation_has_no_fixed_point_and_tables_are_balanced(seed: int, length: int) -> None:
    task = Lookup.draw(seed, length)
    assert sorted(task.permutation.tolist()) == list(range(length))
    assert not any(place == image for place, image in enumerate(task.permutation.tolist()))
    assert all(table.bincount().tolist() == [WORDS // VALUES] * VALUES for table in task.tables)


@many_examples
@given(seeds, lengths)
def test_target_is_the_three_lookups_of_a_slow_loop(seed: int, length: int) -> None:
    task = Lookup.draw(seed, length)
    batch = task.batch(2, generator(seed))
    a, b, c = task.tables.tolist()
    for source, target in zip(batch["net_input"]["src_tokens"].tolist(), batch["target"].tolist(), strict=True):
        source, target = [word - SPECIAL for word in source], [word - SPECIAL for word in target]
        for t in range(length):
            expected = (a[source[t]], b[source[task.permutation[t]]], c[target[t - 3]] if t >= 3 else 0)
            assert tuple(digits(torch.tensor(target[t] + SPECIAL)).tolist()) == expected


@few_examples
@given(seeds)
def test_the_decoder_is_fed_the_target_a_place_late_and_a_seed_gives_the_same_batch(seed: int) -> None:
    task = Lookup.draw(seed, 16)
    first, again = task.batch(3, generator(seed)), Lookup.draw(seed, 16).batch(3, generator(seed))
    assert torch.equal(first["net_input"]["prev_output_tokens"][:, 1:], first["target"][:, :-1])
    assert torch.equal(first["target"], again["target"])
    assert first["target"].min() >= SPECIAL
    assert first["ntokens"] == first["target"].numel()


def test_every_digit_is_a_guess_among_four_without_its_place() -> None:
    task = Lookup.draw(5, 16)
    batch = task.batch(2000, generator(5))
    source, found = batch["net_input"]["src_tokens"] - SPECIAL, digits(batch["target"])[:, :, 8]
    other = next(place for place in range(16) if place not in (8, task.permutation[8]))
    for (
        digit
    ) in found:  # the best guess from a word elsewhere is right a quarter of the time, up to what 64 means overfit
        table = torch.zeros(WORDS, VALUES).index_put_((source[:, other], digit), torch.ones(2000), accumulate=True)
        assert table.max(dim=1).values.sum() / 2000 < 0.40


def test_special_symbols_have_digits_of_no_word() -> None:
    assert set(digits(torch.arange(SPECIAL)).flatten().tolist()) == {-1}


@given(st.integers(3, 9), seeds)
def test_sufficient_layouts_keep_what_is_needed_and_only_cross_attention_beside(k: int, seed: int) -> None:
    for needed in (lookup.needed_heads(GRID), roles.needed_heads(GRID, seed)):
        layout = sufficient_layout(GRID, k, needed)
        assert layout.count == k
        assert all(layout.marks(site)[head] for site, head in needed)
        assert layout.by_type()["enc"][0] == 0
        assert layout.by_type()["dec"][0] == 1
    for wrong in (2, 10):
        with pytest.raises(ValueError, match="between 3 and 9"):
            sufficient_layout(GRID, wrong, lookup.needed_heads(GRID))


@few_examples
@given(seeds)
def test_roles_are_places_and_the_needed_heads_have_the_three_that_the_task_asks_for(seed: int) -> None:
    task = Lookup.draw(seed, 16)
    found = roles.roles_of(GRID, task, seed)
    here, there, earlier = (found[head].tolist() for head in roles.needed_heads(GRID, seed))
    assert (here, there) == (list(range(16)), task.permutation.tolist())
    assert earlier[2:] == list(range(14))  # fed at t is target_t-1: target_t-3 lies two back
    for (site, _), role in found.items():
        if site.stack == "dec":
            assert (role <= torch.arange(16)).all()
        else:
            assert sorted(role.tolist()) == list(range(16))


@pytest.mark.parametrize(
    "kept", ["enc:1111.1111/dec:1111.1111/cross:1111.1111", "enc:0100.0001/dec:0010.0000/cross:0001.1010"]
)
def test_frozen_queries_meet_the_keys_of_their_role_and_nothing_of_them_is_trained(kept: str) -> None:
    bench = Bench(Setting(variant="roles"), 3)
    model = bench.build({"head_layout": kept})
    expected = roles.roles_of(GRID, bench.lookup, 3)
    places = {side: getattr(model, side).embed_positions.weight[2:18] for side in ("encoder", "decoder")}
    for site, attention in attentions(model, GRID):
        query = attention.q_proj(places["encoder" if site.stack == "enc" else "decoder"])
        key = attention.k_proj(places["decoder" if site.stack == "dec" else "encoder"])
        split = [each.view(16, attention.num_heads, attention.head_dim).transpose(0, 1) for each in (query, key)]
        for position, head in enumerate(model.layout.units(site)):
            logits = split[0][position] @ split[1][position].T / attention.head_dim**0.5
            assert logits.argmax(dim=1).tolist() == expected[site, head].tolist()
        assert not any(p.requires_grad for p in (*attention.q_proj.parameters(), *attention.k_proj.parameters()))
        assert attention.v_proj.weight.requires_grad == (attention.num_heads > 0)
    before = model.decoder.embed_positions.weight.clone()
    bench.train(model, 2, 1e-2, {})
    assert torch.equal(before, model.decoder.embed_positions.weight)


def test_arms_are_read_with_label_options_and_commas_in_values() -> None:
    arm = parse_arm("warm=dsp:relaxation=projection,importance_lr=0.2")
    assert (arm.label, arm.name, arm.spec) == ("warm", "dsp", "dsp:importance_lr=0.2,relaxation=projection")
    assert parse_arm("dsp:relaxation=projection,importance_lr=0.2").spec == arm.spec
    assert parse_arm(f"x=shuffled:{arm.spec}").source.spec == arm.spec
    layout = "enc:0000.0000/dec:1000.0000/cross:1000.1000"
    assert parse_arm(f"fixed:head_layout={layout}").options == (("head_layout", layout),)
    assert parse_arm("gradient").spec == parse_arm("cut:gradient").spec == "gradient:cross_floor=1"
    arm = parse_arm("cut:function-norm:norm=relative")
    assert (arm.spec, arm.is_scorer) == ("cut:function-norm:cross_floor=1,norm=relative", True)
    assert parse_arm(arm.spec) == replace(arm, label=arm.spec)
    arm = parse_arm("function-norm:norm=relative,norm_penalty=0.1")
    assert (arm.spec, arm.is_scorer) == ("function-norm:norm=relative,norm_penalty=0.1", False)
    assert parse_arm("dsp:initial_temperature=1,2,seed").options == (("initial_temperature", "1,2,seed"),)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("dps", "must name one of"), ("dsp:temperature=1", "option=value"), ("cross-first:relaxation=x", "takes no options"),
     ("shuffled:dense", "an arm that cuts heads"), ("shuffled", "must name one of"),
     ("dsp:importance_from=nobody", "nobody"), ("fixed:importance_from=fisher", "learns no importance"), ("gradient:seed=2", "option=value"),
     ("gradient:relaxation=projection", "no options but cross_floor"),
     ("gradient:norm=relative", "no options but cross_floor"), ("cut:dsp", "must name one of"), ("dsp:statistic=entropy", "takes no statistic"),
     ("cut:function-norm:norm=big", "`--norm` must be"), ("attention-statistics", "`--statistic` must be one of")],
)  # fmt: skip
def test_arms_that_are_none_are_refused(text: str, wrong: str) -> None:
    with pytest.raises(Refusal, match=wrong):
        parse_arm(text)


def test_scorers_cut_above_the_floor_of_cross_attention_unless_it_is_given_as_0() -> None:
    bench = Bench(Setting(start="dense", updates=1, dense_updates=1), 1)
    for floor, least in (("", 1), (":cross_floor=0", 0), (":cross_floor=layer", 2), (":cross_floor=3", 3)):
        arm = parse_arm(f"gradient{floor}")
        assert arm.spec == f"gradient{floor or ':cross_floor=1'}"
        for k in (3, 8):
            layout = bench.run(arm, k).layout
            assert layout.count == k
            assert layout.by_type()["cross"][0] >= least
    assert bench.run(parse_arm("magnitude"), 0).layout.count == 0
    assert bench.objections(parse_arm("gradient:cross_floor=5"), 4)
    assert bench.objections(parse_arm("gradient:cross_floor=some"), 4)


def test_an_arm_of_the_recipe_has_what_a_training_of_that_length_has() -> None:
    bench = Bench(Setting(updates=300), 1)
    options = bench._options(parse_arm("dsp:recipe=auto,final_temperature=0.2,relaxation=projection"), 4)
    assert (options["cooldown_updates"], options["initial_temperature"], options["final_temperature"]) == (
        120,
        1.0,
        "0.2",
    )
    assert options["importance_lr"] == pytest.approx(25 / 120, rel=1e-2)
    model = bench.build(options)
    assert model.head_gates.method.fixes_at == 120
    assert "importance_lr" not in bench._options(parse_arm("dsp"), 4)


def test_an_arm_may_be_taught_by_the_dense_model_and_deploy_a_budget_of_a_range() -> None:
    bench = Bench(Setting(start="dense", updates=3, dense_updates=3), 1)
    for k in (3, 9):
        arm = parse_arm("dsp:recipe=auto,unpruned_heads=3..24,sandwich=true,distillation=0.5")
        assert bench.objections(arm, k) == []
        assert bench.run(arm, k).layout.count == k
    alone, taught = (bench.run(parse_arm(f"fixed{options}"), 4).loss for options in ("", ":distillation=0.9"))
    assert alone != taught
    for wrong, k, words in (
        ("dsp:unpruned_heads=3..24", 2, "a range of budgets with 2 in it"),
        ("dsp:unpruned_heads=5", 4, "a range of budgets with 4 in it"),
    ):
        (reason,) = bench.objections(parse_arm(wrong), k)
        assert words in reason
    for option in ("distillation=0.5", "importance_from=fisher"):
        (reason,) = Bench(Setting(), 1).objections(parse_arm(f"dsp:{option}"), 4)
        assert "`--start` must be dense" in reason


def test_importance_may_begin_in_the_order_of_a_scorer_of_the_dense_model() -> None:
    bench = Bench(Setting(start="dense", updates=1, dense_updates=2, lr=0.0), 1)
    frozen = "importance_lr=0,cooldown_updates=1,cross_floor=1"  # nothing is learned: the start alone decides
    for scorer, k in (("magnitude", 3), ("fisher", 8)):
        scored = bench.run(parse_arm(scorer), k).layout
        assert bench.run(parse_arm(f"dsp:importance_from={scorer},{frozen}"), k).layout == scored
        assert bench.run(parse_arm(f"dsp:{frozen}"), k).layout != scored


@given(st.integers(0, 24), seeds)
def test_cross_first_gives_every_decoder_layer_its_cross_attention_first(k: int, seed: int) -> None:
    layout = draw_stratified(GRID, cross_first(GRID, k), seed)
    assert layout.count == k
    enc, dec, cross = (layout.by_type()[stack][0] for stack in ("enc", "dec", "cross"))
    assert cross >= dec >= enc >= cross - 2
    assert cross >= min(k, 2)
    assert max(map(len, (layout.units(site) for site in GRID.sites))) <= -(-k // 6)


@given(st.integers(0, 24), seeds)
def test_shuffled_keeps_the_counts_of_every_site(k: int, seed: int) -> None:
    source = Layout.full(GRID).random_subset(k, seed)
    drawn = control_layout(parse_arm("shuffled:dsp"), GRID, k, seed + 1, lookup.needed_heads(GRID), source)
    assert drawn.surviving == source.surviving


def run(path: Path, *arguments: str) -> list[dict[str, Any]]:
    choice.main(["--json", str(path), *arguments])
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_finished_arms_are_kept_and_a_line_cut_short_is_done_again(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "choice.jsonl"
    arguments = [*TINY, "--start", "dense", "--dense-updates", "2", "--methods"]
    arms = ["dsp", "shuffled:dsp", "fixed", "gradient:cross_floor=1"]
    first = run(path, *arguments, *arms)
    assert [(line["seed"], line["method"]) for line in first] == [(seed, arm) for seed in (1, 2) for arm in arms]
    for line in first:
        layout = Layout.parse(line["layout"])
        assert layout.count == line["kept"] == sum(line["counts"].values()) == 4
        assert 0 <= line["accuracy"] <= min(line["lookups"])
    learned, shuffled = (Layout.parse(line["layout"]) for line in first[:2])
    assert learned.surviving == shuffled.surviving
    whole = path.read_text()
    path.write_text(whole[:-20])  # its writer was killed
    again = run(path, *arguments, *arms)
    assert again[:-1] == first[:-1]
    assert again[-1] | {"seconds": 0} == first[-1] | {"seconds": 0}  # the same to the last digit
    assert run(path, *arguments, *arms) == again
    other = run(path, *TINY, "--methods", "fixed")  # another setting does not count as this one's
    assert len(other) == len(again) + 2
    assert "1 of 24" not in capsys.readouterr().out


def test_jobs_finish_the_same_lines(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone.jsonl", *TINY, "--methods", "fixed")
    together = run(tmp_path / "together.jsonl", *TINY, "--methods", "fixed", "--jobs", "2")
    key = lambda line: line["seed"]  # noqa: E731
    assert [line | {"seconds": 0} for line in sorted(together, key=key)] == [line | {"seconds": 0} for line in alone]


def test_differences_are_paired_by_seed() -> None:
    setting = Setting()
    values = {"fixed": {1: 1.0, 2: 2.0, 3: 5.0}, "ste": {1: 0.5, 2: 1.5}}
    lines = [
        {"method": arm, "kept": 4, "seed": seed, "loss": loss, "accuracy": 0.5, "lookups": [1, 1, 0.25],
         "layout": str(Layout.full(GRID).random_subset(4, 0)), "setting": vars(setting)}
        for arm, runs in values.items() for seed, loss in runs.items()
    ]  # fmt: skip
    (table,) = choice_lines.tables(lines, setting, [parse_arm("fixed"), parse_arm("ste")], [4], [1, 2, 3])
    columns = [list(column.cells) for column in table.columns]
    assert columns[1] == ["3", "2"]
    assert columns[4] == ["", "-0.500 ± 0.000"]
    assert columns[5] == ["", "2/2"]
    assert choice_lines.mean_and_error([1.0, 2.0, 3.0]) == f"2.000 ± {1 / math.sqrt(3):.3f}"
    assert choice_lines.mean_and_error([1.0]) == "1.000"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--methods", "nosuch", "dsp:importance_lr=", "--kept", "x", "--seeds", "2-", "--updates", "0", "--jobs", "0"],
         ["nosuch", "option=value", "`--kept`", "`--seeds`", "`--updates`", "`--jobs`"]),
        (["--methods", "dsp", "dsp", "shuffled:ste"], ["names dsp twice", "must have ste before"]),
        (["--methods", "gradient", "dsp:final_temperature=-1", "ste:relaxation=projection", "--kept", "4,99"],
         ["`--start` must be dense", "`--final-temperature`", "`--relaxation` belongs to dsp", "between 0 and 24"]),
        (["--methods", "dsp:importance_lr=much", "sufficient", "--kept", "2"], ["`--importance-lr`", "cannot keep 2 heads"]),
        (["--dense-updates", "5"], ["`--dense-updates`"]),
        (["--start", "dense", "--methods", "dsp:distillation=much", "fixed:distillation=1.5"],
         ["must be above 0 and at most 1, but is much", "must be above 0 and at most 1, but is 1.5"]),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_at_once_and_leaves_nothing(
    arguments: list[str], wrong: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "choice.jsonl"
    with pytest.raises(Refusal) as refused:
        choice.main(["--json", str(path), *arguments])
    assert all(any(words in reason for reason in refused.value.reasons) for words in wrong), refused.value.reasons
    assert not path.exists()


@pytest.mark.parametrize("content", ['{"method": "dsp"}\n', "dear diary,\nit rained", "no line at all", "[1]\n"])
def test_files_of_others_are_refused_and_left(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(Refusal, match="line 1"):
        choice.main(["--json", str(path), *TINY])
    assert path.read_text() == content
