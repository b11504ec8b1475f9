"""The Python API: its page's example and its notebook run, it says no as the commands do, and it prints nothing."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, Running, heads_in, load, run

import fairseq_dsp
from fairseq_dsp import Layout, Refusal
from fairseq_dsp.modules.attention import PrunableAttention

sys.path.append(str(ROOT))
from tests.golden.texts import CHECKPOINTS, GOLDEN, LANGUAGES, make_data

SIDES = dict(zip(("source_lang", "target_lang"), LANGUAGES[1::2], strict=True))
NOTEBOOK = ROOT / "examples/translation/explore.ipynb"


def run_in(folder: Path, *programs: str) -> Any:
    """Runs programs one after the other, with one set of names, in a child of this process that works in the folder."""

    def main() -> None:
        os.chdir(folder)
        names: dict[str, Any] = {"__name__": "__main__"}
        for program in programs:
            exec(compile(program, "<example>", "exec"), names)

    return Running(main, [], folder).wait()


def blocks(page: Path) -> list[str]:
    """The page's fenced Python."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def write_results(folder: Path) -> Path:
    """Dense runs alone, whose report has few figures."""
    lines = (GOLDEN / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(line for line in lines if '"method": "dense"' in line))
    return folder / "results.jsonl"


@pytest.fixture
def example(tmp_path: Path, dense: Path, trained: Path, data: Path) -> Path:
    """A folder with the files that the page's example names."""
    shutil.copy(trained, tmp_path / "checkpoint_best.pt")
    shutil.copy(dense, tmp_path / "dense.pt")
    shutil.copytree(data, tmp_path / "data-bin")
    write_results(tmp_path)
    (tmp_path / "codes").write_text("#version: 0.2\na 3</w>\na 7</w>\na 1</w>\n")
    return tmp_path


def test_the_example_of_its_page_runs(example: Path):
    pytest.importorskip("ctranslate2")
    done = run_in(example, *blocks(ROOT / "docs/api.md"))
    assert done.code == 0, done.err
    assert "5 of 12 heads: enc:" in done.out
    texts = [line for line in done.out.splitlines() if re.fullmatch(r"b\d+( b\d+)*", line)]
    assert len(texts) == 2
    assert texts[0] == texts[1]  # for the codes take no word apart
    assert "all checkpoints must" in done.out
    assert "2 runs" in done.out
    assert [heads_in(example / name) for name in ("small.pt", "dense-4.pt", "dense-2.pt")] == [5, 4, 2]
    assert (example / "kept-heads.png").read_bytes().startswith(b"\x89PNG")
    assert {"stock.pt", "served", "report"} <= set(os.listdir(example))
    assert "mean.pt" not in os.listdir(example)


def test_its_page_names_all_of_it():
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8").partition("## Names")[2]
    named = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)", row)}
    assert named | {"ScoreFile"} == set(fairseq_dsp.__all__)


def test_the_notebook_runs_and_its_cells_are_those_of_a_notebook(tmp_path: Path):
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)
    folder = shutil.copytree(GOLDEN, tmp_path / "tests/golden").parents[1] / "examples/translation"
    folder.mkdir(parents=True)
    done = run_in(folder, *("".join(cell["source"]) for cell in code))
    assert done.code == 0, done.err
    for words in ("5 of 12 heads", "16,576 -> 12,824 parameters"):
        assert words in done.out
    expected = (GOLDEN / "expected.tsv").read_text().splitlines()[0].split("\t")[1]
    assert expected in done.out.splitlines()
    (shown,) = re.findall(r"!\[.*?\]\((.*?)\)", "".join("".join(cell["source"]) for cell in book["cells"]))
    assert (folder / shown).read_bytes().startswith(b"\x89PNG")
    for cell in code:
        ast.parse("".join(cell["source"]))  # no magic of a notebook, which nothing but one runs


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_loaded_model_translates_as_fairseq_generate_does(name: str):
    path = GOLDEN / CHECKPOINTS[name]
    model = fairseq_dsp.load(path, GOLDEN, **SIDES)
    expected = path.parent / "expected.tsv"
    lines = (GOLDEN / "source.txt").read_text().splitlines()
    texts = [line.split("\t")[1] for line in expected.read_text().splitlines()]
    assert model.translate(lines, beam=4, max_len_b=20) == texts
    assert not model.training
    computed = [module.num_heads for module in model.modules() if isinstance(module, PrunableAttention)]
    assert sum(computed) == model.models[0].layout.by_kind()["heads"][0]
    assert model.models[0].layout == fairseq_dsp.read_layout(path)


