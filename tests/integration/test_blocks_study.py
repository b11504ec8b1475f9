"""Blocks of weight matrices: scored by the command, and the study of masks in its smallest size."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from commands import ROOT, assert_refused, load, prune, run

sys.path.insert(0, str(ROOT / "examples/translation"))

import blocks

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.blocks import read_block_scores

SCORE = "fairseq_dsp.cli.score"
HAS_CTRANSLATE2 = importlib.util.find_spec("ctranslate2") is not None


@pytest.fixture(scope="module")
def scored(dense: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("blocks")
    files = {}
    for scorer, more in (("magnitude", []), ("gradient", ["--batches", 2, "--max-tokens", 400])):
        files[scorer] = folder / f"{scorer}.json"
        options = ["--units", "blocks", "--block", 16, "--scorer", scorer, "--output", files[scorer], "--cpu", *more]
        done = run(SCORE, data, "--path", dense, *options, folder=folder)
        assert done.code == 0, done.err[-2000:]
        assert "no runtime that models are exported to computes sparse blocks" in done.out
    return files


def test_every_matrix_of_a_layer_is_scored(scored: dict[str, Path], dense: Path):
    weights = load(dense)["model"]
    for path in scored.values():
        file = read_block_scores(str(path), "--scores")
        for name, rows in file.scores.items():
            assert (len(rows) * 16, len(rows[0]) * 16) == tuple(weights[name].shape)
        assert {name.split(".")[-2] for name in file.scores} == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
        assert len(file.scores) == 2 * 6 + 2 * 10


def test_scores_of_blocks_choose_no_heads(scored: dict[str, Path], dense: Path, tmp_path: Path):
    done = prune(dense, tmp_path / "out.pt", "--scores", scored["magnitude"], "--unpruned-heads", 4, ok=False)
    assert_refused(done, "`--scores` must be a score file of format 1 or 2", "blocks-1")
    assert not (tmp_path / "out.pt").exists()


def test_the_study_keeps_masks_while_it_fine_tunes_and_says_that_nothing_gets_faster(
    scored: dict[str, Path], dense: Path, data: Path, tmp_path: Path
):
    options = [
        "--data",
        data,
        "--path",
        dense,
        "--scores",
        scored["gradient"],
        "--output",
        tmp_path / "out",
        "--densities",
        "0.5,0",
    ]
    options += ["--updates", 3, "--max-tokens", 600, "--pairs", 1, *(["--ctranslate2"] if HAS_CTRANSLATE2 else [])]
    blocks.main([*map(str, options)])
    text = (tmp_path / "out/blocks.md").read_text()
    assert "No runtime that models are exported to (fairseq, CTranslate2) computes sparse blocks" in text
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert [row[0] for row in rows[2:]] == ["100.0%", "50.0%", "0.0%"]
    assert len(rows[0]) == 4 + HAS_CTRANSLATE2
    assert float(rows[4][1]) > float(rows[2][1])  # without any block
    assert rows[2][1] != rows[2][2]  # it was trained
    masks = read_block_scores(str(scored["gradient"]), "--scores").masks(0.5)
    before, after = load(dense)["model"], load(tmp_path / "out/density-0.5.pt")["model"]
    for name, mask in masks.items():
        assert not after[name][mask == 0].any()
        assert not mask.any() or not after[name][mask == 1].equal(before[name][mask == 1])
    assert len((tmp_path / "out/bench.jsonl").read_text().splitlines()) == 3 * (1 + HAS_CTRANSLATE2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--units", "blocks", "--scorer", "magnitude"], ["`--block` must be 16 or 32"]),
        (["--units", "blocks", "--block", "24", "--scorer", "magnitude"], ["`--block` must be 16 or 32", "but is 24"]),
        (["--units", "blocks", "--block", "32", "--scorer", "magnitude"], ["`--block` must divide the rows and columns of every matrix, but is 32"]),
        (["--units", "blocks", "--block", "16", "--scorer", "fisher"], ["`--scorer` must be magnitude or gradient"]),
        (["--units", "heads", "--block", "16", "--scorer", "magnitude"], ["`--block` must come with `--units blocks`"]),
        (["--units", "blocks", "--block", "16", "--scorer", "gradient", "--iterative", "2"], ["`--iterative` must not be given"]),
        (["--units", "blocks", "--block", "16", "--scorer", "gradient", "--subset", "test"], ["`--subset` must be train or valid"]),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(
    options: list[str], words: list[str], dense: Path, data: Path, tmp_path: Path
):
    done = run(SCORE, data, "--path", dense, "--output", tmp_path / "s.json", "--cpu", *options, folder=tmp_path)
    assert_refused(done, *words)
    assert not (tmp_path / "s.json").exists()


def test_a_study_that_cannot_be_made_is_refused(scored: dict[str, Path], dense: Path, data: Path, tmp_path: Path):
    wrong = json.loads(scored["magnitude"].read_text())
    wrong["weights"]["float32"] = "0" * 32
    (tmp_path / "other.json").write_text(json.dumps(wrong))
    common = ["--data", str(data), "--path", str(dense), "--output", str(tmp_path / "out"), "--updates", "1"]
    with pytest.raises(Refusal, match="must be of the weights"):
        blocks.main([*common, "--scores", str(tmp_path / "other.json")])
    with pytest.raises(Refusal) as refused:
        blocks.main([*common, "--scores", str(tmp_path / "none.json"), "--densities", "0.5,2", "--lr", "0"])
    assert len(refused.value.reasons) == 3
    assert not (tmp_path / "out").exists()
