"""The checkpoints of reproduce.py: which is chosen, how much room they need, what becomes of cut ones."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import ROOT, load
from forks import run_in_forks
from models import not_on_0_12_2

from fairseq_dsp.errors import Refusal

sys.path.insert(0, str(ROOT / "examples/translation"))

import reproduce
from reproduction import checkpoints

SMALL = ["--preset", "smoke", "--epochs", 2, "--max-tokens", 400]


@pytest.fixture(scope="module")
def chosen_by_bleu(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The output of a dense run whose best checkpoint BLEU has chosen, all checkpoints kept, and the options of the call."""
    out = tmp_path_factory.mktemp("bleu") / "out"
    words = [*SMALL, "--epochs", 12, "--data", data, "--output", out, "--methods", "dense", "--select", "bleu"]
    options = [*map(str, words), "--keep-checkpoints"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_in_forks(monkeypatch, out.parent)
        assert reproduce.main(options) == 0
    return out, options


@not_on_0_12_2
def test_the_best_checkpoint_may_be_chosen_by_bleu(chosen_by_bleu: tuple[Path, list[str]]):
    out, _ = chosen_by_bleu
    log = (out / "runs/dense-s1/train.log").read_text()
    found = [float(value) for value in re.findall(r"\| valid \| .* \| bleu ([\d.]+) ", log)]
    assert len(found) == 12
    assert max(found) > min(found)
    best = load(out / "runs/dense-s1/checkpoints/checkpoint_best.pt")
    assert best["extra_state"]["best"] == pytest.approx(max(found), abs=0.01)
    (record,) = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    assert (record["method"], record["kept"]) == ("dense", 12)


@not_on_0_12_2
def test_the_room_that_is_asked_for_is_about_what_a_run_writes(chosen_by_bleu: Any, tmp_path: Path, monkeypatch: Any):
    out, options = chosen_by_bleu
    again = [str(tmp_path / "again") if word == str(out) else word for word in options]
    asked = []
    monkeypatch.setattr(reproduce, "refuse_full_disk", lambda _, needed: asked.append(needed))
    monkeypatch.setattr(reproduce.Experiment, "run", lambda *_: 0)
    assert reproduce.main(again) == 0
    written = [path.stat().st_size for path in (out / "runs/dense-s1/checkpoints").iterdir()]
    assert len(written) == 2  # the best and the last; while one is written, there are three
    assert sum(written) < asked[0] < 3 * sum(written)


def test_too_little_room_is_refused_before_anything_starts(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = [str(word) for word in [*SMALL, "--data", data, "--output", tmp_path / "out"]]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(Refusal, match=r"`--output` must have about \d+.\d MB free for these runs, but .* has 1.0 MB"):
        reproduce.main(options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["reproduce.json"]


@not_on_0_12_2
def test_runs_that_are_finished_need_no_room(chosen_by_bleu: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert reproduce.main(chosen_by_bleu[1]) == 0


def test_checkpoints_that_are_kept_need_room(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def ask(_: Path, needed: int) -> None:
        raise Refusal(str(needed))

    monkeypatch.setattr(reproduce, "refuse_full_disk", ask)
    words = [*SMALL, "--data", data, "--output", tmp_path / "out", "--methods", "dsp", "--seeds", *range(20)]
    asked = []
    for extra in ([], ["--keep-checkpoints"]):
        with pytest.raises(Refusal) as refusal:
            reproduce.main([*map(str, words), *extra])
        asked.append(int(str(refusal.value)))
    assert asked[1] > 3 * asked[0]  # two whole checkpoints of each run instead of a pruned one


class TestCheckpoints:
    def test_a_cut_or_older_last_one_is_replaced_by_the_best(self, dense: Path, tmp_path: Path):
        last, best = tmp_path / checkpoints.LAST, tmp_path / checkpoints.BEST
        assert checkpoints.recover(tmp_path) == "starts"
        shutil.copy(dense, best)
        assert "from the best" in checkpoints.recover(tmp_path)
        assert last.read_bytes() == best.read_bytes()
        for size in (0, 100, len(best.read_bytes()) - 1):
            last.write_bytes(best.read_bytes()[:size])
            assert "from the best" in checkpoints.recover(tmp_path)
            assert last.read_bytes() == best.read_bytes()
        assert checkpoints.recover(tmp_path) == "goes on after 48 updates"
        best.write_bytes(b"")
        assert checkpoints.recover(tmp_path).startswith("starts again")  # the choice so far is lost
        assert {path.name for path in tmp_path.iterdir()} == {f"{best.name}.set-aside", f"{last.name}.set-aside"}
        assert checkpoints.recover(tmp_path) == "starts"
