"""explore.py: every arm runs on a tiny model, the command goes on where it stopped, refusals; explore_report.py reads the lines."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, generate
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from models import not_on_0_12_2

from fairseq_dsp.analysis.translations import read_translations, tokenised_bleu
from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.layout import Layout, Site

sys.path.insert(0, str(ROOT / "examples/translation"))

import explore
import explore_report
from exploration import by_another
from exploration.families import FAMILIES, Choice
from exploration.levels import LEVELS
from exploration.making import RECIPE
from exploration.plans import PLANS
from exploration.setting import Job, Setting
from exploration.translating import bleu_of, load_test

TINY = "--layers 1 --heads 6 --width 12 --ffn 8 --max-tokens 600 --dense-updates 4 --warmup 2 --updates 5".split()


def call(data: Path, output: Path, *more: object) -> None:
    explore.main(["--data", str(data), "--output", str(output), *TINY, *map(str, more)])


def lines_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def explored(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("explored") / "out"
    call(data, output, "--plan", "smoke")
    return output


def test_every_arm_keeps_its_heads_one_of_them_in_cross_attention(explored: Path):
    jobs = PLANS["smoke"](Setting(layers=1, heads=6), [1])
    dense, *arms = lines_of(explored)
    assert (dense["arm"], dense["curve"][-1][0]) == ("dense", 4)
    own = [line for line in arms if line["K"] == 6]
    assert [(line["arm"], line["a"]["family"]) for line in own] == [(job.arm, job.family) for job in jobs]
    for line in own:
        if line["a"]["family"] == "narrow":
            continue
        layout = Layout.parse(line["layout"])
        assert layout.count == 6, line
        if line["a"].get("floor") != 0 and "draw" not in line["a"]:
            assert layout.by_type()["cross"][0] >= 1, line
        assert 0 < line["nats"] < 20
        assert 0 <= line["used"] <= 5 or line["a"]["family"] in ("race", "obs")


def test_a_range_is_one_training_of_nested_layouts_each_with_a_line(explored: Path):
    larger, smallest = (line for line in lines_of(explored) if line["arm"] == "range")
    assert (larger["K"], smallest["K"]) == (18, 6)
    few, many = (Layout.parse(line["layout"]) for line in (smallest, larger))
    assert (few.count, many.count) == (6, 18)
    assert all(on for on, also in zip(many.kept, few.kept, strict=True) if also)
    assert smallest["parameters"] < larger["parameters"]
    assert smallest["used"] == larger["used"] == 5


def test_a_range_in_the_order_of_scores_keeps_the_heads_that_they_cut(explored: Path):
    lines = {(line["arm"], line["K"]): line for line in lines_of(explored)[1:]}
    assert lines["range-fisher", 6]["layout"] == lines["fisher", 6]["layout"]
    assert lines["range-fisher", 6]["nats"] != lines["range", 6]["nats"]


def test_arms_from_scratch_have_the_updates_of_a_dense_model_and_its_size_where_they_are_dense(explored: Path):
    lines = {line["arm"]: line for line in lines_of(explored)[1:] if line["arm"].startswith("scratch-")}
    assert len(lines) == 6
    assert {(line["U"], line["lr"], line["schedule"], line["a"]["scratch"]) for line in lines.values()} == {
        (4, 3e-3, "isqrt", 1)
    }
    assert Layout.parse(lines["scratch-dense-small"]["layout"]).count == 18  # narrower ones
    assert 0 <= lines["scratch-even"]["parameters"] - lines["scratch-dense-small"]["parameters"] < 2 * 2 * 13
    assert Layout.parse(lines["scratch-even"]["layout"]).by_type() == {"enc": (2, 6), "dec": (2, 6), "cross": (2, 6)}


def test_levels_have_the_size_of_a_smaller_dense_model_and_never_more(data: Path, tmp_path: Path):
    size = "--layers 3 --heads 2 --ffn 32 --updates 2".split()
    call(data, tmp_path / "out", *size, "--plan", "levels", "--seeds", 1)
    lines = [line for line in lines_of(tmp_path / "out") if "share" in line]
    units = 4 * 12 * 6 + 3 * 6 + 16 * (2 * 12 + 1)  # a head and a group
    stay = (
        2 * 2 * 12 + 12 + 12 + 3 * 2 * 12 + 2 * 12 + 12
    )  # norms and output biases of a layer of both sides, which never go
    for share, names in ((2 / 3, {*LEVELS}), (0.5, {*LEVELS} - {"ffn"})):
        found = {line["arm"]: line for line in lines if line["share"] == share}
        assert found.keys() == {*names, "dense-small"}
        dense = found["dense-small"]["parameters"]
        for name in names:
            assert dense - 2 * units < found[name]["parameters"] <= dense + (stay if share != 0.5 else 3 * 2 * 25), name
        kept = {name: Layout.parse(line["layout"]).by_kind() for name, line in found.items()}
        assert kept["heads"]["neuron groups"] == (12, 12)
        assert "ffn" not in names or kept["ffn"]["heads"] == (18, 18)
        assert kept["random"] == kept["joint"]
        assert Layout.parse(found["random"]["layout"]).by_type()["cross"][0] >= 1


def test_a_network_that_scores_is_taught_by_the_model_of_another_seed(data: Path, tmp_path: Path, monkeypatch):
    job = Job("one-shot-cut", 3, 2, "scored", {"by": "one-shot", "taught_by": 7, "recut": 1})
    monkeypatch.setitem(PLANS, "neighbours", lambda setting, seeds: [job])
    taught = []
    learn = by_another.train_one_shot
    monkeypatch.setattr(
        by_another, "train_one_shot", lambda examples, *rest: taught.append(examples) or learn(examples, 3, *rest[1:])
    )
    call(data, tmp_path / "out", "--plan", "neighbours")
    *dense, found = lines_of(tmp_path / "out")
    assert [line["seed"] for line in dense] == [2, 7]
    assert Layout.parse(found["layout"]).count == 3
    ((example,),) = taught
    theirs = torch.load(tmp_path / "out/dense7.pt", weights_only=True)
    ours = example.subject.modules[Site("cross", 0)].out_proj.weight
    assert ours.equal(theirs["decoder.layers.0.encoder_attn.out_proj.weight"])


def test_heads_drawn_anew_have_all_updates_and_no_weights_that_adapted_to_the_choice(
    data: Path, tmp_path: Path, monkeypatch
):
    jobs = [Job("recipe", 5, 1, "learned", RECIPE), Job("recipe-shuffled", 5, 1, "learned", {**RECIPE, "shuffle": 1})]
    monkeypatch.setitem(PLANS, "target", lambda setting, seeds: jobs)
    call(data, tmp_path / "out", "--plan", "target")
    _, chosen, shuffled = lines_of(tmp_path / "out")
    assert (chosen["used"], shuffled["used"]) == (2, 0)
    assert chosen["counts"] == shuffled["counts"]
    monkeypatch.setitem(FAMILIES, "fixed", lambda lab: Choice(Layout.parse(shuffled["layout"])))
    monkeypatch.setitem(PLANS, "target", lambda setting, seeds: [Job("known", 5, 1, "fixed")])
    call(data, tmp_path / "out", "--plan", "target")
    known = lines_of(tmp_path / "out")[-1]
    assert [known[name] for name in ("cut", "nats")] == [shuffled[name] for name in ("cut", "nats")]


def test_an_arm_that_moves_weights_while_it_chooses_has_no_loss_of_a_cut(explored: Path):
    for line in lines_of(explored)[1:]:
        a = line["a"]
        moves = (
            a["family"] in ("gradual", "range")
            or a["family"] in ("learned", "elim", "method")
            and not {"rewind", "shuffle"} & a.keys()
        )
        assert ("cut" in line) != moves, line


def test_the_same_command_goes_on_and_a_broken_last_line_is_run_again(explored: Path, data: Path, capsys):
    results = explored / "results.jsonl"
    before = results.read_text()
    call(data, explored, "--plan", "smoke")
    assert results.read_text() == before
    results.write_text(before[:-5])
    call(data, explored, "--plan", "smoke")
    again = lines_of(explored)
    assert results.read_text().count("\n") == before.count("\n")
    timeless = [{k: v for k, v in line.items() if k != "seconds"} for line in again]
    assert (
        timeless[-1]["nats"] == json.loads(before.splitlines()[-1])["nats"]
    )  # an arm is a function of its line's head
    assert "are in" in capsys.readouterr().out


def test_new_arms_translate_the_test_set_and_lines_without_it_stay(explored: Path, data: Path, tmp_path: Path, capsys):
    output = tmp_path / "out"
    shutil.copytree(explored, output)
    before = lines_of(output)
    (output / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before[:-2]))
    call(data, output, "--plan", "smoke", "--bleu", 7)
    again = lines_of(output)
    assert again[:-2] == before[:-2]
    assert [line["nats"] for line in again[-2:]] == [line["nats"] for line in before[-2:]]
    for line in again[-2:]:
        assert 0 <= line["bleu"] <= 100
        assert line["bleu_sentences"] == 7
        assert "version" in line["bleu_signature"]
    explore_report.main([str(output / "results.jsonl"), "--lr", "0.004"])
    assert "| bleu | 6 heads |" in capsys.readouterr().out
    (output / "more.jsonl").write_text(json.dumps({**again[-1], "bleu_sentences": 8}) + "\n")
    with pytest.raises(Refusal, match="BLEU of the files must be of the same sentences"):
        explore_report.main([str(output / "results.jsonl"), str(output / "more.jsonl")])


@not_on_0_12_2
def test_bleu_is_that_of_fairseq_generate(data: Path, dense: Path, tmp_path: Path):
    done = generate(data, dense, "--beam", 5, "--max-len-b", 200, folder=tmp_path)
    cfg = TranslationConfig(
        data=str(data), source_lang="aa", target_lang="bb", dataset_impl=None, required_seq_len_multiple=1
    )
    task = TranslationTask.setup_task(cfg)
    test = load_test(str(data), task, 10**6, "cpu")
    found = bleu_of(load_model(read_checkpoint(str(dense))).float(), task, test)
    expected = tokenised_bleu(read_translations(done.out, len(test.references)))
    assert 0 < expected.value < 100
    assert (found["bleu"], found["bleu_signature"]) == (pytest.approx(expected.value, abs=1e-3), expected.signature)
    assert found["bleu_sentences"] == len(test.references)
    few = load_test(str(data), task, 5, "cpu")
    assert few.references == test.references[:5]
    assert sorted(index for batch in few.batches for index in batch["id"].tolist()) == [0, 1, 2, 3, 4]


def test_nothing_is_begun_after_the_limit(data: Path, tmp_path: Path, capsys):
    call(data, tmp_path / "out", "--plan", "smoke", "--limit", 1e-9)
    assert not (tmp_path / "out/results.jsonl").exists()
    assert capsys.readouterr().out.startswith("0 of ")


def test_what_does_not_fit_is_refused_and_nothing_is_written(explored: Path, data: Path, tmp_path: Path):
    with pytest.raises(Refusal, match="`--width` must be 12 in .* but is 6"):
        call(data, explored, "--plan", "smoke", "--width", 6)
    with pytest.raises(Refusal, match="must fit the 18 heads of the model, but keeps 24"):
        call(data, tmp_path / "out", "--plan", "phase1")
    with pytest.raises(Refusal) as refused:
        call(data, tmp_path / "out", "--plan", "smoke", "--updates", 0, "--dropout", 2, "--seeds", "a", "--workers", -1)
    assert len(refused.value.reasons) == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(Refusal, match="`--output` must be a new folder or one of an exploration"):
        call(data, tmp_path / "other", "--plan", "smoke")
    with pytest.raises(Refusal, match="`--data` must be a folder of fairseq-preprocess"):
        call(tmp_path / "none", tmp_path / "out", "--plan", "smoke")
    assert not (tmp_path / "out").exists()


def test_the_report_has_every_arm_of_the_lines(explored: Path, capsys):
    path = str(explored / "results.jsonl")
    for lr in ("0.001", "0.004"):
        explore_report.main([path, "--lr", lr, "--against", "fisher"])
    explore_report.main([path, "--lr", "0.003"])
    printed = capsys.readouterr().out
    for line in lines_of(explored)[1:]:
        assert line["arm"] == "landscape" or f"| {line['arm']} | " in printed
    with pytest.raises(Refusal, match="`--against` must be an arm of the files, but is nothing"):
        explore_report.main([path, "--lr", "0.004", "--against", "nothing"])
