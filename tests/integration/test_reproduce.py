"""reproduce.py: killed and resumed, several runs at once, results that nothing can break."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT
from models import not_on_0_12_2

from fairseq_dsp.errors import Refusal

SCRIPT = ROOT / "examples/translation/reproduce.py"
sys.path.insert(0, str(SCRIPT.parent))

import reproduce  # noqa: E402
from reproduction import checkpoints, measure, plan, presets, results, running  # noqa: E402
from reproduction.data import read_data  # noqa: E402

KEYS = [
    "method",
    "kept",
    "total",
    "seed",
    "layout",
    "bleu_tok",
    "sacrebleu",
    "chrf",
    "signatures",
    "updates",
    "seconds",
]
KEYS += ["words_per_second", "parameters", "hardware", "versions", "data", "command", "hypotheses", "log"]
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
def test_a_killed_experiment_goes_on_and_nothing_finished_is_done_again(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    options = [
        *SMALL,
        "--data",
        data,
        "--output",
        out,
        "--methods",
        "dense",
        "dsp",
        "random",
        "--budgets",
        4,
        "--jobs",
        2,
    ]
    first = start(tmp_path, *options)
    logs = [out / f"runs/{name}/train.log" for name in ("dense-s1", "dsp-k4-s1")]
    until = time.monotonic() + 120
    while not any(log.exists() and "| train | epoch 001" in log.read_text() for log in logs):
        assert first.poll() is None, (tmp_path / "out.txt").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    started = commands(out)
    assert started == ["fairseq-train", "fairseq-train"]  # two at once
    last = out / "runs/dense-s1/checkpoints/checkpoint_last.pt"
    if last.exists():  # as a kill in the middle of the copy leaves it
        os.truncate(last, last.stat().st_size // 2)

    code, printed = call(tmp_path, *options)
    assert code == 0, printed
    assert "goes on after" in printed or "checkpoint" not in printed
    found = records(out)
    assert [list(record) for record in found] == [KEYS] * 3
    assert {(r["method"], r["kept"], r["total"], r["seed"]) for r in found} == {
        ("dense", 12, 12, 1), ("dsp", 4, 12, 1), ("random", 4, 12, 1),
    }  # fmt: skip
    by_method = {record["method"]: record for record in found}
    assert by_method["dense"]["updates"] == by_method["dsp"]["updates"] > 0
    expected = 2 * read_data(data, None, None, None).updates_an_epoch(400)
    assert by_method["dsp"]["updates"] == pytest.approx(expected, rel=0.1)
    assert by_method["dsp"]["words_per_second"] > 0
    assert by_method["random"]["updates"] is None
    assert by_method["dsp"]["parameters"] == by_method["random"]["parameters"] < by_method["dense"]["parameters"]
    for record in found:
        assert set(record["signatures"]) == {"bleu_tok", "sacrebleu", "chrf"}
        assert str(tmp_path) not in json.dumps(record)
        assert len((out / record["hypotheses"]).read_text().split("\n")) == 38
        assert record["log"] is None or (out / record["log"]).is_file()
    assert len((out / measure.REFERENCES).read_text().split("\n")) == 38

    # a result whose line was cut, and one whose line was never written: no command runs for either
    done = commands(out)
    lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (out / "results.jsonl").write_bytes(lines[0] + lines[1][:50])
    code, printed = call(tmp_path, *options)
    assert code == 0, printed
    assert "was cut" in printed
    assert commands(out) == done
    assert sorted(map(str, records(out))) == sorted(map(str, found))

    # settings that would not be comparable
    code, printed = call(tmp_path, *options, "--epochs", 5)
    assert code == 2
    assert "begun with epochs 2 instead of 5" in printed


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
    out = tmp_path / "out"
    for options, words in (
        (["--data", lacking, "--output", out], ["dict.bb.txt", "valid.aa-bb.aa.idx"]),
        (["--data", broken, "--output", out], ["whole data sets"]),
        (["--data", tmp_path / "none", "--output", out], ["`--data`", "none"]),
        (["--data", foreign, "--output", out], ["`--data`", "train.SRC-TGT.SRC.idx"]),
        (["--data", data, "--output", out, "--source-lang", "de", "--target-lang", "en"], ["aa-bb", "de-en"]),
        (["--data", data, "--output", out, "--budgets", "13", "some"], ["between 0 and 12", "13", "some"]),
        (["--data", data, "--output", foreign], ["`--output`", "holds other files"]),
        (["--data", data, "--output", out, "--methods", "magic"], ["`--methods`", "magic"]),
        (["--preset", "paper", "--output", out], ["`--data` must be given"]),
        (["--data", data, "--output", out, "--jobs", "0"], ["`--jobs` must be at least 1"]),
        (["--data", data, "--output", out, "--gpus", "97"], ["`--gpus`", "97"]),
    ):
        with pytest.raises(Refusal) as refusal:
            reproduce.main(["--preset", "smoke", *map(str, options)])
        for word in words:
            assert word in str(refusal.value)
    assert not out.exists()


def test_a_dry_run_prints_every_command_and_a_reader_may_leave(data: Path, tmp_path: Path):
    command = [
        sys.executable,
        str(SCRIPT),
        *map(str, SMALL),
        "--data",
        str(data),
        "--output",
        str(tmp_path / "out"),
        "--dry-run",
    ]
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(
            [*command, "--seeds", *map(str, range(60))], text=True, stdout=subprocess.PIPE, stderr=errors
        )
        first = process.stdout.readline()
        process.stdout.close()  # as `| head -1` does, long before the end of what fills a pipe
    assert first.startswith("fairseq-train ")
    assert process.wait(timeout=120) == 1
    assert "BrokenPipe" not in (tmp_path / "errors").read_text()
    printed = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    for name in ("fairseq-train", "fairseq-dsp-score", "fairseq-dsp-prune", "fairseq-generate"):
        assert f"\n{name} " in "\n" + printed
    assert not (tmp_path / "out").exists()


def test_no_room_on_the_disk_is_said_before_anything_starts(tmp_path: Path):
    with pytest.raises(Refusal, match="GB free"):
        running.refuse_full_disk(tmp_path, 10**18)
    running.refuse_full_disk(tmp_path, 1)


def test_an_output_in_use_is_refused(tmp_path: Path):
    one, two = (running.Place(tmp_path, tmp_path, 1, print) for _ in range(2))
    with one.locked(), pytest.raises(Refusal, match="nobody else's"), two.locked(patience=0.0):
        pass
    with two.locked(patience=0.0):
        pass


class TestResults:
    def record(self, **values: object) -> dict:
        return {**dict.fromkeys(results.KEYS, 1), **values}

    def test_come_back_as_they_were_appended(self, tmp_path: Path):
        path = tmp_path / "results.jsonl"
        both = [self.record(method="dsp"), self.record(method="ste", command="é\n")]
        for record in both:
            results.append_result(path, record)
        assert results.read_results(path) == both

    @pytest.mark.parametrize("broken", [b'{"method": "ds', b"\xc3", b"12"])
    def test_lose_a_broken_last_line_only(self, broken: bytes, tmp_path: Path):
        path = tmp_path / "results.jsonl"
        results.append_result(path, self.record())
        whole = path.read_bytes()
        path.write_bytes(whole + broken)
        assert results.read_results(path) == [self.record()]
        assert path.read_bytes() == whole

    def test_keep_a_whole_last_line_that_lacks_its_newline(self, tmp_path: Path):
        path = tmp_path / "results.jsonl"
        results.append_result(path, self.record())
        path.write_bytes(path.read_bytes()[:-1])
        assert results.read_results(path) == [self.record()]
        results.append_result(path, self.record(seed=2))
        assert len(results.read_results(path)) == 2

    def test_with_a_broken_line_before_the_last_are_refused(self, tmp_path: Path):
        path = tmp_path / "results.jsonl"
        path.write_bytes(b"x\n{}\n")
        with pytest.raises(Refusal, match="line 1"):
            results.read_results(path)


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
        assert checkpoints.recover(tmp_path) == "starts"  # the choice so far is lost
        assert not list(tmp_path.iterdir())


class TestPlan:
    def test_budgets_are_counts_or_shares(self):
        assert plan.parse_budgets(["72", "0.25", "1/6", "0", "18", "1.0", "auto"], 72) == [72, 18, 12, 0, "auto"]
        for bad in ("73", "-1", "1.5", "many", "1/0"):
            with pytest.raises(Refusal, match="--budgets"):
                plan.parse_budgets([bad], 72)

    def test_the_paper_is_all_methods_at_ten_budgets_with_its_recipe(self):
        preset = presets.PRESETS["paper"]
        assert preset.total_heads == 72
        settings = plan.Settings(preset, presets.schedule(preset, 1000), "de", "en", "subword_nmt", False, "fp32")
        runs = plan.plan(settings, preset.methods, plan.parse_budgets(preset.budgets, 72), [1])
        assert len([run for run in runs if run.budget is not None]) == 1 + 9 * 10
        assert all(set(run.needs) <= {r.name for r in runs[:n]} for n, run in enumerate(runs))
        joint = " ".join(next(run for run in runs if run.name == "dsp-k18-s1").steps[0].words)
        for words in ("--lr 0.0005", "--warmup-updates 4000", "--cooldown-updates 15000", "--importance-lr 0.2"):
            assert words in joint
        for words in ("--final-temperature 1e-8", "--max-epoch 60", "--max-tokens 4096", "--dropout 0.3"):
            assert words in joint

    def test_larger_batches_keep_the_shares_of_the_schedule(self):
        preset = presets.scale_batch(presets.PRESETS["paper"], 16384)
        assert preset.learning_rate == pytest.approx(1e-3)
        found = presets.schedule(preset, 250)
        assert (found.warmup, found.cooldown, found.gentle) == (1000, 3750, True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_gives_a_result(precision: str, data: Path, tmp_path: Path):
    options = ["--methods", *presets.METHODS, "--budgets", 12, 3, 0, "auto", "--jobs", 2, "--precision", precision]
    code, printed = call(tmp_path, *SMALL, "--data", data, "--output", tmp_path / "out", *options, limit=1700)
    assert code == 0, printed
    found = records(tmp_path / "out")
    assert len(found) == 1 + 9 * 3 + 1
    kept = {(record["method"], record["kept"]) for record in found if record["method"] != "hard-concrete-auto"}
    assert kept == {("dense", 12)} | {(m, k) for m in presets.METHODS[1:] for k in (12, 3, 0)}
