"""Data folders of every kind that fairseq takes, for every command that reads one; and models of tasks that read data otherwise."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import PREPROCESS, QUIET, ROOT, Result, assert_refused, budget, load, run, train

sys.path.append(str(ROOT / "examples/translation"))
import reproduce
from reproduction.data import read_data

from fairseq_dsp.errors import Refusal

EXPORT, SCORE, BENCH = (f"fairseq_dsp.cli.{name}" for name in ("export", "score", "bench"))
for _name in (EXPORT, SCORE, BENCH):
    importlib.import_module(_name)  # before any fork

OLDER = ("raw", "cached", "lazy")


@pytest.fixture(scope="module")
def kinds(corpus: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The corpus as fairseq-preprocess makes it for every `--dataset-impl`."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind in OLDER:
        arguments = ["-s", "aa", "-t", "bb", "--destdir", folder / kind, "--workers", 1, "--dataset-impl", kind]
        arguments += ["--srcdict", data / "dict.aa.txt", "--tgtdict", data / "dict.bb.txt"]
        for option, subset in (("--trainpref", "train"), ("--validpref", "valid"), ("--testpref", "test")):
            arguments += [option, corpus / subset]
        done = run(PREPROCESS, *arguments, folder=folder)
        assert done.code == 0, done.err
    return {"mmap": data, **{kind: folder / kind for kind in OLDER}}


def score(data: Any, path: Path, output: Path, *extra: Any) -> Result:
    arguments = [data, "--path", path, "--scorer", "gradient", "--output", output, "--cpu", *extra]
    return run(SCORE, *arguments, folder=output.parent)


def scored(data: Any, path: Path, output: Path, *extra: Any) -> dict[str, Any]:
    done = score(data, path, output, *extra)
    assert done.code == 0, done.err[-3000:]
    return json.loads(output.read_text())


def bench(data: Any, path: Path, output: Path) -> Result:
    arguments = ["--path", path, *"--workloads encoder --batch-size 4 --pairs 1 --warmup 0 --cpu --no-memory".split()]
    return run(BENCH, *arguments, "--data", data, "--json", output, folder=output.parent)


def convert(data: Any, path: Path, output: Path) -> Result:
    return run(EXPORT, path, output, "--format", "ctranslate2", "--data", data, folder=output.parent)


@pytest.mark.parametrize("kind", OLDER)
def test_scores_and_measurements_are_those_of_the_same_sentences_in_any_kind(kind, kinds, dense, tmp_path):
    for name in ("mmap", kind):
        scored(kinds[name], dense, tmp_path / f"{name}.json", "--batches", 3, "--max-tokens", 200)
        done = bench(kinds[name], dense, tmp_path / f"{name}.jsonl")
        assert done.code == 0, done.err[-3000:]
    assert (tmp_path / "mmap.json").read_text() == (tmp_path / f"{kind}.json").read_text()
    operations = [json.loads((tmp_path / f"{name}.jsonl").read_text())["flops"] for name in ("mmap", kind)]
    assert operations[0] == operations[1]


def test_a_list_of_folders_is_read_to_its_end(kinds, dense, tmp_path):
    """The training set of all of them, in parts of any kind; the rest of the first."""
    parts = tmp_path / "parts"
    shutil.copytree(kinds["mmap"], parts)
    for file in kinds["mmap"].glob("train.*"):
        shutil.copy(file, parts / file.name.replace("train", "train1"))
    for file in kinds["raw"].glob("valid.*"):
        (parts / file.name).write_text("a1\n")  # of another folder than the first
    several = os.pathsep.join(map(str, (kinds["mmap"], kinds["raw"], parts)))
    found = scored(several, dense, tmp_path / "all.json", "--batches", "all", "--max-tokens", 300)
    assert found["sentences"] == 4 * 200
    one = scored(kinds["mmap"], dense, tmp_path / "one.json", "--batches", "all", "--max-tokens", 300)
    assert found["scores"] == pytest.approx(one["scores"], rel=1e-4)  # the same sentences, each four times
    for name, data in (("valid", several), ("first", kinds["mmap"])):
        scored(data, dense, tmp_path / f"{name}.json", "--subset", "valid")
    assert (tmp_path / "valid.json").read_text() == (tmp_path / "first.json").read_text()
    for done in (bench(several, dense, tmp_path / "rows.jsonl"), convert(several, dense, tmp_path / "served")):
        assert done.code == 0, done.err[-3000:]


def test_a_folder_of_the_list_that_is_not_there_is_refused_before_anything_runs(data, dense, tmp_path):
    several = f"{data}{os.pathsep}{tmp_path / 'none'}"
    words = f"must be a folder of fairseq-preprocess, but {tmp_path / 'none'} is none"
    assert_refused(score(several, dense, tmp_path / "out"), words)
    assert_refused(bench(several, dense, tmp_path / "out"), words)
    assert_refused(convert(several, dense, tmp_path / "out"), words)
    done = train(
        several, tmp_path / "save", *QUIET, *budget(5), "--max-epoch", 2, ok=False
    )  # fairseq: in the second epoch
    assert_refused(done, words)


def test_a_reproduction_takes_text_and_refuses_a_list(kinds, data, tmp_path, capsys):
    found, same = read_data(kinds["raw"], None, None, None), read_data(data, None, None, None)
    assert found.raw
    assert not same.raw
    assert all((found.sizes[subset] == same.sizes[subset]).all() for subset in ("train", "valid", "test"))
    assert found.updates_an_epoch(300) == same.updates_an_epoch(300)
    for name, given in (("raw", True), ("mmap", False)):
        options = ["--preset", "smoke", "--data", kinds[name], "--output", tmp_path / "out", "--dry-run"]
        assert reproduce.main([str(word) for word in options]) == 0
        lines = capsys.readouterr().out.splitlines()
        of_fairseq = [line.startswith(("fairseq-train ", "fairseq-generate ")) for line in lines]
        assert ["--dataset-impl raw" in line for line in lines] == [given and each for each in of_fairseq]
    with pytest.raises(Refusal, match="`--data` must be one folder"):
        read_data(Path(f"{data}{os.pathsep}{kinds['raw']}"), None, None, None)


def of_task(path: Path, name: str, target: Path, plain: bool = False) -> Path:
    """The checkpoint as if another task had trained it."""
    state = load(path)
    task = {**state["cfg"]["task"], "_name": name}
    state["cfg"]["task"] = task if plain else argparse.Namespace(**task, task=name)
    torch.save(state, target)
    return target


@pytest.mark.parametrize("name", ["translation_lev", "translation_from_pretrained_bart", "my_translation"])
def test_a_model_whose_task_reads_sentences_otherwise_is_refused_by_every_command_that_reads_data(
    name, data, dense, trained, tmp_path
):
    path = of_task(dense, name, tmp_path / "in.pt", plain=name == "my_translation")
    words = f"or translation_multi_simple_epoch_dsp, but it is {name}."
    for done in (
        score(data, path, tmp_path / "out"),
        bench(data, path, tmp_path / "out"),
        bench(data, of_task(trained, name, tmp_path / "gated.pt"), tmp_path / "out"),
        convert(data, path, tmp_path / "out"),
    ):
        assert_refused(done, words)
    assert not (tmp_path / "out").exists()


def test_what_reads_no_data_takes_any_task(dense, tmp_path):
    path = of_task(dense, "translation_lev", tmp_path / "in.pt")
    arguments = ["--path", path, "--scorer", "magnitude", "--output", tmp_path / "out.json", "--cpu"]
    assert run(SCORE, "nowhere", *arguments, folder=tmp_path).code == 0
    quick = "--workloads encoder --batch-size 4 --pairs 1 --warmup 0 --cpu --no-memory".split()
    assert run(BENCH, "--path", path, *quick, folder=tmp_path).code == 0
