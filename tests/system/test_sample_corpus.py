"""The demo as a test: on the sample corpus, the learned heads must be worth more than random ones."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "translation"


@pytest.fixture(scope="module")
def bleu_by_seed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    """BLEU of dense, budgeted and randomly pruned models over three seeds, with K = H/6."""
    sys.path.insert(0, str(EXAMPLE))  # as running the script does
    try:
        demo = runpy.run_path(str(EXAMPLE / "demo.py"))
    finally:
        sys.path.remove(str(EXAMPLE))
    scores = {}
    for seed in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"seed{seed}")
        scores[seed] = demo["Demo"](
            demo["get_parser"]().parse_args(["--seed", str(seed), "--output", str(folder)])
        ).run()
    return scores


def test_nothing_of_an_earlier_run_is_removed_where_the_request_cannot_be_run(tmp_path: Path) -> None:
    output, text = tmp_path / "out", tmp_path / "typo"
    (output / ".fairseq_dsp_demo").mkdir(parents=True)
    (output / "pruned.pt").write_text("of an earlier run")
    arguments = ["--output", output, "--text", text, "--unpruned-heads", 99, "--epochs", 0]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "demo.py"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    sentences = done.stderr.strip().splitlines()
    wanted = ("`--text`", "`--unpruned-heads` must be between 0 and 36", "`--epochs` must be at least 1, but is 0.")
    assert len(sentences) == len(wanted)
    assert all(words in sentence for words, sentence in zip(wanted, sentences, strict=True))
    assert (output / "pruned.pt").read_text() == "of an earlier run"
    inside = subprocess.run(
        [sys.executable, str(EXAMPLE / "demo.py"), "--output", str(output), "--text", str(output / "text")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "`--text` must not lie in `--output`" in inside.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dense_models_learn_the_language(bleu_by_seed: dict[int, dict[str, float]]) -> None:
    assert all(scores["dense"] >= 60 for scores in bleu_by_seed.values()), bleu_by_seed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_learned_heads_lose_less_than_half_of_what_random_heads_lose(bleu_by_seed: dict[int, dict[str, float]]) -> None:
    for scores in bleu_by_seed.values():
        random_loss = scores["dense"] - scores["dense, random heads"]
        assert random_loss >= 10, bleu_by_seed
        assert scores["dense"] - scores["budget, rewritten"] < random_loss / 2, bleu_by_seed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rewriting_does_not_change_the_score(bleu_by_seed: dict[int, dict[str, float]]) -> None:
    for scores in bleu_by_seed.values():
        assert scores["budget, rewritten"] == pytest.approx(scores["budget, masked"], abs=0.05)