def test_a_loaded_model_is_its_own_when_the_file_is_written_over(tmp_path: Path):
    path = Path(shutil.copy(GOLDEN / "rewritten.pt", tmp_path / "small.pt"))
    model = fairseq_dsp.load(path, GOLDEN, **SIDES)
    line = (GOLDEN / "source.txt").read_text().splitlines()[0]
    before = model.translate(line)
    with open(path, "r+b") as file:  # in place, as fairseq copies checkpoints
        file.write(bytes(path.stat().st_size))
    assert model.translate(line) == before


def calls(folder: Path) -> dict[str, Callable[[], Any]]:
    """A call of every function that writes, and those of reading; each writes a file of its own name, if it succeeds."""
    trained, scores = GOLDEN / "trained.pt", folder / "scores.json"
    return {
        "prune": lambda: fairseq_dsp.prune(trained, folder / "prune"),
        "score": lambda: fairseq_dsp.score(trained, "random", None, folder / "score", watch=shown),
        "cut": lambda: fairseq_dsp.prune(trained, folder / "cut", scores=scores, unpruned_heads=4),
        "average": lambda: fairseq_dsp.average([trained, trained], folder / "average"),
        "export_dense": lambda: fairseq_dsp.export_dense(trained, folder / "export_dense"),
        "report": lambda: fairseq_dsp.report(write_results(folder), folder / "report"),
        "draw_heads": lambda: fairseq_dsp.draw_heads({"": Layout.parse("enc:10/dec:11/cross:01")}, folder / "a.png"),
        "read_layout": lambda: fairseq_dsp.read_layout(trained),
        "read_scores": lambda: fairseq_dsp.read_scores(str(scores)),
        "load": lambda: fairseq_dsp.load(trained, GOLDEN, **SIDES),
    }


@contextlib.contextmanager
def shown(what: str, total: int) -> Iterator[Callable[[], None]]:
    yield lambda: None


@pytest.mark.parametrize("name", calls(Path()))
def test_nothing_prints_and_paths_are_paths(name: str, tmp_path: Path, capfd):
    shutil.copy(GOLDEN / "scores.json", tmp_path)
    calls(tmp_path)[name]()
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / name).exists() == (name not in ("draw_heads", "read_layout", "read_scores", "load"))


@pytest.mark.parametrize("command", ["prune", "score", "average", "export", "report"])
def test_says_no_as_the_command_does(command: str, tmp_path: Path):
    out = tmp_path / "out"
    out.write_text("precious")
    path, words, call = {
        "prune": (GOLDEN / "trained.pt", [], lambda path: fairseq_dsp.prune(path, out)),
        "score": (
            GOLDEN / "dense.pt",
            ["--scorer", "magnitude", "--subset", "valid", "--seed", "x"],
            lambda path: fairseq_dsp.score(path, "magnitude", output=out, subset="valid", seed="x"),
        ),
        "average": (GOLDEN / "trained.pt", [], lambda path: fairseq_dsp.average([path], out)),
        "export": (GOLDEN / "trained.pt", ["--format", "dense"], lambda path: fairseq_dsp.export_dense(path, out)),
        "report": (GOLDEN / "results.jsonl", [], lambda path: fairseq_dsp.report(path, out)),
    }[command]
    order = {"score": ["--path", path, "--output", out], "average": [out, path], "report": [path, "--output", out]}
    done = run(f"fairseq_dsp.cli.{command}", *order.get(command, [path, out]), *words, folder=tmp_path)
    with pytest.raises(Refusal) as refused:
        call(path)
    assert list(refused.value.reasons) == done.refusals
    assert len(done.refusals) == {"score": 4}.get(command, 1)
    assert out.read_text() == "precious"


