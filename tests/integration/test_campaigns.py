"""A slice of each campaign, and whether what is wrong counts as a failure; docs/reliability.md names the long runs."""

from __future__ import annotations

import copy
import os
import random
import sys
from pathlib import Path

import made_up
import pytest
import torch
from commands import ROOT

sys.path.append(str(ROOT))

from fairseq_dsp.analysis import plots, report
from fairseq_dsp.cli import prune
from fairseq_dsp.errors import Refusal
from fairseq_dsp.export import ctranslate2 as conversion
from fairseq_dsp.export import specification
from tests.campaigns import folders, fuzz, judging, kills, mutations, naming, reproducing, soak
from tests.campaigns.cases import Case, Source
from tests.campaigns.judging import Judge
from tests.campaigns.material import Material, Tally
from tests.campaigns.mutations import SECRET


@pytest.fixture
def made(data: Path, dense: Path, trained: Path, pruned: Path, tmp_path: Path) -> Material:
    results = made_up.write(tmp_path / "results.jsonl", [made_up.run("dense", 36), made_up.run(), made_up.run(kept=12)])
    return Material(data, dense, trained, pruned, results)


def test_kills(made: Material, tmp_path: Path):
    tally = Tally(6)
    kills.kill_commands(made, tmp_path, 6, random.Random(1), tally)
    assert tally.done == 6
    assert not tally.failures


def test_outputs_named_in_odd_ways(made: Material, tmp_path: Path):
    tally = Tally(18)
    naming.name_outputs(made, tmp_path, 18, random.Random(1), tally)
    assert tally.done == 18
    assert not tally.failures
    assert {"outputs refused", "outputs written"} <= tally.figures.keys()


def test_several_writers_of_one_output(tmp_path: Path):
    tally = Tally(25)
    naming.write_together(tmp_path, 25, random.Random(1), tally)
    assert tally.done == 25
    assert not tally.failures


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_a_reproduction(made: Material, tmp_path: Path):
    tally = Tally(2)
    reproducing.kill_reproductions(made, tmp_path, 2, random.Random(1), tally)
    assert tally.done == 2
    assert not tally.failures
    assert tally.figures["reproductions that ended with the same results"] == 1


def test_broken_inputs(made: Material, tmp_path: Path):
    tally = Tally(61)
    fuzz.run(made, tmp_path, 60, 1, 1, tally)
    assert tally.done == 61
    assert not tally.failures
    kinds = {"layout", "budget", "scores", "results", "options", "acting options", "weights", "bytes"}
    assert len(kinds & tally.figures.keys()) >= 6  # of so few cases a kind may have none
    assert tally.figures["refused"] > 20


