"""A slice of each campaign; docs/reliability.md names the long runs."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import made_up
import pytest
from commands import ROOT, prune

sys.path.append(str(ROOT))

from tests.campaigns import folders, fuzz, kills, mutations, naming, reproducing, soak
from tests.campaigns.cases import Case, Source
from tests.campaigns.judging import Judge
from tests.campaigns.material import LAYOUT, NEURONS, Material, Tally

TARGETS = kills.targets


@pytest.fixture(scope="session")
def narrow(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained`, rewritten without some of its neurons."""
    target = tmp_path_factory.mktemp("narrow") / "narrow.pt"
    prune(trained, target, "--layout", f"{LAYOUT}/{NEURONS}")
    return target


@pytest.fixture
def made(data: Path, dense: Path, trained: Path, pruned: Path, narrow: Path, tmp_path: Path) -> Material:
    results = made_up.write(tmp_path / "results.jsonl", [made_up.run("dense", 36), made_up.run(), made_up.run(kept=12)])
    return Material(data, dense, trained, pruned, narrow, results)


@pytest.fixture(params=["two", pytest.param("all", marks=pytest.mark.slow)])
def commands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """How many commands a campaign takes: all, or one that writes a file and one that writes a folder, for all write through
    `files/output`. The two draw no figures."""
    if request.param == "all":
        yield 6
        return
    for campaign in (kills, naming):
        monkeypatch.setattr(
            campaign, "targets", lambda made: [t for t in TARGETS(made) if t.name in ("prune", "report")]
        )
    with fuzz.drawing_nothing():
        yield 2


def test_kills(commands: int, made: Material, tmp_path: Path):
    tally = Tally(commands)
    kills.kill_commands(made, tmp_path, commands, random.Random(1), tally)
    assert tally.done == commands
    assert not tally.failures


def test_outputs_named_in_odd_ways(commands: int, made: Material, tmp_path: Path):
    tally = Tally(9 * commands)
    naming.name_outputs(made, tmp_path, 9 * commands, random.Random(1), tally)
    assert tally.done == 9 * commands
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


@pytest.mark.parametrize("real", [0, pytest.param(1, marks=pytest.mark.slow)])  # which imports fairseq for each case
def test_broken_inputs(real: int, made: Material, tmp_path: Path):
    tally = Tally(60 + real)
    fuzz.run(made, tmp_path, 60, real, 1, tally)
    assert tally.done == 60 + real
    assert not tally.failures
    kinds = {"layout", "budget", "scores", "costs", "results", "options", "acting options", "weights", "bytes"}
    assert len(kinds & tally.figures.keys()) >= 6  # of so few cases a kind may have none
    assert tally.figures["refused"] > 20


def test_odd_dictionaries(made: Material, tmp_path: Path):
    pytest.importorskip("ctranslate2")
    from tests.campaigns import dictionaries

    tally = Tally(30)
    dictionaries.run(made, tmp_path, 30, 1, tally)
    assert tally.done == 30
    assert tally.figures["done"] > 5
    assert tally.figures["refused"] > 5
    assert not tally.failures


def test_folders_used_again(made: Material, tmp_path: Path):
    tally = Tally(4)
    folders.use_again(made, tmp_path, 4, random.Random(5), tally)
    assert tally.done == 4
    assert not tally.failures
    assert sum(tally.figures.get(name, 0) for name in ("done", "done in a new folder")) >= 1


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    (tmp_path / "outputs").mkdir()
    return Judge(tmp_path / "outputs", tmp_path / "executed")


@pytest.fixture
def source(made: Material, tmp_path: Path) -> Source:
    (tmp_path / "broken").mkdir()
    return Source(made, tmp_path / "broken", tmp_path / "executed")


def test_what_is_wrong_counts_as_a_failure(made: Material, judge: Judge):
    """The one test of a judge: that failures come through. What each is, the campaigns show in their long runs."""
    path = str(made.trained)
    assert not judge.run(Case("", "prune", (path, "OUT"), heads=5))
    assert "5 heads instead of 4" in judge.run(Case("", "prune", (path, "OUT"), heads=4))[0]
    assert "took what is not fit" in judge.run(Case("", "prune", (path, "OUT"), must_say="NaN"))[0]
    assert "does not name NaN" in judge.run(Case("", "prune", (path + "x", "OUT"), must_say="NaN"))[0]
    assert "TypeError" in judge.run(Case("", "prune", (3, "OUT")))[0]  # type: ignore[arg-type]


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
