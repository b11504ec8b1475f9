"""`fairseq-dsp-bench --data`: real sentences, of the language pair that is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import assert_refused, run

BENCH = "fairseq_dsp.cli.bench"
QUICK = "--workloads encoder --batch-size 4 --pairs 1 --warmup 0 --cpu --no-memory".split()


@pytest.fixture
def several(data: Path, tmp_path: Path) -> Path:
    """The data folder with a second language pair."""
    shutil.copytree(data, tmp_path / "several")
    (tmp_path / "several/train.xx-yy.xx.idx").touch()
    return tmp_path / "several"


def measured(path: Path) -> list[tuple[str, float]]:
    """What each row was measured on, and its operations, which lengths of sentences decide."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["signature"]["sentences"], row["flops"]) for row in rows]


def test_takes_the_sentences_of_the_pair_that_is_asked_for(dense, pruned, data, several, tmp_path):
    models = ["--path", dense, pruned, *QUICK]
    refused = run(BENCH, *models, "--data", several, folder=tmp_path)
    assert_refused(refused, "`--source-lang` and `--target-lang`", "aa-bb, xx-yy", "?-?")
    asked = ["--source-lang", "aa", "--target-lang", "bb"]
    opposite = ["--source-lang", "bb", "--target-lang", "aa"]  # fairseq reads a pair's files in both directions
    for name, folder, extra in (("one", data, []), ("two", several, asked), ("three", data, opposite)):
        done = run(BENCH, *models, "--data", folder, *extra, "--json", tmp_path / name, folder=tmp_path)
        assert done.code == 0, done.err
    one, two, three = (measured(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert [subset for subset, _ in one] == ["test", "test"]
    assert one[1][1] < one[0][1]
    assert [subset for subset, _ in three] == ["test", "test"]


def test_takes_no_subset_that_is_not_there(dense, data, tmp_path):
    done = run(BENCH, "--path", dense, *QUICK, "--data", data, "--subset", "test1", folder=tmp_path)
    assert_refused(done, "must hold test1 in both languages", reasons=2)


def test_a_layout_of_a_benchmark_may_be_a_checkpoint_of_any_name(pruned: Path, tmp_path: Path):
    shutil.copy(pruned, tmp_path / "heads")
    model = f"dsp_transformer_tiny:layout={tmp_path}"
    done = run(BENCH, "--random", f"{model}/heads", *QUICK, folder=tmp_path)
    assert done.code == 0, done.err
    assert "5/12" in done.out
    assert_refused(run(BENCH, "--random", f"{model}/none", *QUICK, folder=tmp_path), "`--random` must be a layout")
    done = run(BENCH, "--random", f"{model}/none.pt", *QUICK, folder=tmp_path)
    assert_refused(done, "`--random`: the checkpoint must be a file, but", "does not exist")


def test_costs_are_of_the_data_s_own_lengths_and_stand_beside_what_is_measured(dense, pruned, data, tmp_path):
    sizes = "--batch-size 4 --beam 2 --pairs 3 --warmup 1 --cpu".split()
    done = run(BENCH, "--costs", tmp_path / "costs.json", "--path", dense, "--data", data, *sizes, folder=tmp_path)
    assert done.code == 0, done.err
    file = json.loads((tmp_path / "costs.json").read_text())
    assert 3 <= file["target"] <= 9  # 2 to 8 words and an end
    assert file["sizes"]["ffn-dec"] == [16, 16]
    beside = ["--promised", tmp_path / "costs.json", "--path", dense, pruned, "--data", data, "--no-memory"]
    done = run(BENCH, *beside, *sizes, folder=tmp_path)
    assert done.code == 0, done.err
    assert done.out.count("promised ratio") == 1
    assert_refused(
        run(BENCH, *beside, "--output-length", 3, *sizes, folder=tmp_path), "its `target` is", "here it is 4"
    )
