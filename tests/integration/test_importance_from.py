"""`--importance-from`: a choice that begins with the scores of the model that it starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import HEADS, QUIET, assert_refused, budget, different, load, train
from test_score import score

from fairseq_dsp.plugin.importance_start import importance_of


@pytest.fixture(scope="module")
def scores(data: Path, dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    score(data, dense, path, scorer="magnitude")
    return path


def flags(dense: Path, scores: Path, *more: object) -> list[object]:
    return [*QUIET, *budget(5), "--finetune-from-model", dense, "--importance-from", scores, *more]


def importance(path: Path) -> torch.Tensor:
    return load(path)["model"]["head_gates.importance"]


def test_importance_begins_in_the_order_of_the_scores_and_is_evenly_spread():
    values = torch.tensor([3.0, -1.0, 7.0, 3.0])
    found = importance_of(values)
    assert found.argsort(descending=True).tolist() == [2, 0, 3, 1]
    expected = 2 * torch.distributions.Normal(0, 1).icdf(torch.tensor([7, 5, 3, 1]).double() / 8)
    torch.testing.assert_close(found.sort(descending=True).values, expected)
    assert importance_of(torch.randn(72)).std() == pytest.approx(2, abs=0.1)
    assert importance_of(torch.zeros(0)).tolist() == []


def test_a_training_starts_with_it_and_goes_on_without_the_file(dense: Path, scores: Path, data: Path, tmp_path: Path):
    wanted = importance_of(torch.tensor(json.loads(scores.read_text())["scores"])).float()
    frozen = flags(dense, scores, "--importance-lr", 0, "--max-update", 3)
    train(data, tmp_path / "frozen", *frozen)
    assert torch.equal(importance(tmp_path / "frozen/checkpoint_last.pt"), wanted)
    copy = tmp_path / "copy.json"
    for name, updates in (("whole", [6]), ("parts", [4, 6])):
        copy.write_text(scores.read_text())
        for number in updates:
            train(data, tmp_path / name, *flags(dense, copy, "--max-update", number))
            copy.unlink(missing_ok=True)  # what was begun needs it no more
    ours, theirs = (load(tmp_path / name / "checkpoint_last.pt") for name in ("parts", "whole"))
    assert different(ours["model"], theirs["model"]) == []
    assert not torch.equal(importance(tmp_path / "parts/checkpoint_last.pt"), wanted)


def test_what_it_cannot_begin_with_is_one_sentence(
    dense: Path, scores: Path, trained: Path, data: Path, tmp_path: Path
):
    save = tmp_path / "save"
    state = load(dense)
    state["model"]["decoder.layers.1.fc2.bias"][3] += 0.001
    torch.save(state, tmp_path / "other.pt")
    content = json.loads(scores.read_text())
    for name, change in (
        ("heads.json", {"layout": "enc:11/dec:11/cross:11", "scores": [1.0] * 6}),
        ("broken.json", {"scores": []}),
    ):
        (tmp_path / name).write_text(json.dumps({**content, **change}))
    option = "`--importance-from`"
    for wrong, words in (
        (flags(tmp_path / "other.pt", scores), f"{option} must be of the checkpoint's own weights"),
        (flags(dense, tmp_path / "heads.json"), f"{option} must be of a model with the same heads"),
        (flags(dense, tmp_path / "broken.json"), f"{option} must be as fairseq-dsp-score writes it"),
        (flags(dense, tmp_path / "none.json"), f"{option} must be a file"),
        (flags(trained, scores), f"{option} must be for a start without importance"),
        ([*QUIET, *budget(5), "--importance-from", scores], f"{option} must be scores of what training starts from"),
        (
            [*QUIET, "--unpruned-heads", 5, "--head-selection", "fixed", "--importance-from", scores],
            f"{option} belongs to dsp",
        ),
    ):
        assert_refused(train(data, save, *wrong, "--max-update", 2, ok=False), words)
        assert not list(save.glob("*.pt"))
    assert HEADS == len(content["scores"])


def test_another_file_is_refused_where_training_goes_on(dense: Path, scores: Path, data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *flags(dense, scores, "--max-update", 2))
    other = tmp_path / "other.json"
    other.write_text(scores.read_text())
    done = train(data, tmp_path / "save", *flags(dense, other, "--max-update", 4), ok=False)
    assert_refused(done, f"`--importance-from` must stay {scores}", reasons=len(done.refusals))
