"""The demo as a test: on the sample corpus, the learned heads must be worth more than random ones."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "translation"
GOLDEN = Path(__file__).parents[1] / "golden"
CUTS = ["cut, heads", "cut, heads and FFN"]


def names_of_the_demo() -> dict[str, Any]:
    sys.path.insert(0, str(EXAMPLE))  # as running the script does
    try:
        return runpy.run_path(str(EXAMPLE / "demo.py"))
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def bleu_by_seed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    """BLEU of dense, budgeted and randomly pruned models over three seeds, with K = H/6."""
    demo, scores = names_of_the_demo(), {}
    for seed in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"seed{seed}")
        scores[seed] = demo["Demo"](
            demo["get_parser"]().parse_args(["--seed", str(seed), "--seeds", "1", "--output", str(folder)])
        ).run()
    return scores


def test_nothing_of_an_earlier_run_is_removed_where_the_request_cannot_be_run(tmp_path: Path) -> None:
    output, text = tmp_path / "out", tmp_path / "typo"
    (output / ".fairseq_dsp_demo").mkdir(parents=True)
    (output / "pruned.pt").write_text("of an earlier run")
    arguments = ["--output", output, "--text", text, "--unpruned-heads", 99, "--epochs", 0, "--seeds", -3]
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "demo.py"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    sentences = done.stderr.strip().splitlines()
    wanted = (
        "`--text`",
        "`--unpruned-heads` must be between 0 and 36",
        "`--epochs` must be at least 1, but is 0.",
        "`--seeds` must be at least 1, but is -3.",
    )
    assert len(sentences) == len(wanted)
    assert all(words in sentence for words, sentence in zip(wanted, sentences, strict=True))
    assert (output / "pruned.pt").read_text() == "of an earlier run"
    inside = subprocess.run(
        [sys.executable, str(EXAMPLE / "demo.py"), "--output", str(output), "--text", str(output / "text")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "`--text` must not lie in `--output`" in inside.stderr


@pytest.mark.parametrize(
    ("options", "seeds"), [(["--seeds", "3"], [5, 6, 7]), (["--seeds", "1"], [5]), ([], [5, 6, 7])]
)
def test_a_figure_of_one_seed_is_shown_with_those_of_others(
    options: list[str], seeds: list[int], tmp_path: Path, capsys
) -> None:
    demo, trainings = names_of_the_demo(), []

    class Untrained(demo["Demo"]):  # type: ignore[misc]
        def _train(self, name: str, options: list[str], seed: int) -> Path:
            trainings.append((options[1], seed))
            return GOLDEN / "trained.pt"

        def _command(self, name: str, *arguments: object, log: Path | None = None) -> str:
            if name == "fairseq-dsp-prune":
                shutil.copy(GOLDEN / "rewritten.pt", str(arguments[1]))
            return ""

        def _compare(self, rows: list[tuple[str, Path]]) -> tuple[Any, dict[str, float]]:
            return "the table", {name: 90.0 + number for number, (name, *_) in enumerate(rows)}

    arguments = ["--seed", "5", "--output", str(tmp_path / "out"), "--unpruned-heads", "5", *options]
    bleu = Untrained(demo["get_parser"]().parse_args(arguments)).run()
    assert trainings == [("translation", 5), *(("translation_dsp", seed) for seed in seeds)]
    rows = ["budget, rewritten", *(f"budget, rewritten, seed {seed}" for seed in seeds[1:])]
    assert list(bleu) == ["dense", "budget, masked", *rows, "dense, random heads", *CUTS]
    said = capsys.readouterr().out
    if len(seeds) > 1:
        assert "BLEU with 5 heads over seeds 5, 6, 7: 92.0 to 94.0" in said
    else:
        assert "over seeds" not in said


def test_the_user_s_own_text_is_trained_on_once(tmp_path: Path) -> None:
    demo = names_of_the_demo()
    options = demo["get_parser"]().parse_args(["--text", str(tmp_path), "--seed", "2"])
    assert list(demo["Demo"](options).seeds) == [2]


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
def test_a_cut_of_heads_and_neurons_is_worth_more_than_one_of_heads_alone(
    bleu_by_seed: dict[int, dict[str, float]],
) -> None:
    for scores in bleu_by_seed.values():
        assert scores[CUTS[1]] > scores[CUTS[0]], bleu_by_seed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rewriting_does_not_change_the_score(bleu_by_seed: dict[int, dict[str, float]]) -> None:
    for scores in bleu_by_seed.values():
        assert scores["budget, rewritten"] == pytest.approx(scores["budget, masked"], abs=0.05)
