"""multilingual.py as a user starts it: its data folders, going on, and, where there is time, a whole study."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT
from forks import run_in_forks

from fairseq_dsp.files.data_folder import DataFolder

sys.path.insert(0, str(ROOT / "examples/translation"))

import multilingual


def study(output: Path, *extra: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, multilingual.__file__, "--preset", "smoke", "--output", output, "--cpu", *extra]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def test_halves_are_the_training_set_and_a_second_call_prepares_nothing(tmp_path: Path):
    done = study(tmp_path / "out", "--hours", 0)  # no run is begun
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "out").glob("runs/*/*.done"))
    for pair in (("qar", "qos"), ("qar", "qte")):
        sizes = [DataFolder(str(tmp_path / "out" / name), *pair).sizes("train") for name in ("data", "half1", "half2")]
        assert len(sizes[1]) == len(sizes[2]) == len(sizes[0]) / 2
        assert sizes[1].tolist() == sizes[0][::2].tolist()
        assert sizes[2].tolist() == sizes[0][1::2].tolist()
        assert {len(DataFolder(str(tmp_path / "out/data"), *pair).sizes(name)) for name in ("valid", "test")} == {20}
    dictionaries = {(tmp_path / f"out/{name}/dict.qar.txt").read_text() for name in ("data", "half1", "half2")}
    assert len(dictionaries) == 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("train.*")}
    assert study(tmp_path / "out", "--hours", 0).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("train.*")} == before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_in_forks(monkeypatch, tmp_path)
    words = ["--preset", "smoke", "--output", str(tmp_path / "out"), "--cpu", "--jobs", "2"]
    assert multilingual.main(words) == 0, (tmp_path / "out/commands.log").read_text()[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    arms = {(line["direction"], line["arm"]) for line in lines}
    for direction in ("o2m", "m2o"):
        wanted = {"dense", "joint-dsp", "random1", "random2", "lowest", "magnitude", "all", "sum", "max", "worst"}
        wanted |= {"third", "third-lowest", "third-random1", "third-random2", "specialist", "whole"}
        assert {(direction, arm) for arm in wanted} <= arms
    assert {line["kept"] for line in lines} == {2, 4, 6}
    commands = (tmp_path / "out/commands.log").read_text()
    assert multilingual.main(words) == 0  # nothing is left to do
    assert (tmp_path / "out/commands.log").read_text() == commands
    page = (tmp_path / "out/report/report.md").read_text()
    assert page.count("| two pairs, one model |") == page.count("Claims, and what was found here:") == 2
    assert page.count("| the specialist of the pair | 4 |") == 2
    assert (tmp_path / "out/report/figures/m2o-s2.png").exists()
