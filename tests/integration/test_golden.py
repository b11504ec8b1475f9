"""Numbers that stay true: stored checkpoints translate as they did, and a seed gives the same model again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUIET, ROOT, Result, budget, different, generate, load, prune, train
from models import not_on_0_12_2

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.options.stored_layout import stored_layout
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.fingerprint import fingerprint
from fairseq_dsp.units.floors import floors_of
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.score_file import read_scores

sys.path.append(str(ROOT))
from tests.golden.make import translate

GOLDEN = ROOT / "tests/golden"
KEPT_BY_MAGNITUDE = "enc:00.00/dec:01.00/cross:01.11/ffn-enc:00000000.00000000/ffn-dec:11111111.00000010"
METHODS = {
    "dsp": [],
    "ste": ["--head-selection", "ste"],
    "hard-concrete": ["--head-selection", "hard-concrete"],
    "function-norm": ["--head-selection", "function-norm"],
    "site-threshold": ["--head-selection", "site-threshold"],
}


@pytest.mark.parametrize("name", ["rewritten.pt", "trained.pt"])
def test_a_stored_checkpoint_translates_as_it_did(name: str, tmp_path: Path):
    assert_translated(translate(GOLDEN, GOLDEN / name, tmp_path), GOLDEN / "expected.tsv")


def assert_translated(done: Result, expected: Path) -> None:
    rows = [line.split("\t") for line in expected.read_text().splitlines()]
    assert [text for _, text in sorted(done.hypotheses().items())] == [text for _, text in rows]
    assert [score for _, score in sorted(done.scores().items())] == pytest.approx(
        [float(score) for score, _ in rows], abs=2e-4
    )


@not_on_0_12_2  # whose states have two numbers more
def test_a_stored_training_checkpoint_is_rewritten_to_the_same_weights(tmp_path: Path):
    prune(GOLDEN / "trained.pt", tmp_path / "out.pt")
    ours, stored = load(tmp_path / "out.pt"), load(GOLDEN / "rewritten.pt")
    assert different(ours["model"], stored["model"]) == []
    assert ours["fairseq_dsp"]["layout"] == stored["fairseq_dsp"]["layout"]


def test_stored_scores_of_neurons_are_read_as_they_were_written_and_choose_the_same_units(tmp_path: Path):
    stored = GOLDEN / "format-2/scores.json"
    scores = read_scores(str(stored))
    assert scores.text() == stored.read_text()
    options = ["--scores", stored, "--budget", "heads=4,ffn=9"]
    prune(GOLDEN / "trained.pt", tmp_path / "out.pt", *options)
    kept = load(tmp_path / "out.pt")["fairseq_dsp"]["layout"]
    assert kept == KEPT_BY_MAGNITUDE
    assert kept == str(scores.keep_top_of_kinds({"heads": 4, "ffn": 9}, floors_of(scores.chosen.grid, 1)))


def test_stored_scores_still_choose_the_same_heads_and_weights_have_the_fingerprint_that_they_had(tmp_path: Path):
    scores = read_scores(str(GOLDEN / "scores.json"))
    done = prune(GOLDEN / "trained.pt", tmp_path / "out.pt", "--scores", GOLDEN / "scores.json", "--unpruned-heads", 4)
    assert "not checked" in done.out
    assert load(tmp_path / "out.pt")["fairseq_dsp"]["layout"] == str(scores.keep_top(4))
    assert str(scores.keep_top(4)) == "enc:00.01/dec:01.00/cross:01.01"
    found = fingerprint(load_model(read_checkpoint(str(GOLDEN / "trained.pt"))).weights())
    assert found["float32"] == "aa6a4f150579edc0d5063959b437de42"


@pytest.mark.parametrize("later", [3, None, "2", float("nan")])
def test_a_later_format_is_refused(later: Any, tmp_path: Path):
    state = load(GOLDEN / "rewritten.pt")
    state["fairseq_dsp"]["format"] = later
    torch.save(state, tmp_path / "later.pt")
    with pytest.raises(Refusal, match="format must be at most 2") as refused:
        read_checkpoint(str(tmp_path / "later.pt"))
    assert repr(later) in str(refused.value)


def test_a_stored_checkpoint_that_lost_neurons_is_read_rewritten_and_translates_to_the_same_text(tmp_path: Path):
    """Format 2."""
    stored = GOLDEN / "format-2/rewritten.pt"
    provenance = load(stored)["fairseq_dsp"]
    assert provenance["format"] == 2
    assert stored_layout(read_checkpoint(str(stored))) == Layout.parse(provenance["layout"])
    done = translate(GOLDEN, stored, tmp_path)
    assert_translated(done, GOLDEN / "format-2/expected.tsv")
    prune(GOLDEN / "trained.pt", tmp_path / "again.pt", "--layout", provenance["layout"])
    assert different(load(tmp_path / "again.pt")["model"], load(stored)["model"]) == []


def test_the_stored_files_are_worth_comparing():
    stored = load(GOLDEN / "rewritten.pt")
    layout = Layout.parse(stored["fairseq_dsp"]["layout"])
    assert min(len(layout.units(site)) for site in layout.grid.sites) == 0 < layout.count
    assert sum(path.stat().st_size for path in GOLDEN.glob("*.pt")) < 250_000
    texts = {line.split("\t")[1] for line in (GOLDEN / "expected.tsv").read_text().splitlines()}
    assert len(texts) > 8
    assert stored["fairseq_dsp"]["format"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_layout_weights_and_bleu(method: str, data: Path, tmp_path: Path):
    ends: list[dict[str, Any]] = []
    texts = []
    for name in ("one", "other"):
        train(data, tmp_path / name, *QUIET, *METHODS[method], *budget(5), "--max-update", 20)
        prune(tmp_path / f"{name}/checkpoint_last.pt", tmp_path / f"{name}.pt")
        ends.append(load(tmp_path / f"{name}.pt"))
        done = generate(data, tmp_path / f"{name}.pt", folder=tmp_path)
        texts.append((done.hypotheses(), done.scores(), done.bleu()))
    assert ends[0]["fairseq_dsp"]["layout"] == ends[1]["fairseq_dsp"]["layout"]
    assert different(ends[0]["model"], ends[1]["model"]) == []
    assert texts[0] == texts[1]
