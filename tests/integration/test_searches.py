"""Every search of fairseq's finds the same with a rewritten checkpoint as with a masked one.

The masked twins: the checkpoint as it was trained, and the rewritten one folded back into a stock transformer, whose missing
heads are zeros and whose attention and search are stock fairseq's.
"""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import pytest
from commands import INTERACTIVE, PLUGIN, PREPROCESS, QUIET, TRAIN, Result, generate, run
from models import not_on_0_12_2

EXPORT, SCORE = "fairseq_dsp.cli.export", "fairseq_cli.score"
for _name in (EXPORT, SCORE):
    importlib.import_module(_name)  # before any fork

SEARCHES = {
    "beam": ["--beam", 5, "--lenpen", 0.6],
    "n best": ["--beam", 4, "--nbest", 4],
    "diverse beam": ["--beam", 4, "--nbest", 4, "--diverse-beam-groups", 2, "--batch-size", 37],
    "diverse siblings": ["--beam", 4, "--nbest", 4, "--diversity-rate", 0.5],
    "sampling": ["--beam", 2, "--nbest", 2, "--sampling"],
    "sampling of the top k": ["--beam", 2, "--nbest", 2, "--sampling", "--sampling-topk", 3],
    "sampling of the top p": ["--beam", 2, "--nbest", 2, "--sampling", "--sampling-topp", 0.7, "--temperature", 1.5],
    "prefix": ["--prefix-size", 2],
    "source's length": ["--match-source-len"],
    "other limits": ["--min-len", 4, "--no-repeat-ngram-size", 2, "--unnormalized", "--unkpen", 1],
    "reference's score": ["--score-reference"],
}
SEED = ["--seed", 7]  # fairseq-generate draws from no fixed seed without it


