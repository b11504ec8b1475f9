"""fairseq-dsp-bench: checkpoints as training leaves them, and results that stay whatever comes after them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_benchmark import GATED, PIPELINED, QUICK, SMALL

from fairseq_dsp.benchmark import pruning
from fairseq_dsp.benchmark.candidates import Candidate
from fairseq_dsp.benchmark.workloads import WORKLOADS
from fairseq_dsp.cli.bench import main
from fairseq_dsp.errors import Refusal

GOLDEN = Path(__file__).parents[1] / "golden"


def test_trained_and_rewritten_checkpoints_are_measured_in_training(tmp_path):
    """As training left them: with their importance, before and after their heads are fixed, and as they are rewritten."""
    file = tmp_path / "rows.jsonl"
    paths = [str(GOLDEN / "trained.pt"), str(GOLDEN / "rewritten.pt")]
    main(["--path", *paths, "--workloads", "update,validation,mask", *QUICK, "--no-memory", "--json", str(file)])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["workload"], row["model"], row["phase"]) for row in rows] == [
        ("update", "trained.pt", "choosing heads"),
        ("update", "trained.pt", "heads fixed"),
        ("update", "rewritten.pt", ""),
        ("validation", "trained.pt", ""),
        ("validation", "rewritten.pt", ""),
        ("mask", "trained.pt", ""),
    ]


@pytest.mark.parametrize("text", [GATED, PIPELINED, SMALL])
def test_parameters_that_take_over_a_state_keep_what_is_attached_to_them(text):
    """The optimizer tells importance, and models of ours, by an attribute of a parameter; frozen ones stay frozen."""
    model = Candidate(text, random=True).build()
    attached = {name: (vars(value), value.requires_grad) for name, value in model.named_parameters()}
    assert any("param_group" in each for each, _ in attached.values())
    before = dict(model.named_parameters())
    model.adopt_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    now = dict(model.named_parameters())
    assert all(now[name] is not value for name, value in before.items())
    assert {name: (vars(value), value.requires_grad) for name, value in now.items()} == attached


def test_what_was_measured_is_kept_whatever_ends_the_measuring(tmp_path, monkeypatch):
    """A refusal, an interruption, a fault of a later case; a file that `--force` may replace stays until there is a result."""
    ends = iter([Refusal("no more."), KeyboardInterrupt(), MemoryError()])
    monkeypatch.setitem(WORKLOADS, "mask", replace(WORKLOADS["mask"], phases=lambda facts: _raise(next(ends))))
    for expected in (Refusal, KeyboardInterrupt, MemoryError):
        file = tmp_path / f"{expected.__name__}.jsonl"
        arguments = ["--random", SMALL, *QUICK, "--no-memory", "--json", str(file)]
        with pytest.raises(expected):
            main([*arguments, "--workloads", "encoder,validation,mask,update"])
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["workload"] for row in rows] == ["encoder", "validation"]
        assert all(row["signature"]["pairs"] == 2 for row in rows)
    file.write_text("precious")
    ends = iter([Refusal("at once.")])
    with pytest.raises(Refusal):
        main([*arguments, "--workloads", "mask", "--force"])
    assert file.read_text() == "precious"


def _raise(error):
    raise error


def test_the_rewriting_that_was_measured_is_kept_where_a_later_one_fails(tmp_path, monkeypatch):
    def measure(kind, *_):
        if kind == pruning.KINDS[1]:
            raise Refusal("the checkpoint could not be rewritten: no.")
        return pruning.Measured(kind, 10, [1.0], 20, 5)

    monkeypatch.setattr(pruning, "measure", measure)
    file = tmp_path / "rows.jsonl"
    with pytest.raises(Refusal):
        pruning.main(["--json", str(file)])
    assert [json.loads(line)["kind"] for line in file.read_text().splitlines()] == [pruning.KINDS[0]]