@pytest.mark.parametrize("names", ["as they are", "of ctranslate2's own converter", "of the text alone"])
def test_odd_dictionaries(names: str, made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ctranslate2")
    from tests.campaigns import dictionaries

    if names == "of ctranslate2's own converter":  # whatever words a dictionary has, as all exports did once
        monkeypatch.setattr(specification.Vocabularies, "padding", "<blank>")
    elif names == "of the text alone":  # two of a name, and the model unchecked: another word in silence
        monkeypatch.setattr(conversion, "_repeated", lambda _: "")
        monkeypatch.setattr(conversion, "TOLERANCE", 1e9)
    tally = Tally(30)
    dictionaries.run(made, tmp_path, 30, 1, tally)
    assert tally.done == 30
    assert tally.figures["done"] > 5
    assert tally.figures["refused"] > 5
    assert bool(tally.failures) == (names != "as they are"), tally.failures


def test_folders_used_again(made: Material, tmp_path: Path):
    tally = Tally(4)
    folders.use_again(made, tmp_path, 4, random.Random(5), tally)
    assert tally.done == 4
    assert not tally.failures
    assert sum(tally.figures.get(name, 0) for name in ("done", "done in a new folder")) >= 1


def test_a_checkpoint_of_another_training_counts_as_a_failure(made: Material, tmp_path: Path):
    path, content = made.trained, made.trained.read_bytes()
    asked = {"head_selection": "dsp", "unpruned_heads": 5, "cooldown_updates": 8}
    for options, words in (
        ({}, ""),
        ({"unpruned_heads": 4}, "of 5 heads"),
        ({"cooldown_updates": 9}, "trained for cooldown_updates 8"),
        ({"head_selection": "ste"}, "trained for dsp"),
    ):
        failures = folders.wrong(folders.Wish({**asked, **options}, "as it comes", ()), 0, "", path, content)
        assert words in "".join(failures)
        assert bool(failures) == bool(words)
    wish = folders.Wish(asked, "as it comes", ())
    assert "ended with code 1" in folders.wrong(wish, 1, "fairseq_dsp: error: no", path, content)[0]
    assert "is another" in folders.wrong(wish, 2, "fairseq_dsp: error: no", path, b"")[0]
    assert folders.wrong(wish, 2, "fairseq_dsp: error: no", path, content) == []


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    (tmp_path / "outputs").mkdir()
    return Judge(tmp_path / "outputs", tmp_path / "executed")


@pytest.fixture
def source(made: Material, tmp_path: Path) -> Source:
    (tmp_path / "broken").mkdir()
    return Source(made, tmp_path / "broken", tmp_path / "executed")


def test_what_is_wrong_counts_as_a_failure(made: Material, judge: Judge):
    path = str(made.trained)
    assert not judge.run(Case("", "prune", (path, "OUT"), heads=5))
    assert "5 heads instead of 4" in judge.run(Case("", "prune", (path, "OUT"), heads=4))[0]
    assert "took what is not fit" in judge.run(Case("", "prune", (path, "OUT"), must_say="NaN"))[0]
    assert "does not name NaN" in judge.run(Case("", "prune", (path + "x", "OUT"), must_say="NaN"))[0]
    assert "TypeError" in judge.run(Case("", "prune", (3, "OUT")))[0]  # type: ignore[arg-type]


def test_an_output_is_compared_with_that_of_the_same_command_on_the_same_file(source: Source, judge: Judge):
    judge.undamaged(source)
    whole = source.bytes[source.made.trained]
    cases = {case.same: case for case in source.undamaged() if case.same[0] == source.made.trained.name}
    cases = {same: case for same, case in cases.items() if same[1] in ("average", "score")}
    for same, case in cases.items():
        source.damage(whole, same[1:], source.made.trained)
        assert same in judge.expected
        assert judge.run(case) == []
    state = torch.load(source.made.trained, weights_only=True)
    state["cfg"]["common"]["seed"] = 4
    state["model"]["encoder.layers.0.fc1.weight"] *= 2
    torch.save(state, source.folder / "broken.pt")
    for same, case in cases.items():
        failures = "".join(judge.run(case))
        assert ("other options" in failures) == (same[1] != "score")
        assert ("other weights" in failures) == (same[1] != "score")
    state["model"]["encoder.layers.0.self_attn.q_proj.weight"] *= 2
    torch.save(state, source.folder / "broken.pt")
    assert "other scores" in judge.run(next(case for same, case in cases.items() if same[1] == "score"))[0]
    pruned = source.damage(whole, ("prune", "broken", "OUT"), source.made.pruned)
    assert "is refused when it is whole" in judge.run(pruned)[0]


def test_a_report_with_single_pixels_for_figures_counts_as_whole(made: Material, judge: Judge):
    case = Case("", "report", (str(made.results), "--output", "OUT"))
    with fuzz.drawing_nothing():
        assert judge.run(case) == []


def test_scores_of_other_heads_and_half_a_report_count_as_failures(made: Material, judge: Judge, monkeypatch):
    score = (str(made.data), "--path", str(made.trained), "--scorer", "magnitude", "--output", "OUT", "--cpu")
    assert judge.run(Case("", "score", score, reads=str(made.trained))) == []
    assert "of a model with" in judge.run(Case("", "score", score, reads=str(made.pruned)))[0]
    monkeypatch.setattr(plots, "score_against_heads", lambda _, *paths, note: [Path(path).touch() for path in paths])
    monkeypatch.setattr(report, "_figure", lambda *_: report.FigureFile("none", "", "", 1))
    failures = "".join(judge.run(Case("", "report", (str(made.results), "--output", "OUT"))))
    assert "bleu-against-heads.png, which is empty" in failures
    assert "does not show" in failures


@pytest.mark.parametrize("way", ["in this process", "in a child", "as a command"])
def test_a_refusal_for_want_of_memory_counts_as_a_failure(way: str, judge: Judge, monkeypatch, tmp_path: Path):
    def main(_: object = None) -> None:
        try:
            torch.empty(1 << 50)
        except RuntimeError as error:
            raise Refusal(
                "the checkpoint must be whole" + (f": {error}" if way != "in this process" else "")
            ) from error

    monkeypatch.setattr(prune, "main", main)
    case = Case("", "prune", ("IN", "OUT"), apart=way == "in a child")
    if way == "as a command":
        (tmp_path / "fairseq-dsp-prune").write_text("#!/bin/sh\necho 'error: MemoryError' >&2; exit 2\n")
        (tmp_path / "fairseq-dsp-prune").chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    failures = (judge.run_command if way == "as a command" else judge.run)(case)
    assert "want of memory" in failures[0]


def test_code_that_ran_a_secret_that_was_written_and_a_child_without_end_count_as_failures(
    judge: Judge, monkeypatch, tmp_path: Path
):
    def main(_: object = None) -> None:
        judge.marker.mkdir()
        print("error:", os.environ[SECRET])
        raise Refusal("the checkpoint must hold no code.")

    monkeypatch.setattr(prune, "main", main)
    for apart in (False, True):
        secret, code = judge.run(Case("", "prune", ("IN", "OUT"), apart=apart))
        assert "in the environment" in secret
        assert "ran the code of an option" in code
    monkeypatch.setattr(judging, "SECONDS", 0.2)
    monkeypatch.setattr(prune, "main", lambda _=None: pow(9, 9**9))
    assert "no end" in judge.run(Case("", "prune", ("IN", "OUT"), apart=True))[0]


@pytest.mark.parametrize("form", mutations.FORMS)
def test_no_text_among_a_checkpoint_s_options_acts(form: str, source: Source, judge: Judge):
    texts = [("adaptive_softmax_cutoff", text) for text in mutations.expressions(source.marker)]
    texts += [("data", text) for text in mutations.INTERPOLATIONS]
    failures = []
    for name, text in texts:
        state = copy.deepcopy({**source.state, "model": {}})
        for options in (vars(state["cfg"]["model"]), state["cfg"]["task"]):
            options[name] = text
        state = {**mutations.in_form(state, form), "model": source.state["model"]}
        with fuzz.limited_memory():
            failures += judge.run(source.acting((state, f"{name} = {text}"), ("prune", "broken", "OUT")))
    assert failures == []


def test_soak(made: Material):
    words = ["--masked", made.trained, "--rewritten", made.pruned, "--data-bin", made.data, "--count", 37]
    assert soak.main([str(word) for word in words]) == 0


def test_soak_finds_another_model(made: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = torch.load(made.pruned, weights_only=True)
    state["model"]["decoder.layers.0.fc1.weight"] += 1e-3
    torch.save(state, tmp_path / "other.pt")
    words = ["--masked", made.trained, "--rewritten", tmp_path / "other.pt", "--data-bin", made.data, "--count", 37]
    assert soak.main([str(word) for word in words]) == 1
    assert "scores" in capsys.readouterr().err
