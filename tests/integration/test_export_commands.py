"""Exports of a trained model translate as fairseq does with the model itself, through the real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, Result, assert_refused, generate, load, run

EXPORT = "fairseq_dsp.cli.export"

ctranslate2 = pytest.importorskip("ctranslate2")


def export(source: Path, target: Path, *extra: object) -> Result:
    return run(EXPORT, source, target, *extra, folder=target.parent)


def test_a_folded_checkpoint_translates_in_stock_fairseq_without_the_plug_in(pruned, data, tmp_path):
    done = export(pruned, tmp_path / "dense.pt", "--format", "dense")
    assert done.code == 0, done.err
    assert "5 of 12 heads" in done.out
    assert type(load(tmp_path / "dense.pt")["cfg"]["model"]) is dict

    # A new process, which imports nothing of ours: torch's safe loading has only its own list.
    options = ["--gen-subset", "test", "--beam", "3", "--cpu", "--num-workers", "0"]
    options += ["--batch-size", "1"]  # keeps fairseq 0.12.2 off its fused encoder, which stops on today's torch
    options += ["--required-batch-size-multiple", "1", "--max-len-b", "15"]
    program = (
        "import sys; from fairseq_cli.generate import cli_main; cli_main(); assert 'fairseq_dsp' not in sys.modules"
    )
    stock = subprocess.run(
        [sys.executable, "-c", program, str(data), "--path", str(tmp_path / "dense.pt"), *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert stock.returncode == 0, stock.stderr[-3000:]
    theirs = Result(0, stock.stdout, stock.stderr)
    ours = generate(data, pruned, folder=tmp_path)
    assert len(theirs.hypotheses()) == 37
    assert theirs.hypotheses() == ours.hypotheses()
    assert theirs.scores() == pytest.approx(ours.scores(), abs=2e-4)


@pytest.mark.parametrize("given", ["trained", "dense"])
def test_ctranslate2_finds_the_same_translations(given, request, corpus, data, tmp_path):
    source = request.getfixturevalue(given)
    done = export(source, tmp_path / "ct2", "--format", "ctranslate2", "--data", data)
    assert done.code == 0, done.err
    assert "checked" in done.out
    sentences = [line.split() for line in (corpus / "test.aa").read_text().splitlines()]
    translator = ctranslate2.Translator(str(tmp_path / "ct2"), compute_type="float32", intra_threads=1)
    found = translator.translate_batch(sentences, beam_size=1, max_decoding_length=15)
    stock = generate(data, source, "--beam", 1, folder=tmp_path).hypotheses()
    assert {number: " ".join(result.hypotheses[0]) for number, result in enumerate(found)} == stock


def test_the_example_serves_a_quantised_model(pruned, corpus, data, tmp_path):
    done = export(pruned, tmp_path / "ct2", "--format", "ctranslate2", "--data", data, "--quantization", "int8")
    assert done.code == 0, done.err
    assert "with int8: by at most" in done.out
    assert json.loads((tmp_path / "ct2/config.json").read_text())["add_source_eos"]
    text = (corpus / "test.aa").read_text()
    served = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples/translation/serve_ctranslate2.py"),
            str(tmp_path / "ct2"),
            "--batch-size=8",
        ],
        input=text + "\n",
        capture_output=True,
        text=True,
    )
    assert served.returncode == 0, served.stderr[-3000:]
    lines = served.stdout.split("\n")
    assert len(lines) == len(text.splitlines()) + 2  # an empty line stays one
    assert all(word.startswith("b") for line in lines for word in line.split())


def test_the_example_ends_in_a_sentence_whatever_becomes_of_its_text(pruned, data, tmp_path):
    """Its stdout is the result: nothing of it may be printed in another way."""
    script = ROOT / "examples/translation/serve_ctranslate2.py"
    assert export(pruned, tmp_path / "ct2", "--format", "ctranslate2", "--data", data).code == 0
    # the model is of made-up words; what it is asked is copied to its answer by this
    program = "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
    program += "served = runpy.run_path(sys.argv[0]); served['Text'].join = lambda self, words: '\u00e4 ' * 9000\n"
    program += "served['main']()"

    def serve(text: bytes, encoding: str, stdout: Any = subprocess.PIPE) -> tuple[int, bytes, str]:
        done = subprocess.run(
            [sys.executable, "-c", program, str(script), str(tmp_path / "ct2")], input=text, stdout=stdout,
            stderr=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding}, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr.decode()

    code, printed, _ = serve(b"a1 a2\n", "utf-8")
    assert (code, printed.decode()) == (0, "\u00e4 " * 9000 + "\n")
    with open("/dev/full", "wb") as full:
        for text, encoding, stdout, says in (
            (b"a1\n", "ascii", subprocess.PIPE, "text must be ascii"),
            (b"\xff\n", "utf-8", subprocess.PIPE, "text must be utf-8"),
            (b"a1\n", "utf-8", full, "stdout must take what is printed"),
        ):
            code, _, err = serve(text, encoding, stdout)
            assert code == 2
            assert err.startswith(f"serve_ctranslate2.py: error: {says}")
            assert err.count("\n") == 1


def test_refusals_come_as_sentences(pruned, data, tmp_path):
    assert_refused(export(pruned, tmp_path / "out", "--format", "ctranslate2"), "`--data` must be given")
    lost = run(EXPORT, pruned, tmp_path / "no/out.pt", "--format", "dense", folder=tmp_path)
    assert_refused(lost, "folder must exist")
    missing = export(tmp_path / "none.pt", tmp_path / "out", "--format", "ctranslate2", "--data", data)
    assert_refused(missing, "does not exist")
    assert not list(tmp_path.glob("*"))


def test_the_example_says_in_a_sentence_that_there_is_no_model(tmp_path):
    script = ROOT / "examples/translation/serve_ctranslate2.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "nowhere")], capture_output=True, text=True, input=""
    )
    assert done.returncode == 2
    assert "nowhere" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
