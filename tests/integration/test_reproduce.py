"""reproduce.py: killed and resumed, several runs at once, refusals, room on the disk."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT
from forks import run_in_forks
from models import not_on_0_12_2

from fairseq_dsp.analysis.records import read_records
from fairseq_dsp.analysis.tables import do_heads_matter
from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.layout import Layout

SCRIPT = ROOT / "examples/translation/reproduce.py"
sys.path.insert(0, str(SCRIPT.parent))

import reproduce  # noqa: E402
from reproduction import checkpoints, measure, presets, running  # noqa: E402
from reproduction.data import read_data  # noqa: E402

KEYS = ["method", "kept", "total", "seed", "layout", "bleu_tok", "sacrebleu", "chrf", "signatures", "updates"]
KEYS += [
    "seconds",
    "words_per_second",
    "parameters",
    "hardware",
    "versions",
    "data",
    "command",
    "hypotheses",
    "log",
    "valid_nats",
    "shuffled_of",
    "size_of",
    "macs",
    "latency",
    "budget",
]
SMALL = ["--preset", "smoke", "--epochs", 2, "--max-tokens", 400]


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "out.txt", "a") as out:
        return subprocess.Popen(command, text=True, stdout=out, stderr=subprocess.STDOUT, env=variables)


def call(folder: Path, *arguments: object, limit: float = 280) -> tuple[int, str]:
    """Exit code, and what this call printed; one that takes longer than `limit` seconds is killed."""
    before = (folder / "out.txt").stat().st_size if (folder / "out.txt").exists() else 0
    process = start(folder, *arguments)
    try:
        code = process.wait(timeout=limit)
    finally:
        process.kill()
    return code, (folder / "out.txt").read_text()[before:]


def commands(out: Path) -> list[str]:
    """First words of every command that was started."""
    lines = (out / "commands.log").read_text().splitlines() if (out / "commands.log").exists() else []
    return [line.partition("$ ")[2].split()[0] for line in lines]


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@not_on_0_12_2
def test_a_killed_experiment_goes_on_and_nothing_finished_is_done_again(
    data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
):
    """The one that is killed starts real commands."""
    out = tmp_path / "out"
    words = [*SMALL, "--data", data, "--output", out, "--methods", "dense", "dsp", "random", "--budgets", 4]
    words += ["--label", "made up"]
    options = [*map(str, words), "--jobs", "2"]
    first = start(tmp_path, *options)
    dense = out / "runs/dense-s1"
    until = time.monotonic() + 120
    while not (dense / "train.log").exists() or "| train | epoch 001" not in (dense / "train.log").read_text():
        assert first.poll() is None, (tmp_path / "out.txt").read_text()
        assert time.monotonic() < until
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert commands(out)[:2] == ["fairseq-train", "fairseq-train"]  # two at once
    with running.Place(out, data, 1, print).locked():  # its commands are gone too
        (dense / "train.done").unlink(missing_ok=True)  # the training may have come to its end
        last, best = (dense / "checkpoints" / name for name in (checkpoints.LAST, checkpoints.BEST))
        last.write_bytes(best.read_bytes()[:-1000])  # as a kill in the middle of the copy leaves it
        before = checkpoints.updates_of(best)
    an_epoch = read_data(data, None, None, None).updates_an_epoch(400)
    assert before in (an_epoch, 2 * an_epoch)

    run_in_forks(monkeypatch, tmp_path)
    assert reproduce.main(options) == 0
    printed = capsys.readouterr().out
    assert f"dense-s1 goes on after {before} updates, from the best checkpoint: the last is cut or older" in printed
    assert f"@ {before} updates)" in (dense / "train.log").read_text()  # fairseq took it up there
    found = records(out)
    assert [list(record) for record in found] == [KEYS] * 3
    assert {(r["method"], r["kept"], r["total"], r["seed"]) for r in found} == {
        ("dense", 12, 12, 1), ("dsp", 4, 12, 1), ("random", 4, 12, 1),
    }  # fmt: skip
    by_method = {record["method"]: record for record in found}
    assert by_method["dense"]["updates"] == by_method["dsp"]["updates"] == 2 * an_epoch
    assert (by_method["dsp"]["words_per_second"] is None) == (not by_method["dsp"]["seconds"])  # of less than a second
    assert by_method["random"]["updates"] is None
    assert 0 < by_method["dsp"]["macs"] < by_method["dense"]["macs"]
    assert all(record["latency"] > 0 and record["budget"] is None for record in found)
    assert by_method["dsp"]["parameters"] == by_method["random"]["parameters"] < by_method["dense"]["parameters"]
    for record in found:
        recipe = [shlex.split(command)[0] for command in record["command"].split(" && ")]
        assert (
            recipe
            == {
                "dense": ["fairseq-train", "fairseq-generate"],
                "dsp": ["fairseq-train", "fairseq-dsp-prune", "fairseq-generate"],
                "random": ["fairseq-train", "fairseq-dsp-score", "fairseq-dsp-prune", "fairseq-generate"],
            }[record["method"]]
        )
        assert record["data"]["label"] == "made up"
        assert len(record["data"]["sha256"]) == 64
        assert record["hardware"]["runs at once"] == 2
        assert record["hardware"]["processor"]
        assert {"torch", "sacrebleu", "fairseq_dsp"} <= record["versions"].keys()
        assert set(record["signatures"]) == {"bleu_tok", "sacrebleu", "chrf"}
        assert str(tmp_path) not in json.dumps(record)
        assert len((out / record["hypotheses"]).read_text().split("\n")) == 38
        assert record["log"] is None or (out / record["log"]).is_file()
    assert len((out / measure.REFERENCES).read_text().split("\n")) == 38

    # a result whose line was cut, and one whose line was never written: no command runs for either
    done = commands(out)
    lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (out / "results.jsonl").write_bytes(lines[0] + lines[1][:50])
    assert reproduce.main(options) == 0
    assert "was cut" in capsys.readouterr().out
    assert commands(out) == done
    assert sorted(map(str, records(out))) == sorted(map(str, found))

    with pytest.raises(Refusal, match="begun with epochs 2 instead of 5"):  # they would not be comparable
        reproduce.main([*options, "--epochs", "5"])


def test_bad_requests_are_refused_and_nothing_is_started(data: Path, tmp_path: Path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    lacking = tmp_path / "lacking"
    shutil.copytree(data, lacking)
    (lacking / "dict.bb.txt").unlink()
    (lacking / "valid.aa-bb.aa.idx").unlink()
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    os.truncate(broken / "train.aa-bb.aa.idx", 10)
    strange = tmp_path / "strange"
    shutil.copytree(data, strange)
    os.truncate(strange / "test.aa-bb.bb.bin", 100)
    (strange / "dict.aa.txt").write_text("xx\n")
    (strange / "data.json").write_text("[]")
    several = tmp_path / "several"
    shutil.copytree(data, several)
    for side in ("aa", "zh-CN"):
        (several / f"train.aa-zh-CN.{side}.idx").touch()
    out = tmp_path / "out"
    for options, words in (
        (["--data", lacking, "--output", out], ["dict.bb.txt", "valid.aa-bb.aa.idx"]),
        (["--data", broken, "--output", out], ["whole data sets", "train.aa-bb.aa"]),
        (
            ["--data", strange, "--output", out],
            ["test.aa-bb.bb", "dict.aa.txt must be a dictionary", "data.json must hold"],
        ),
        (["--data", tmp_path / "none", "--output", out], ["`--data`", "none"]),
        (["--data", foreign, "--output", out], ["`--data`", "train.SRC-TGT.SRC.idx"]),
        (["--data", data, "--output", out, "--source-lang", "de", "--target-lang", "en"], ["aa-bb", "de-en"]),
        (["--data", data, "--output", out, "--source-lang", "bb"], ["aa-bb", "bb-?"]),
        (["--data", several, "--output", out, "--source-lang", "aa"], ["aa-bb, aa-zh-CN", "aa-?"]),
        (["--data", data, "--output", out, "--budgets", "13", "some"], ["between 0 and 12", "13", "some"]),
        (["--data", data, "--output", foreign], ["`--output`", "holds other files"]),
        (["--data", data, "--output", out, "--methods", "magic"], ["`--methods`", "magic"]),
        (["--preset", "paper", "--output", out], ["`--data` must be given"]),
        (["--data", data, "--output", out, "--jobs", "0"], ["`--jobs` must be at least 1"]),
        (["--data", data, "--output", out, "--seeds", "1", "-1"], ["`--seeds` must be at least 0, but is -1."]),
        (["--data", data, "--output", out, "--seeds", 2**32], ["`--seeds` must be below 4294967296"]),
        (["--data", data, "--output", out, "--gpus", "97"], ["`--gpus`", "97"]),
    ):
        with pytest.raises(Refusal) as refusal:
            reproduce.main(["--preset", "smoke", *map(str, options)])
        for word in words:
            assert word in str(refusal.value)
    assert not out.exists()


@pytest.mark.parametrize(("source", "target"), [(None, None), ("aa", None), (None, "bb"), ("aa", "bb")])
def test_the_language_pair_is_the_one_that_is_asked_for(source: str | None, target: str | None, data: Path):
    found = read_data(data, source, target, None)
    assert (found.source, found.target) == ("aa", "bb")


def test_a_dry_run_prints_every_command_and_a_reader_may_leave(data: Path, tmp_path: Path, capsys: Any):
    options = [str(word) for word in [*SMALL, "--data", data, "--output", tmp_path / "out", "--dry-run"]]
    command = [sys.executable, str(SCRIPT), *options, "--seeds", *map(str, range(60))]
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=errors)
        first = process.stdout.readline()
        process.stdout.close()  # as `| head -1` does, long before the end of what fills a pipe
    assert first.startswith("fairseq-train ")
    assert process.wait(timeout=120) == 1
    assert "BrokenPipe" not in (tmp_path / "errors").read_text()
    assert reproduce.main(options) == 0
    printed = capsys.readouterr().out
    for name in ("fairseq-train", "fairseq-dsp-score", "fairseq-dsp-prune", "fairseq-generate"):
        assert f"\n{name} " in "\n" + printed
    assert not (tmp_path / "out").exists()


def test_gpus_train_the_paper_in_bf16_with_larger_batches(data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["--preset", "paper", "--data", data, "--output", tmp_path, "--seeds", 1, "--gpus", "--dry-run"]
    for extra, precision in (([], ["--bf16"]), (["--precision", "fp16"], ["--fp16"]), (["--precision", "fp32"], [])):
        assert reproduce.main([*map(str, words), *extra]) == 0
        planned = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
        trainings = [command for command in planned if command[0] == "fairseq-train"]
        assert len(trainings) == 1 + 6 * 10 + 1  # hard-concrete is trained once
        for command in trainings:
            assert [word for word in command if word in ("--bf16", "--fp16")] == precision
            assert command[command.index("--max-tokens") + 1] == "16384"
        assert "--cpu" not in sum(planned, [])


def test_an_output_in_use_is_refused(tmp_path: Path):
    one, two = (running.Place(tmp_path, tmp_path, 1, print) for _ in range(2))
    with one.locked(), pytest.raises(Refusal, match="nobody else's"), two.locked(patience=0.0):
        pass
    with two.locked(patience=0.0):
        pass


@not_on_0_12_2
def test_the_methods_that_the_killed_experiment_has_not(data: Path, tmp_path: Path, monkeypatch: Any):
    """One epoch each; `--slow` has all of them, at the ends of the budgets too, and with real commands."""
    methods = ["pipelined", "ste", "hard-concrete", "gradient-finetune", "fixed"]
    options = ["--epochs", 1, "--methods", *methods, "--budgets", 3, "auto", "--jobs", 2]
    run_in_forks(monkeypatch, tmp_path)
    assert reproduce.main([*map(str, [*SMALL, *options, "--data", data, "--output", tmp_path / "out"])]) == 0
    found = {record["method"]: record for record in records(tmp_path / "out")}
    assert set(found) == {"dense", *methods, "hard-concrete-auto"}
    assert all(found[method]["kept"] == 3 for method in methods)
    assert "--head-selection hard-concrete" in found["hard-concrete"]["command"]
    assert "fairseq-dsp-score" in found["gradient-finetune"]["command"]
    assert found["pipelined"]["command"].count("fairseq-train") == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_gives_a_result(precision: str, data: Path, tmp_path: Path):
    options = ["--methods", *presets.METHODS, "--budgets", 12, 3, 0, "auto", "--jobs", 2, "--precision", precision]
    code, printed = call(tmp_path, *SMALL, "--data", data, "--output", tmp_path / "out", *options, limit=1700)
    assert code == 0, printed
    found = records(tmp_path / "out")
    assert len(found) == 1 + 3 * (len(presets.METHODS) - 1) + 1
    kept = {(record["method"], record["kept"]) for record in found if record["method"] != "hard-concrete-auto"}
    assert kept == {("dense", 12)} | {(m, k) for m in presets.METHODS[1:] for k in (12, 3, 0)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_arm_of_the_converged_benchmark_gives_a_result(data: Path, tmp_path: Path):
    """In smoke size, with one seed; the report reads what comes of it."""
    methods = presets.PRESETS["converged"].methods
    options = ["--methods", *methods, "--budgets", 3, "--jobs", 2]
    code, printed = call(tmp_path, *SMALL, "--data", data, "--output", tmp_path / "out", *options, limit=1700)
    assert code == 0, printed
    found = {record["method"]: record for record in records(tmp_path / "out")}
    assert set(found) == set(methods)
    assert {record["kept"] for method, record in found.items() if method != "dense"} == {3}
    small, cut = found["dense-small"], found["stratified"]
    assert small["size_of"] == 3
    assert 0.95 * cut["parameters"] < small["parameters"] <= cut["parameters"]
    chosen, shuffled = (Layout.parse(found[f"{name}dsp-auto-finetune"]["layout"]) for name in ("", "shuffled-"))
    assert shuffled.surviving == chosen.surviving
    assert found["shuffled-dsp-auto-finetune"]["shuffled_of"] == "dsp-auto-finetune"
    assert "teacher_kl" in (tmp_path / "out" / found["dsp-auto-taught-finetune"]["log"]).read_text()
    read = read_records(str(tmp_path / "out/results.jsonl"), pytest.fail)
    assert len(do_heads_matter(read).rows) == 2
