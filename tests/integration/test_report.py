"""`fairseq-dsp-report`: table, figures and page of made-up results; the page in a browser, where there is one."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import Result, assert_refused
from commands import run as run_command
from made_up import run, runs, training_log, write

import fairseq_dsp.cli.report as report_module
from fairseq_dsp.analysis.records import REFERENCES, read_records
from fairseq_dsp.analysis.significance import paired_tests

FIGURES = [
    "attention-types",
    "bleu-against-costs",
    "bleu-against-heads",
    "kept-heads-brand-new",
    "kept-heads-dsp",
    "training-1",
]
WORDS = "the a cat dog sits runs on mat very quickly today and then it sleeps".split()


def report(results: Path, output: Path, *options: Any) -> Result:
    return run_command(report_module.__name__, results, "--output", output, *options, folder=results.parent)


def translations(seed: int, wrong: float) -> list[str]:
    """100 sentences with this share of the words wrong."""
    draw = random.Random(0)
    sentences = [draw.choices(WORDS, k=12) for _ in range(100)]
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) if draw.random() < wrong else word for word in words) for words in sentences]


def everything(folder: Path) -> Path:
    """Results with translations and logs: three methods, two seeds."""
    from sacrebleu.metrics import BLEU

    references = translations(0, 0)
    (folder / "references").write_text("\n".join(references) + "\n")
    (folder / "hypotheses").mkdir()
    (folder / "train.log").write_text(training_log("simple", updates=100, fixed_at=60))
    contents = [
        content
        for content in runs()
        if content["method"] in ("dense", "dsp", "brand new") and content["kept"] in (36, 6, 3)
    ]
    for number, content in enumerate(contents):
        wrong = {"dense": 0.05, "dsp": 0.06, "brand new": 0.5}[content["method"]]
        lines = translations(number + 1, wrong)
        content["hypotheses"] = f"hypotheses/{number}.txt"
        (folder / content["hypotheses"]).write_text("\n".join(lines) + "\n")
        content["sacrebleu"] = BLEU().corpus_score(lines, [references]).score
        if content["method"] == "dsp":
            content["log"] = "train.log"
    return write(folder / "results.jsonl", contents)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The report of everything, its results beside it with the references that a reproduction leaves, and what was printed."""
    folder = tmp_path_factory.mktemp("report")
    results = everything(folder)
    shutil.move(folder / "references", folder / REFERENCES)
    done = report(results, folder / "out")
    assert done.code == 0, done.err
    return folder / "out", done


