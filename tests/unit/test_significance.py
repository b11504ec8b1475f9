"""Paired tests of a results file: the same from any number of processes; one reason however many runs have it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from made_up import run, write
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from fairseq_dsp.analysis import significance
from fairseq_dsp.analysis.records import read_records
from fairseq_dsp.analysis.significance import Comparison, PairedTests, disagreements, paired_tests
from fairseq_dsp.errors import Refusal

WORDS = "the a cat dog sits runs on mat very quickly today and then it sleeps".split()
REFERENCES = [" ".join(random.Random(number).choices(WORDS, k=12)) for number in range(30)]


def text(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(WORDS) if draw.random() < 0.3 else word for word in line.split()) for line in REFERENCES
    ]


@pytest.fixture
def results(tmp_path: Path) -> str:
    """Two dense runs and five others with translations."""
    contents = [run("dense", 36, seed) for seed in (1, 2)] + [run(seed=seed) for seed in range(1, 6)]
    for number, content in enumerate(contents):
        content["hypotheses"] = f"{number}.txt"
        (tmp_path / f"{number}.txt").write_text("\n".join(text(number)) + "\n")
    (tmp_path / "references").write_text("\n".join(REFERENCES) + "\n")
    return str(write(tmp_path / "results.jsonl", contents))


def tested(results: str, **options) -> PairedTests:
    return paired_tests(
        read_records(results, pytest.fail), results, str(Path(results).parent / "references"), **options
    )


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_any_number_of_processes_gives_what_sacrebleu_gives_in_one(jobs, results, monkeypatch):
    monkeypatch.setattr(significance, "_cores", lambda: jobs)
    found = tested(results)
    expected = []
    for dense, others in ((0, (2, 4, 5, 6)), (1, (3,))):
        systems = [(str(number), text(number)) for number in (dense, *others)]
        signatures, outcome = PairedTest(systems, {"BLEU": BLEU()}, [REFERENCES], test_type="bs")()
        first, *rest = outcome["BLEU"]
        expected += [(each.score, first.score, each.p_value) for each in rest]
    assert [(each.score, each.dense_score, each.p_value) for each in found.comparisons] == expected
    assert [(each.record.seed, each.dense.seed) for each in found.comparisons] == [
        (1, 1),
        (3, 1),
        (4, 1),
        (5, 1),
        (2, 2),
    ]
    assert found.signature == str(signatures["BLEU"])


def test_says_how_far_it_is(results, monkeypatch):
    monkeypatch.setattr(significance, "_cores", lambda: 2)
    seen = []

    def watch(things, total):
        for number, thing in enumerate(things, 1):
            yield thing
            seen.append((number, total))

    tested(results, watch=watch)
    assert seen == [(number, 5) for number in range(1, 6)]


def refused(results: str, references: str = "references") -> list[str]:
    with pytest.raises(Refusal) as refusal:
        paired_tests(read_records(results, pytest.fail), results, str(Path(results).parent / references))
    return list(refusal.value.reasons)


def test_references_without_translations_are_one_reason(results, tmp_path):
    for path in tmp_path.glob("?.txt"):
        path.unlink()
    (reason,) = refused(results)
    assert reason == (
        f"`hypotheses` of line 1 must be a file, but {tmp_path}/0.txt cannot be read: No such file or directory; "
        "likewise of 6 more lines."
    )


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"one\ntwo\n", "must have the 30 lines of `--references`"),
        (b"\xff\n", "must be UTF-8"),
        (b"", "must have lines"),
    ],
)
def test_another_fault_that_all_translations_have_is_one_reason(content, rule, results, tmp_path):
    for path in tmp_path.glob("?.txt"):
        path.write_bytes(content)
    (reason,) = refused(results)
    assert rule in reason
    assert reason.endswith("; likewise of 6 more lines.")


def test_different_faults_are_as_many_reasons(results, tmp_path):
    (tmp_path / "0.txt").unlink()
    (tmp_path / "3.txt").write_text("one\n")
    (tmp_path / "5.txt").write_bytes(b"\xff\n")
    reasons = refused(results)
    assert [reason.split(" must")[0] for reason in reasons] == [f"`hypotheses` of line {line}" for line in (1, 4, 6)]
    assert not any("likewise" in reason for reason in reasons)
    assert refused(results, "nothing")[0].startswith("`--references` must be a file")


def test_scores_that_all_differ_are_one_sentence(results):
    records = read_records(results, pytest.fail)
    tests = PairedTests(tuple(Comparison(each, records[0], 50.0, 60.0, 0.5) for each in records[2:]), "")
    (sentence,) = disagreements(tests)
    assert sentence.endswith("50.00 with these references; likewise of 5 more runs.")


def test_runs_that_are_all_there_twice_are_one_warning(results):
    lines = Path(results).read_text()
    Path(results).write_text(lines + lines)
    said: list[str] = []
    assert len(read_records(results, said.append)) == 7
    assert said == [
        f"{results}: lines 1 and 8 are both dense, 36 heads, seed 1; line 8 counts; likewise of 6 more runs."
    ]
