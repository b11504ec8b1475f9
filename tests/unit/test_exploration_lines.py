"""Lines of an exploration: which of them a report compares, and what becomes of a broken one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/translation"))

import explore_report
from exploration import reading
from exploration.making import LATER_RULES
from exploration.running import read_lines

from fairseq_dsp.errors import Refusal

RESULTS = Path(__file__).parents[2] / "examples/translation/results/gpu-nvidia-h200-2026-11-26"


def line(arm: str, seed: int, nats: float, **more: object) -> dict:
    return {"arm": arm, "K": 6, "seed": seed, "nats": nats, "a": {"family": "scored"}, **more}


def test_arms_from_scratch_are_compared_with_each_other_alone(tmp_path: Path, capsys):
    arms = [(arm, place / 10) for place, arm in enumerate(("paper", "random0", "strat4+2"))]
    lines = [line(arm, s, 3.1 + s / 10 + more, cut=4.0 + more) for s in (1, 2, 3) for arm, more in arms]
    scratch = {"family": "fixed", "scratch": 1}
    for arm, offset in (("scratch-even", 0.0), ("scratch-paper", 0.2)):
        lines += [line(arm, s, 2.5 + offset + s / 10 + s * s / 100, a=scratch, cut=8.0 - s) for s in (1, 2, 3)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    explore_report.main([str(tmp_path / "lines.jsonl"), "--against", "paper", "scratch-paper"])
    trained, begun = capsys.readouterr().out.split("Arms that began from scratch:\n")
    assert "scratch-" not in trained
    assert "| arms, 6 heads | 9 | 1.00 (1.00 to 1.00) |" in trained  # a loss before the first update foretells nothing
    assert "| paper" not in begun
    assert "| 6 heads | nats | by seed | less scratch-paper | p |" in begun
    assert "cut" not in begun


def test_arms_of_several_learning_rates_or_updates_are_no_one_table(tmp_path: Path, capsys):
    lines = [line("paper", s, 3.0 + s / 10, U=600, lr=4e-3) for s in (1, 2)]
    lines += [line("paper", s, 4.0 + s / 10, U=600) for s in (1, 2)]  # of phase 1, which does not say its own
    lines += [line("paper", 1, 5.0, U=300, lr=4e-3), line("paper lr0.002", 1, 6.0, U=600, lr=2e-3)]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    with pytest.raises(Refusal, match="have 300 at 0.004 and 600 at 0.001 and 600 at 0.004: `--updates` and `--lr`"):
        explore_report.main([str(path)])
    explore_report.main([str(path), "--lr", "0.001"])
    said = capsys.readouterr().out
    assert "| paper | 4.150 ± 0.050 (2) |" in said
    assert "| paper lr0.002 | 6.000 (1) |" in said  # its name says its rate
    explore_report.main([str(path), "--lr", "0.004", "--updates", "600"])
    assert "| paper | 3.150 ± 0.050 (2) |" in capsys.readouterr().out


def test_a_broken_last_line_is_cut_off_and_no_other_is_written_again(tmp_path: Path, monkeypatch):
    path = tmp_path / "results.jsonl"
    path.write_text('{"arm": "a"}\n{"arm": "b"}\n{"ar')
    monkeypatch.setattr(Path, "write_bytes", lambda *given: pytest.fail("lines that are there were written again"))
    assert read_lines(path) == [{"arm": "a"}, {"arm": "b"}]
    assert path.read_text() == '{"arm": "a"}\n{"arm": "b"}\n'


def test_the_first_rule_is_the_best_of_the_lines():
    lines = explore_report._read(str(RESULTS / "phase3.jsonl"))
    for kept in (6, 12):
        cross, dec = LATER_RULES[kept][0]
        assert reading.rules(reading.by_arm(lines, kept))[0] == f"strat{cross}+{dec}"


def test_a_report_is_of_the_seeds_that_are_asked_for(tmp_path: Path, capsys):
    lines = [line("new", seed, 3.0 + seed) for seed in (1, 4, 5)] + [line("old", 1, 3.0)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    explore_report.main([str(tmp_path / "lines.jsonl"), "--seeds", "4,5"])
    said = capsys.readouterr().out
    assert "| new | 7.500 ± 0.500 (2) |" in said
    assert "old" not in said
    with pytest.raises(Refusal, match="`--seeds` must be whole numbers"):
        explore_report.main([str(tmp_path / "lines.jsonl"), "--seeds", "four"])