@pytest.fixture(scope="module")
def folded(pruned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pruned` as a stock transformer with all heads, most of them zero."""
    target = tmp_path_factory.mktemp("folded") / "native.pt"
    done = run(EXPORT, "--format", "dense", pruned, target, folder=target.parent)
    assert done.code == 0, done.err
    return target


def hypotheses(done: Result) -> list[tuple[str, str]]:
    """All of them, as (sentence's number, text), in the order of the file."""
    return re.findall(r"^H-(\d+)\t[^\t]*\t(.*)$", done.out, re.MULTILINE)


def assert_same(done: Result, twin: Result) -> None:
    assert hypotheses(done) == hypotheses(twin)
    assert done.scores() == pytest.approx(twin.scores(), abs=1e-3)  # printed with four digits


@pytest.fixture(scope="module")
def found(pruned: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What every search finds with the rewritten checkpoint."""
    folder = tmp_path_factory.mktemp("found")
    return {name: generate(data, pruned, *SEED, *options, folder=folder) for name, options in SEARCHES.items()}


@pytest.mark.parametrize(
    ("search", "twin"),
    [
        *((search, "folded") for search in SEARCHES),
        ("n best", "trained"),  # which has its heads masked, and the whole of its four beams compared
        *(pytest.param(search, "trained", marks=pytest.mark.slow) for search in SEARCHES if search != "n best"),
    ],
)
def test_a_search_finds_the_same_in_rewritten_and_masked_checkpoints(
    search: str, twin: str, found: dict[str, Result], request: pytest.FixtureRequest, data: Path, tmp_path: Path
):
    if twin == "trained" and "--sampling" in SEARCHES[search]:
        pytest.skip(
            "fairseq draws on from where building the model has left off, and importance variables are drawn too"
        )
    options = SEARCHES[search]
    wanted = options[options.index("--nbest") + 1] if "--nbest" in options else 1
    assert len(hypotheses(found[search])) == 37 * wanted
    path = request.getfixturevalue(twin)
    assert_same(found[search], generate(data, path, *SEED, *options, folder=tmp_path))


def test_searches_are_different_searches(found: dict[str, Result]):
    """Or the comparisons above would compare one search with itself."""
    four = [hypotheses(found[name]) for name in ("n best", "diverse beam", "diverse siblings")]
    assert four[0] != four[1] != four[2] != four[0]
    drawn = [hypotheses(found[name]) for name in SEARCHES if name.startswith("sampling")]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    references = dict(re.findall(r"^T-(\d+)\t(.*)$", found["prefix"].out, re.MULTILINE))
    for number, text in hypotheses(found["prefix"]):
        assert text.split()[:2] == references[number].split()[:2]
    for number, text in hypotheses(found["reference's score"]):
        assert text == references[number]
    sources = dict(re.findall(r"^S-(\d+)\t(.*)$", found["source's length"].out, re.MULTILINE))
    for number, text in hypotheses(found["source's length"]):
        assert len(text.split()) <= len(sources[number].split()) + 1


@not_on_0_12_2
def test_diverse_beams_in_several_batches_fail_as_in_stock_fairseq(pruned, folded, data: Path, tmp_path: Path):
    """fairseq's search takes a sentence's number in the set for its row in the batch."""
    for path in (pruned, folded):
        done = generate(data, path, "--beam", 4, "--diverse-beam-groups", 2, folder=tmp_path, ok=False)
        assert done.code == 1
        assert "IndexError" in done.err
        assert "search.py" in done.err


@pytest.mark.parametrize("kind", ["ordered", "unordered"])
def test_constrained_search_obeys_and_finds_the_same(
    kind: str, pruned: Path, trained: Path, folded: Path, data: Path, tmp_path: Path
):
    constraints = [("b5", "b1"), ("b7", "b0"), ("b2 b3", "b9")]
    sentences = ["a3 a1 a7 a2", "a4 a6", "a0 a11 a5"]
    text = "".join(f"{line}\t{one}\t{two}\n" for line, (one, two) in zip(sentences, constraints, strict=True))
    results = []
    for path in (pruned, trained, folded):
        arguments = [data, *PLUGIN, "--path", path, "--beam", 6, "--max-len-b", 15, "--cpu", "--constraints", kind]
        results.append(run(INTERACTIVE, *arguments, folder=tmp_path, stdin=text))
        assert results[-1].code == 0, results[-1].err
    done, *twins = results
    assert len(hypotheses(done)) == 3
    for number, translation in hypotheses(done):
        places = [f" {translation} ".find(f" {phrase} ") for phrase in constraints[int(number)]]
        assert min(places) >= 0
        assert kind == "unordered" or places == sorted(places)
    for twin in twins:
        assert_same(done, twin)


def test_a_language_model_joins_the_search_of_both(
    corpus: Path, pruned: Path, trained: Path, data: Path, tmp_path: Path
):
    words = ["--only-source", "--srcdict", data / "dict.bb.txt", "--destdir", tmp_path / "bin", "--workers", 1]
    for subset in ("train", "valid"):
        (tmp_path / subset).write_text((corpus / f"{subset}.bb").read_text())
        words += [f"--{subset}pref", tmp_path / subset]
    assert run(PREPROCESS, *words, folder=tmp_path).code == 0
    arguments = [tmp_path / "bin", "--task", "language_modeling", "--arch", "transformer_lm", "--decoder-layers", 1]
    arguments += ["--decoder-embed-dim", 16, "--decoder-ffn-embed-dim", 16, "--decoder-attention-heads", 2, "--cpu"]
    arguments += ["--optimizer", "adam", "--lr", 1e-2, "--batch-size", 25, "--tokens-per-sample", 12, *QUIET]
    arguments += ["--sample-break-mode", "none", "--max-update", 20, "--num-workers", 0, "--save-dir", tmp_path / "lm"]
    done = run(TRAIN, *arguments, folder=tmp_path)
    assert done.code == 0, done.out[-1000:] + done.err[-2000:]
    both = tmp_path / "both"  # fairseq looks for the language model's dictionary beside the translations
    shutil.copytree(data, both)
    shutil.copy(data / "dict.bb.txt", both / "dict.txt")
    options = ["--lm-path", tmp_path / "lm/checkpoint_last.pt", "--lm-weight", 0.8]
    done, twin = (generate(both, path, *options, folder=tmp_path) for path in (pruned, trained))
    assert len(hypotheses(done)) == 37
    assert_same(done, twin)
    assert hypotheses(done) != hypotheses(generate(data, pruned, folder=tmp_path))


def test_fairseq_score_agrees_with_generate(pruned: Path, data: Path, tmp_path: Path):
    done = generate(data, pruned, folder=tmp_path)
    for name, letter in (("sys", "H"), ("ref", "T")):
        lines = re.findall(rf"^{letter}-(\d+)\t(.*)$", done.out, re.MULTILINE)
        texts = [text.split("\t")[-1] for _, text in sorted(lines, key=lambda line: int(line[0]))]
        (tmp_path / name).write_text("".join(f"{text}\n" for text in texts))
    scored = run(SCORE, "--sys", tmp_path / "sys", "--ref", tmp_path / "ref", folder=tmp_path)
    assert scored.code == 0, scored.err
    precisions = [re.findall(r"BLEU4 = ([^(]*) \(", each.out)[-1] for each in (done, scored)]
    assert precisions[0] == precisions[1]
    assert not precisions[0].startswith("0.00, 0.0/")
