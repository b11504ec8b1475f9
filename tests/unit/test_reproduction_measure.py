"""What becomes a line of the results, and that it is there whole or not at all."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.options.costing import costs_of
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.costs import Sentence

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/translation"))

from reproduction import data, measure, results
from reproduction.data import Data
from reproduction.steps import Run, Step

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 bytes, as on a disk that fills."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_line_that_finds_no_room_leaves_nothing_for_the_next_one_to_join(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"seed": 1}\n' * 5)
    with pytest.raises(OSError, match="No space|too large"):
        results.append_result(path, dict.fromkeys(results.KEYS, 1))
    assert path.read_text() == '{"seed": 1}\n' * 5
    results._append(path, b'{"seed": 2}\n')
    assert [record["seed"] for record in results.read_results(path)] == [1] * 5 + [2]


def finished_run(out: Path, printed: list[tuple[str, str]]) -> Run:
    """A run whose generate.log has these (hypothesis, reference) lines."""
    folder = out / "runs/dsp-k4-s1"
    folder.mkdir(parents=True)
    lines = [
        f"S-{n}\tx\nT-{n}\t{reference}\nH-{n}\t-0.5\t{hypothesis}\n"
        for n, (hypothesis, reference) in enumerate(printed)
    ]
    (folder / "generate.log").write_text("".join(lines))
    shutil.copy(GOLDEN / "rewritten.pt", folder / "pruned.pt")
    return Run("dsp-k4-s1", "dsp", 4, 1, (), (), "runs/dsp-k4-s1/pruned.pt")


def data_of(count: int, references: list[str] | None, tokenised: str = "moses") -> Data:
    info = {"tokenised": tokenised, "segmentation": "subword_nmt"}
    return Data(Path("bin"), "de", "en", {"test": np.ones((count, 2))}, (9, 9), info, references)


def test_scores_are_against_the_references_as_they_were_written(tmp_path: Path):
    """fairseq prints <<unk>> where a reference has a character that its dictionary lacks."""
    run = finished_run(tmp_path, [("we met rei ki te yesterday", "we met rei <<unk>> te yesterday")])
    written = ["we met rei ki te yesterday"]
    assert measure.measure(run, run.steps, tmp_path, data_of(1, None), {})["bleu_tok"] < 60
    record = measure.measure(run, run.steps, tmp_path, data_of(1, written), {})
    assert [round(record[name], 6) for name in ("bleu_tok", "sacrebleu", "chrf")] == [100, 100, 100]
    assert (tmp_path / measure.REFERENCES).read_text().splitlines() == written


def test_scores_of_detokenised_text_and_all_else_that_a_line_says(tmp_path: Path):
    pairs = [("it &apos;s red , now .", "it &apos;s red , then ."), ("the houses are blue !", "the houses are blue !")]
    plain = ["it's red, now.", "the houses are blue!"], ["it's red, then.", "the houses are blue!"]
    run = finished_run(tmp_path, pairs)
    made = replace(data_of(2, None), info={"label": "30 %", "pair": "de-en", "tokenised": "moses"})
    recipe = [
        Step("train", ("fairseq-train", "DATA-BIN", "--adam-betas", "(0.9, 0.98)")),
        Step("prune", ("fairseq-dsp-prune",)),
    ]
    record = measure.measure(run, recipe, tmp_path, made, {"processor": "made up"})
    assert record["sacrebleu"] == BLEU().corpus_score(plain[0], [plain[1]]).score
    assert record["chrf"] == CHRF().corpus_score(plain[0], [plain[1]]).score
    tokenised = [[line.replace("&apos;", "'") for line in lines] for lines in zip(*pairs, strict=True)]
    assert record["sacrebleu"] != BLEU().corpus_score(tokenised[0], [tokenised[1]]).score
    assert (tmp_path / record["hypotheses"]).read_text().splitlines() == plain[0]
    assert (tmp_path / "hypotheses/dsp-k4-s1.tok.txt").read_text().splitlines() == [pair[0] for pair in pairs]
    assert record["command"] == "fairseq-train DATA-BIN --adam-betas '(0.9, 0.98)' && fairseq-dsp-prune"
    assert record["data"] == made.info
    assert record["hardware"] == {"processor": "made up"}
    assert record["versions"]["torch"] == version("torch")
    assert record["versions"]["sacrebleu"] == version("sacrebleu")


def test_a_training_log_that_a_full_disk_has_cut_within_a_letter_is_read(tmp_path: Path):
    run = finished_run(tmp_path, [("a b c d", "a b c d")])
    line = b"2026-01-31 12:00:00 | INFO | train | epoch 001 | wpb 900 | num_updates 50 | train_wall 30\n"
    (tmp_path / "runs/dsp-k4-s1/train.log").write_bytes(line + b"gr\xc3")
    assert measure.measure(run, (), tmp_path, data_of(1, None), {})["seconds"] == 30


def test_a_speed_is_not_made_up_where_no_second_has_passed(tmp_path: Path):
    run = finished_run(tmp_path, [("a b c d", "a b c d")])
    line = "2026-01-31 12:00:00 | INFO | train | epoch 001 | wpb 900 | num_updates 50 | train_wall 0\n"
    (tmp_path / "runs/dsp-k4-s1/train.log").write_text(line)
    record = measure.measure(run, (), tmp_path, data_of(1, None), {})
    assert (record["updates"], record["seconds"], record["words_per_second"]) == (50, 0, None)


def test_references_that_are_not_the_test_set_s_are_refused(tmp_path: Path):
    path = tmp_path / "reference.en"
    assert data._references(path, 2) is None
    path.write_text("one\ntwo\n")
    assert data._references(path, 2) == ["one", "two"]
    with pytest.raises(Refusal, match="each of the 3 test sentences, but has 2"):
        data._references(path, 3)


def test_tokenised_bleu_is_lower_cased_and_says_so(tmp_path: Path):
    run = finished_run(tmp_path, [("The House Is Red .", "the house is red .")])
    record = measure.measure(run, run.steps, tmp_path, data_of(1, None), {})
    assert record["bleu_tok"] == pytest.approx(100)
    assert record["sacrebleu"] < 50
    assert "case:lc" in record["signatures"]["bleu_tok"]
    assert "case:mixed" in record["signatures"]["sacrebleu"]


def test_text_that_was_never_tokenised_is_for_tokenised_bleu(tmp_path: Path):
    run = finished_run(tmp_path, [("The house is red, now.", "the house is red , now .")])
    for tokenised, tokeniser, least in (("no", "13a", 99), ("moses", "none", 0)):
        record = measure.measure(run, run.steps, tmp_path, data_of(1, None, tokenised), {})
        assert f"tok:{tokeniser}" in record["signatures"]["bleu_tok"]
        assert record["bleu_tok"] > least
    assert record["bleu_tok"] < 50


def test_updates_come_from_the_log_which_outlives_the_checkpoints(tmp_path: Path):
    run = finished_run(tmp_path, [("a b c d", "a b c d")])
    lines = [
        f"2026-01-31 12:00:00 | INFO | train | epoch 00{epoch} | loss 3.1 | wpb 900 | num_updates {updates} | train_wall 30"
        for epoch, updates in ((1, 50), (2, 100))
    ]
    (tmp_path / "runs/dsp-k4-s1/train.log").write_text("\n".join(lines))
    record = measure.measure(run, run.steps, tmp_path, data_of(1, None), {})
    assert (record["updates"], record["seconds"], record["words_per_second"]) == (100, 60, 1500)
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("logged", "done", "expected"),
    [
        ([(1, 50), (2, 100)], 100, (100, 60, 1500)),
        ([(1, 50)], 100, (100, None, None)),  # killed when the last checkpoint was there and its line was not
        ([(2, 100)], 100, (100, None, None)),  # likewise in the middle
        ([], 100, (100, None, None)),
        ([], None, (None, None, None)),
    ],
)
def test_an_epoch_that_a_kill_kept_out_of_the_log_is_counted_and_not_timed(logged, done, expected, tmp_path: Path):
    run = finished_run(tmp_path, [("a b c d", "a b c d")])
    line = "2026-01-31 12:00:00 | INFO | train | epoch 00{} | loss 3 | wpb 900 | num_updates {} | train_wall 30\n"
    (tmp_path / "runs/dsp-k4-s1/train.log").write_text("".join(line.format(*each) for each in logged))
    if done is not None:
        (tmp_path / "runs/dsp-k4-s1/checkpoints").mkdir()
        state = {"model": {}, "optimizer_history": [{"num_updates": done}]}
        torch.save(state, tmp_path / "runs/dsp-k4-s1/checkpoints/checkpoint_last.pt")
    record = measure.measure(run, run.steps, tmp_path, data_of(1, None), {})
    assert (record["updates"], record["seconds"], record["words_per_second"]) == expected


@pytest.mark.parametrize(
    ("visible", "gpus", "found"), [("", ["1"], [1]), ("2,3", ["3"], [1]), ("2,3", ["2", "3"], [0, 1])]
)
def test_the_devices_that_are_used_are_named(visible: str, gpus: list[str], found: list[int], monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    record = measure.hardware(gpus, 2)
    assert record["gpu"] == ", ".join(f"card {index}" for index in found)
    assert record["gpus"] == len(gpus)


def test_a_line_says_operations_and_measured_speed_where_they_are_known(tmp_path: Path):
    run = finished_run(tmp_path, [("a b c d", "a b c d")] * 2)
    record = measure.measure(run, (), tmp_path, data_of(2, None), {})
    assert (record["macs"], record["latency"], record["budget"]) == (None, None, None)
    assert tuple(record) == results.KEYS
    with (tmp_path / "runs/dsp-k4-s1/generate.log").open("a") as log:
        log.write(
            "2026-01-31 12:00:00 | INFO | fairseq_cli.generate | Translated 2 sentences (1,003 tokens) in 0.5s (4.00 sentences/s, 2006.00 tokens/s)\n"
        )
    step = Step("generate", ("fairseq-generate", "DATA-BIN", "--beam", "3"))
    record = measure.measure(replace(run, steps=(step,)), (), tmp_path, data_of(2, None), {})
    assert record["latency"] == 0.25
    model = load_model(read_checkpoint(str(GOLDEN / "rewritten.pt")))
    costs = costs_of(model, "macs", Sentence(1, 1, 3))
    assert record["macs"] == costs.rest + costs.of(model.layout)
    assert measure._budget("parameters=0.5") == "parameters=0.5"
    assert measure._budget("0.25") is None