def row_of(markdown: str, *cells: str) -> list[str]:
    """The table row that begins with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.splitlines() if "|" in line]
    (row,) = [row for row in rows if row[: len(cells)] == list(cells)]
    return row


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "action", "srcset"):
                (self.images if tag == "img" else self.links).append(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


class TestWhole:
    def test_has_its_files_and_nothing_else(self, whole):
        folder, done = whole
        assert sorted(os.listdir(folder)) == ["figures", "report.html", "report.md"]
        assert sorted(os.listdir(folder / "figures")) == [f"{name}.{s}" for name in FIGURES for s in ("pdf", "png")]
        # no temporary folder stays; nothing but the result is said
        assert not [name for name in os.listdir(folder.parent) if name.startswith(".")]
        assert done.err == ""
        assert "testing 8 runs" in done.out
        assert "reported 10 runs" in done.out

    def test_table_has_mean_and_spread_of_every_method_and_budget(self, whole):
        text = (whole[0] / "report.md").read_text()
        contents = [json.loads(line) for line in (whole[0].parent / "results.jsonl").read_text().splitlines()]
        assert row_of(text, "method", "36") == ["method", "36", "6", "3"]
        for method in ("dense", "dsp", "brand new"):
            cells = dict(zip(("36", "6", "3"), row_of(text.split("### Against")[0], method)[1:], strict=True))
            for kept, cell in cells.items():
                values = [c["bleu_tok"] for c in contents if (c["method"], str(c["kept"])) == (method, kept)]
                if not values:
                    assert cell == "–"
                    continue
                mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
                assert cell == f"{mean:.1f} ± {spread:.1f}"
        row = row_of(text.split("## All figures")[1], "dsp", "6")
        assert row[2] == "2"
        assert row[7] == "103,072"
        for content in contents:
            assert content["signatures"]["chrf"] in text
        assert all((whole[0] / path).is_file() for path in re.findall(r"\]\((.*?)\)", text))

    def test_paired_test_finds_what_is_worse(self, whole):
        text = (whole[0] / "report.md").read_text().split("### Against dense")[1].split("## ")[0]
        assert "bs:1000|seed:12345" in text
        assert row_of(text, "brand new", "6")[4] == "< 0.001; < 0.001"
        method, kept, seeds, differences, ps = row_of(text, "dsp", "6")
        assert (seeds, len(differences.split("; "))) == ("1; 2", 2)
        assert all(abs(float(each.replace("−", "-"))) < 6 for each in differences.split("; "))
        assert max(float(p) for p in ps.split("; ") if not p.startswith("<")) > 0.001

    def test_paired_test_is_against_dense_of_the_same_seed_or_the_lowest(self, tmp_path):
        """Dense is good with seed 1, bad with seed 2."""
        references = translations(0, 0)
        (tmp_path / "references").write_text("\n".join(references) + "\n")
        wrong = {("dense", 2): 0.6, ("dense", 1): 0.05, ("dsp", 1): 0.3, ("dsp", 2): 0.3, ("dsp", 3): 0.3}
        contents = [run(method, 36 if method == "dense" else 6, seed) for method, seed in wrong]
        for number, (content, share) in enumerate(zip(contents, wrong.values(), strict=True)):
            content["hypotheses"] = f"{number}.txt"
            (tmp_path / f"{number}.txt").write_text("\n".join(translations(number + 1, share)) + "\n")
        path = write(tmp_path / "results.jsonl", contents)
        found = paired_tests(read_records(str(path), pytest.fail), str(path), str(tmp_path / "references"))
        pairs = {(each.record.seed, each.dense.seed): each.score - each.dense_score for each in found.comparisons}
        assert set(pairs) == {(1, 1), (2, 2), (3, 1)}
        assert pairs[1, 1] < -20
        assert pairs[2, 2] > 20
        assert pairs[3, 1] < -20

    def test_page_holds_all_and_needs_nothing_from_outside(self, whole):
        text = (whole[0] / "report.html").read_text()
        page = Page(text)
        assert not page.links
        assert not re.search(r"https?:|//[a-z]|url\(|@import|<script", re.sub(r'base64,[^"]*"', "", text))
        assert len(page.images) == len(FIGURES)
        images = {base64.b64decode(image.removeprefix("data:image/png;base64,")) for image in page.images}
        assert images == {(whole[0] / f"figures/{name}.png").read_bytes() for name in FIGURES}
        assert page.tags.count("table") == 5
        for content in map(json.loads, (whole[0].parent / "results.jsonl").read_text().splitlines()):
            assert content["layout"] in page.text
            assert content["command"] in page.text

    def test_opens_in_a_browser(self, whole, tmp_path):
        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if browser is None:
            pytest.skip("no chromium is installed (on Debian: apt-get install chromium)")
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        options += ["--window-size=1000,2000", "--virtual-time-budget=2000"]
        address = (whole[0] / "report.html").as_uri()
        script = tmp_path / "wide.html"
        # the report in a frame of a page that asks it whether its images were decoded
        script.write_text(
            f"<!DOCTYPE html><iframe id=f src='{address}' width=900 height=900></iframe><p id=p></p><script>"
            "f.onload = () => { const images = [...f.contentDocument.images];"
            "p.textContent = 'decoded ' + images.filter(i => i.complete && i.naturalWidth > 100).length }</script>"
        )
        shown = [*options, "--allow-file-access-from-files", "--disable-web-security", "--dump-dom", script.as_uri()]
        done = subprocess.run([browser, *shown], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert f"decoded {len(FIGURES)}" in done.stdout, done.stdout[-500:]
        picture = tmp_path / "page.png"
        shown = [*options, f"--screenshot={picture}", address]
        subprocess.run([browser, *shown], capture_output=True, timeout=120, check=True)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 30_000  # an empty page has some 5,000


class TestRecovery:
    def test_of_a_broken_last_line_warns_in_report_and_command(self, tmp_path):
        results = write(tmp_path / "results.jsonl", [run("dense", 36), run()])
        with open(results, "a") as file:
            file.write(json.dumps(run(seed=2))[:100])
        done = report(results, tmp_path / "out")
        assert done.code == 0, done.err
        assert "line 3, the last, is no whole JSON" in done.err
        assert "line 3, the last, is no whole JSON" in (tmp_path / "out/report.md").read_text()
        assert "reported 2 runs" in done.out

    def test_of_a_log_that_is_not_there_and_of_other_references_warns(self, tmp_path):
        lines = translations(1, 0.1)
        (tmp_path / "h.txt").write_text("\n".join(lines) + "\n")
        contents = [run("dense", 36, hypotheses="h.txt"), run(kept=0, hypotheses="h.txt", log="none.log")]
        done = report(write(tmp_path / "r.jsonl", contents), tmp_path / "out", "--references", tmp_path / "h.txt")
        assert done.code == 0, done.err
        assert "no log of dsp can be read: No such file or directory." in done.err
        assert done.err.count("with these references; likewise of 1 more runs.") == 1
        assert not list((tmp_path / "out/figures").glob("training*"))

    def test_shows_names_as_they_are(self, tmp_path):
        results = write(tmp_path / "r.jsonl", [run("<b>a|b</b> & $x$", data="<script>alert(1)</script>")])
        assert report(results, tmp_path / "out").code == 0
        text = (tmp_path / "out/report.html").read_text()
        assert "<b>a" not in text
        assert "<script" not in text
        assert "&lt;b&gt;a|b&lt;/b&gt; &amp; $x$" in text
        assert "a\\|b" in (tmp_path / "out/report.md").read_text()


class TestRefusals:
    @pytest.fixture
    def results(self, tmp_path: Path) -> Path:
        return write(tmp_path / "r.jsonl", [run("dense", 36), run(kept=0)])

    def test_of_bad_results_leave_nothing(self, tmp_path):
        results = write(tmp_path / "r.jsonl", [run(chrf="x"), run(seed=2)])
        assert_refused(report(results, tmp_path / "out"), "line 1: `chrf` must be a number from 0 to 100, but is 'x'")
        assert_refused(report(tmp_path / "none", tmp_path / "out"), "cannot be read")
        assert os.listdir(tmp_path) == ["r.jsonl"]

    @pytest.mark.parametrize(
        "other", [{"data": "another corpus"}, {"layout": "enc:11/dec:/cross:", "kept": 2, "total": 2}]
    )
    def test_of_runs_that_do_not_belong_together(self, other, tmp_path):
        results = write(tmp_path / "r.jsonl", [run(), run() | other])
        assert_refused(report(results, tmp_path / "out"), "in lines 1 and 2")

    @pytest.mark.parametrize(("other", "what"), [({"parameters": 7}, "parameters"), ({"updates": 7}, "updates")])
    def test_of_dense_runs_that_no_mean_should_be_taken_of(self, other, what, tmp_path):
        results = write(tmp_path / "r.jsonl", [run(), run("dense", 36), run("dense", 36, 2) | other])
        assert_refused(report(results, tmp_path / "out"), what, "in lines 2 and 3")
        results = write(results, [run("dense", 36), run("dense", 36, 2, updates=None), run() | other])
        assert report(results, tmp_path / "out").code == 0

    def test_of_an_output_that_is_in_the_way(self, results, tmp_path):
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "thesis.tex").write_text("years of work")
        assert_refused(report(results, mine), "must not exist without `--force`")
        assert_refused(report(results, mine, "--force"), "replaces reports and empty folders only")
        assert_refused(report(results, tmp_path / "no/where"), "must exist")
        assert os.listdir(mine) == ["thesis.tex"]

    def test_does_not_refuse_an_empty_folder_or_a_report_with_force(self, results, tmp_path):
        (tmp_path / "out").mkdir()
        assert report(results, tmp_path / "out").code == 0
        before = (tmp_path / "out/report.md").read_text()
        write(results, [run("dense", 36)])
        assert_refused(report(results, tmp_path / "out"), "--force")
        assert (tmp_path / "out/report.md").read_text() == before
        assert report(results, tmp_path / "out", "--force").code == 0
        assert (tmp_path / "out/report.md").read_text() != before
        assert sorted(os.listdir(tmp_path)) == ["out", "r.jsonl"]

    def test_of_translations_that_cannot_be_compared(self, tmp_path):
        (tmp_path / "h.txt").write_text("one\ntwo\n")
        (tmp_path / "three").write_text("one\ntwo\nthree\n")
        contents = [run("dense", 36, hypotheses="h.txt"), run(hypotheses="none.txt")]
        results = write(tmp_path / "r.jsonl", contents)
        done = report(results, tmp_path / "out", "--references", tmp_path / "three")
        assert_refused(done, "line 1 must have the 3 lines", "line 2 must be a file", reasons=2)
        results = write(tmp_path / "r.jsonl", [run("dense", 36), run(hypotheses="h.txt")])
        assert_refused(report(results, tmp_path / "out", "--references", tmp_path / "h.txt"), "no dense run")
        done = report(results, tmp_path / "out", "--references", tmp_path / "nothing")
        assert_refused(done, "`--references` must be a file", "no dense run", reasons=2)
        assert not (tmp_path / "out").exists()


def test_compares_over_seeds_with_the_method_that_is_asked_for(tmp_path):
    lines = [run(method, 6, seed, valid_nats=3.0 + seed / 100) for method in ("dsp", "random") for seed in (1, 2)]
    results = write(tmp_path / "results.jsonl", [run("dense", 36, 1, valid_nats=2.5), *lines])
    assert report(results, tmp_path / "report", "--against", "random").code == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "### Against random, over seeds" in text
    assert text.index("Validation loss (nats a target token) by heads kept") < text.index("by heads kept", 600)
    refused = report(results, tmp_path / "other", "--against", "stratified")
    assert_refused(refused, "`--against` must be a method of the results (dense, dsp, random), but is stratified.")
