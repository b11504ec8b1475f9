"""explore.py: every arm runs on a tiny model, the command goes on where it stopped, refusals; explore_report.py reads the lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import ROOT

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.layout import Layout

sys.path.insert(0, str(ROOT / "examples/translation"))

import explore
import explore_report
from exploration.levels import LEVELS
from exploration.plans import PLANS
from exploration.setting import Setting

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
    assert [(line["arm"], line["a"]["family"]) for line in arms] == [(job.arm, job.family) for job in jobs]
    for line in arms:
        layout = Layout.parse(line["layout"])
        assert layout.count == 6, line
        if line["a"].get("floor") != 0 and "draw" not in line["a"]:
            assert layout.by_type()["cross"][0] >= 1, line
        assert 0 < line["nats"] < 20
        assert 0 <= line["used"] <= 5 or line["a"]["family"] in ("race", "obs")


def test_levels_have_the_size_of_a_dense_model_of_a_layer_less_and_never_more(data: Path, tmp_path: Path):
    size = "--layers 3 --heads 2 --ffn 32 --updates 2".split()
    call(data, tmp_path / "out", *size, "--plan", "levels", "--seeds", 1)
    lines = {line["arm"]: line for line in lines_of(tmp_path / "out") if "share" in line}
    assert lines.keys() == {*LEVELS, "dense-small"}
    most = lines["dense-small"]["parameters"]
    units = 4 * 12 * 6 + 3 * 6 + 16 * (2 * 12 + 1)  # a head and a group
    stay = (
        2 * 2 * 12 + 12 + 12 + 3 * 2 * 12 + 2 * 12 + 12
    )  # norms and output biases of a layer of both sides, which never go
    for name in LEVELS:
        assert most - 2 * units < lines[name]["parameters"] <= most + stay, name
    kept = {name: Layout.parse(line["layout"]).by_kind() for name, line in lines.items()}
    assert kept["heads"]["neuron groups"] == (12, 12)
    assert kept["ffn"]["heads"] == (18, 18)
    assert kept["random"] == kept["joint"]
    assert Layout.parse(lines["random"]["layout"]).by_type()["cross"][0] >= 1


def test_an_arm_that_moves_weights_while_it_chooses_has_no_loss_of_a_cut(explored: Path):
    for line in lines_of(explored)[1:]:
        a = line["a"]
        moves = a["family"] == "gradual" or a["family"] in ("learned", "elim") and "rewind" not in a
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
    explore_report.main([str(explored / "results.jsonl"), "--against", "fisher"])
    printed = capsys.readouterr().out
    for line in lines_of(explored)[1:]:
        assert line["arm"] == "landscape" or f"| {line['arm']} | " in printed
    with pytest.raises(Refusal, match="`--against` must be an arm of the files, but is nothing"):
        explore_report.main([str(explored / "results.jsonl"), "--against", "nothing"])
