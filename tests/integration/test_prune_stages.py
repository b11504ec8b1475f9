"""`fairseq-dsp-prune --scorer`: heads of a trained model chosen in stages, each cut and fitted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from commands import assert_refused, different, generate, heads_in, load, prune
from test_score import ALL, score


def test_one_stage_is_one_scoring_a_cut_and_a_fit(data: Path, dense: Path, tmp_path: Path):
    read = ["--batches", 25, "--max-tokens", 4096]
    score(data, dense, tmp_path / "scores.json", *read, scorer="joint-fisher")
    prune(dense, tmp_path / "by.pt", "--scores", tmp_path / "scores.json", "--unpruned-heads", 4, "--rescale", data)
    stage = ["--scorer", "joint-fisher", "--stages", 1, "--unpruned-heads", 4, "--rescale", data]
    prune(dense, tmp_path / "stage.pt", *stage)
    ours, theirs = (load(tmp_path / name) for name in ("stage.pt", "by.pt"))
    assert ours["cfg"]["model"].head_layout == theirs["cfg"]["model"].head_layout
    assert different(ours["model"], theirs["model"]) == []


def test_stages_leave_k_heads_and_a_model_like_any_other(data: Path, dense: Path, tmp_path: Path):
    before = dense.read_bytes()
    done = prune(dense, tmp_path / "small.pt", "--scorer", "joint-fisher", "--unpruned-heads", 3, "--rescale", data)
    assert done.err == ""
    whole, cut, rescaled = map(float, re.findall(r"(\d+\.\d+) (?:with all heads|cut|rescaled)", done.out))
    assert whole < rescaled < cut
    assert heads_in(tmp_path / "small.pt") == 3
    state = load(tmp_path / "small.pt")
    assert (state["fairseq_dsp"]["method"], state["fairseq_dsp"]["stages"]) == ("joint-fisher", 4)
    assert "1" in state["cfg"]["model"].head_layout.rpartition("cross:")[2]
    assert "H-0" in generate(data, tmp_path / "small.pt", folder=tmp_path).out
    prune(dense, tmp_path / "again.pt", "--scorer", "joint-fisher", "--unpruned-heads", 3, "--rescale", data)
    assert different(load(tmp_path / "again.pt")["model"], state["model"]) == []
    assert dense.read_bytes() == before


@pytest.mark.parametrize("scorer", ["joint-fisher", "gradient"])
def test_a_model_that_recomputes_its_activations_is_scored_all_the_same(
    scorer, data: Path, dense: Path, tmp_path: Path
):
    state = torch.load(dense, weights_only=False)
    state["cfg"]["model"].checkpoint_activations = True
    torch.save(state, tmp_path / "recomputed.pt")
    options = ["--scorer", scorer, "--stages", 2, "--unpruned-heads", 4, "--rescale", data]
    for name, path in (("one", dense), ("other", tmp_path / "recomputed.pt")):
        prune(path, tmp_path / f"{name}.pt", *options)
    one, other = (load(tmp_path / f"{name}.pt") for name in ("one", "other"))
    assert one["cfg"]["model"].head_layout == other["cfg"]["model"].head_layout
    assert different(one["model"], other["model"]) == []
    assert other["cfg"]["model"].checkpoint_activations  # in a training that goes on


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stages", 2], ["`--stages` must come with `--scorer`"]),
        (["--scorer", "fisher", "--rescale", "DATA"], ["`--unpruned-heads` must be given with `--scorer`"]),
        (["--scorer", "fisher", "--rescale", "DATA", "--unpruned-heads", 99], ["between 0 and 12", "99"]),
        (["--scorer", "fisher", "--unpruned-heads", 3], ["`--rescale DATA-BIN` must come with `--scorer fisher`"]),
        (["--scorer", "magnitude", "--rescale", "DATA", "--unpruned-heads", 3], ["`--scorer` must be one of gradient"]),
        (["--scorer", "fisher", "--layout", ALL, "--rescale", "DATA"], ["`--layout` and `--scorer` must not"]),
        (["--scorer", "fisher", "--stages", 0, "--rescale", "DATA", "--unpruned-heads", 3], ["`--stages`", "0"]),
        (
            ["--scorer", "fisher", "--rescale", "DATA", "--unpruned-heads", 3, "--cross-floor", 5],
            ["`--cross-floor` must be at most 4"],
        ),
    ],
)
def test_what_cannot_be_cut_in_stages_is_one_sentence(options, words, data: Path, dense: Path, tmp_path: Path):
    given = [data if option == "DATA" else option for option in options]
    assert_refused(prune(dense, tmp_path / "no.pt", *given, ok=False), *words)
    assert not (tmp_path / "no.pt").exists()


def test_a_model_that_chooses_among_its_heads_is_refused(data: Path, trained: Path, tmp_path: Path):
    options = ["--scorer", "fisher", "--rescale", data, "--unpruned-heads", 3]
    assert_refused(
        prune(trained, tmp_path / "no.pt", *options, ok=False), "`--rescale` must be for a model whose heads"
    )


def test_a_model_whose_neurons_are_cut_is_refused(data: Path, dense: Path, tmp_path: Path):
    prune(dense, tmp_path / "cut.pt", "--layout", f"{ALL}/ffn-enc:1010.0000/ffn-dec:0111.1000")
    options = ["--scorer", "fisher", "--rescale", data, "--unpruned-heads", 3]
    done = prune(tmp_path / "cut.pt", tmp_path / "no.pt", *options, ok=False)
    assert_refused(done, "`--scorer` must be for a model of heads alone")
