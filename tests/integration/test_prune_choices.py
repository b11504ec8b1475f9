"""`fairseq-dsp-prune` told what to keep: heads of the highest scores, or those of another checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import assert_refused, heads_in, load, prune
from test_score import ALL, content, score


def test_a_layout_may_be_that_of_another_checkpoint(trained: Path, pruned: Path, dense: Path, tmp_path: Path):
    """As for `--head-layout`: the heads that a rewritten one has, or that a trained one has chosen."""
    for number, source in enumerate((pruned, trained)):
        prune(dense, tmp_path / f"{number}.pt", "--layout", source)
        assert load(tmp_path / f"{number}.pt")["cfg"]["model"].head_layout == load(pruned)["cfg"]["model"].head_layout
    done = prune(pruned, tmp_path / "more.pt", "--layout", dense, ok=False)
    assert_refused(done, "`--layout` must name heads that the model has", ALL)
    for name, words in (("nowhere.pt", "does not exist"), ("folder", "is a folder")):
        (tmp_path / "folder").mkdir(exist_ok=True)
        done = prune(dense, tmp_path / "out.pt", "--layout", tmp_path / name, ok=False)
        assert_refused(done, f"`--layout`: the checkpoint must be a file, but {tmp_path / name} {words}")


class TestScores:
    @pytest.fixture
    def scores(self, data: Path, dense: Path, tmp_path: Path) -> Path:
        score(data, dense, tmp_path / "scores.json", scorer="magnitude")
        return tmp_path / "scores.json"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ([], ["`--unpruned-heads` must be given with `--scores`"]),
            (["--unpruned-heads", "13"], ["`--unpruned-heads` must be between 0 and 12", "13"]),
            (["--unpruned-heads=-1"], ["`--unpruned-heads` must be between 0 and 12", "-1"]),
            (["--unpruned-heads", "auto"], ["`--unpruned-heads` must be a whole number", "auto"]),
            (["--unpruned-heads", "12", "--layout", ALL], ["`--scores` and `--layout`"]),
        ],
    )
    def test_is_refused_in_one_sentence_and_nothing_is_written(self, options, words, dense, scores, tmp_path):
        done = prune(dense, tmp_path / "small.pt", "--scores", scores, *options, ok=False)
        assert_refused(done, *words)
        assert not (tmp_path / "small.pt").exists()

    def test_by_scores_of_other_heads_is_refused(self, pruned, scores, tmp_path):
        done = prune(pruned, tmp_path / "small.pt", "--scores", scores, "--unpruned-heads", 2, ok=False)
        assert_refused(done, "`--scores` must be of a model with the same heads", ALL)

    def test_by_a_broken_file_is_refused(self, dense, scores, tmp_path):
        scores.write_text(scores.read_text()[:-20])
        done = prune(dense, tmp_path / "small.pt", "--scores", scores, "--unpruned-heads", 2, ok=False)
        assert_refused(done, "must be whole JSON")

    def test_by_scores_of_other_weights_is_refused(self, data, dense, trained, scores, tmp_path):
        """The same heads, and other numbers: another training, and one number of this one."""
        state = load(dense)
        state["model"]["decoder.layers.1.fc2.bias"][3] += 0.001
        torch.save(state, tmp_path / "other.pt")
        for path in (trained, tmp_path / "other.pt"):
            done = prune(path, tmp_path / "small.pt", "--scores", scores, "--unpruned-heads", 2, ok=False)
            words = f"`--scores` must be of the checkpoint's own weights, but are of those of {dense.name} (float32 "
            assert_refused(done, words, "score it with fairseq-dsp-score")
        assert not (tmp_path / "small.pt").exists()

    def test_by_scores_of_the_same_weights_is_done_whatever_else_the_file_holds(self, data, dense, trained, tmp_path):
        """Importance, the optimizer's state, the precision, all heads' marks."""
        score(data, trained, tmp_path / "scores.json", scorer="magnitude")
        score(data, dense, tmp_path / "dense.json", scorer="magnitude")
        changed = {name: load(trained) for name in ("importance", "half", "bare", "float again")}
        changed["importance"]["model"]["head_gates.importance"].neg_()
        del changed["bare"]["last_optimizer_state"]
        for name, kinds in (("half", ["half"]), ("float again", ["half", "float"])):
            for kind in kinds:
                model = changed[name]["model"]
                changed[name]["model"] = {key: getattr(value, kind)() for key, value in model.items()}
        for name, state in changed.items():
            torch.save(state, tmp_path / "in.pt")
            done = prune(tmp_path / "in.pt", tmp_path / f"{name}.pt", "--scores", tmp_path / "scores.json",
                         "--unpruned-heads", 2, ok=False)  # fmt: skip
            assert (done.code == 0) == (name != "float again"), done.err  # weights that were rounded are others
        prune(dense, tmp_path / "all.pt", "--layout", ALL)
        prune(tmp_path / "all.pt", tmp_path / "2.pt", "--scores", tmp_path / "dense.json", "--unpruned-heads", 2)
        score(data, tmp_path / "half.pt", tmp_path / "of-half.json", scorer="magnitude")
        assert list(content(tmp_path / "of-half.json")["weights"]) == ["float16"]
        assert len(content(tmp_path / "scores.json")["weights"]) == 3

    def test_by_a_file_of_an_earlier_version_is_done_and_says_that_it_was_not_checked(self, dense, scores, tmp_path):
        options = ["--scores", scores, "--unpruned-heads", 2]
        assert "not checked" not in prune(dense, tmp_path / "new.pt", *options).out
        old = content(scores)
        del old["weights"]
        scores.write_text(json.dumps(old))
        done = prune(dense, tmp_path / "old.pt", *options)
        assert f"not checked: {scores} is of an earlier version" in done.out
        assert heads_in(tmp_path / "old.pt") == 2