def test_scores_are_written_where_a_file_is_named_and_cut_from_without_one(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = fairseq_dsp.score(GOLDEN / "trained.pt", "random", seed=3)
    assert not list(tmp_path.iterdir())
    assert fairseq_dsp.score(GOLDEN / "trained.pt", "random", seed="3", output="scores.json") == scores
    assert fairseq_dsp.read_scores("scores.json") == scores
    cut = [
        fairseq_dsp.prune(GOLDEN / "trained.pt", f"{number}.pt", scores=given, unpruned_heads=4)
        for number, given in enumerate((scores, "scores.json"))
    ]
    assert str(cut[0].layout) == str(cut[1].layout) == str(fairseq_dsp.read_layout("0.pt"))
    assert cut[0].layout.count == heads_in(tmp_path / "0.pt") == 4


def test_every_step_of_the_work_is_told(tmp_path: Path):
    make_data(tmp_path / "data")
    told: list[Any] = []

    @contextlib.contextmanager
    def watch(what: str, total: int) -> Iterator[Callable[[], None]]:
        told.append((what, total))
        yield lambda: told.append("step")

    options = {"subset": "valid", "max_tokens": 60, "iterative": 6, "cpu": True}
    found = fairseq_dsp.score(GOLDEN / "trained.pt", "gradient", tmp_path / "data", **SIDES, **options, watch=watch)
    assert found.batches is not None
    assert told == [("gradient, batches", 2 * found.batches), *["step"] * (2 * found.batches)]


@pytest.mark.parametrize("heads", [2.5, 4.0, "four", [4]])
def test_a_number_that_is_none_is_refused(heads: Any, tmp_path: Path):
    with pytest.raises(Refusal, match="`--unpruned-heads` must be a whole number, but is "):
        fairseq_dsp.prune(GOLDEN / "trained.pt", tmp_path / "out.pt", unpruned_heads=heads)


def test_a_layout_is_taken_as_text_as_a_checkpoint_and_as_itself(tmp_path: Path):
    text = "enc:01.00/dec:00.00/cross:00.01"
    small = fairseq_dsp.prune(GOLDEN / "trained.pt", tmp_path / "text.pt", layout=text).layout
    assert str(small) == text
    for name, layout in (("itself", small), ("checkpoint", tmp_path / "text.pt")):
        fairseq_dsp.prune(GOLDEN / "trained.pt", tmp_path / f"{name}.pt", layout=layout)
        assert fairseq_dsp.read_layout(tmp_path / f"{name}.pt") == small
    for wrong in ("enc:12/dec:/cross:", tmp_path / "none.pt"):
        with pytest.raises(Refusal, match="`source`"):
            fairseq_dsp.read_layout(wrong)


def test_folders_of_other_dictionaries_and_other_tasks_are_refused(tmp_path: Path):
    make_data(tmp_path / "data")
    (tmp_path / "data/dict.qar.txt").write_text("one 1\ntwo 1\n")
    with pytest.raises(Refusal, match="`--data` must have the model's dictionaries, but dict.qar.txt has 6 entries"):
        fairseq_dsp.load(GOLDEN / "rewritten.pt", tmp_path / "data", **SIDES)
    state = load(GOLDEN / "rewritten.pt")
    state["cfg"]["task"]["_name"] = "multilingual_denoising"
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(Refusal, match="`load`"):
        fairseq_dsp.load(tmp_path / "other.pt", GOLDEN, **SIDES)
