"""docs/benchmarks/make.py makes the lines that lie beside it: the same models, cases and settings, in commands that can be read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from fairseq_dsp.cli import bench

FOLDER = Path(__file__).resolve().parents[2] / "docs/benchmarks"
RUN = FOLDER / "cpu-amd-epyc-2-cores-2026-11-25"
_specification = importlib.util.spec_from_file_location("benchmarks_make", FOLDER / "make.py")
make = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(make)


def printed(capsys, *names: str) -> list[str]:
    make.main([*names, "--dry-run", "--output", "DIR", "--runs", "runs", "--data", "DATA-BIN"])
    return capsys.readouterr().out.splitlines()


def test_every_stored_file_has_a_command():
    assert {path.stem for path in RUN.glob("*.jsonl")} == set(make.NAMES) - {make.PROJECTIONS, make.UNITS}


@pytest.mark.parametrize("name", [*make.COMMANDS, make.LEARNED])
def test_a_command_is_that_of_the_stored_lines(name, tmp_path):
    args = make.get_parser().parse_args([name, "--runs", "runs", "--data", "DATA-BIN"])
    _, words = make.command(name, args)
    settings, timing, cases = bench._read(
        bench.get_parser().parse_args([*words, "--json", str(tmp_path / "out.jsonl")])
    )
    asked = bench.get_parser().parse_args(words)
    lines = [json.loads(line) for line in (RUN / f"{name}.jsonl").read_text().splitlines()]
    engine = [f" in CTranslate2 {asked.ctranslate2}"] if asked.ctranslate2 else []
    models = [each.text + suffix for suffix in ("", *engine) for each in asked.models]
    assert list(dict.fromkeys(line["model"] for line in lines)) == models
    found = [(line["workload"], line["batch"], line["beam"]) for line in lines]
    assert list(dict.fromkeys(found)) == [(case.workload, case.batch, case.beam) for case in cases]
    signature = lines[0]["signature"]
    assert (signature["threads"], signature["clock"]) == (settings.threads, timing.clock)
    assert signature["pairs"] == timing.pairs
    assert any(line["peak_bytes"] for line in lines) == timing.memory
    assert any(line["profile"] for line in lines) == timing.profile


def test_a_dry_run_prints_the_commands_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = printed(capsys, "mask")
    assert line.startswith("fairseq-dsp-bench --random dsp_transformer_iwslt_de_en:spread=60,gated ")
    assert line.endswith(" --json DIR/mask.jsonl")
    (line,) = printed(capsys, make.REWRITING)
    assert line == "python -m fairseq_dsp.benchmark.pruning --megabytes 1000 --json DIR/rewriting.jsonl"
    (line,) = printed(capsys, make.UNITS)
    assert line == "python -m fairseq_dsp.benchmark.unit_speed --json DIR/units.jsonl"
    assert list(tmp_path.iterdir()) == []


def test_learned_layouts_need_their_runs(capsys):
    with pytest.raises(SystemExit):
        make.main(["learned", "--dry-run"])
    assert "`learned` needs `--runs` and `--data`." in capsys.readouterr().err


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        make.main(["generations", "--dry-run"])
    assert "but is generations." in capsys.readouterr().err
