"""What a run rests on: the commands of those that it needs, and the files of theirs that it reads."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/translation"))

from reproduction.steps import Run, Step, files_from, recipe_of

BEST, SCORES = "runs/dense/checkpoints/checkpoint_best.pt", "runs/scores/scores.json"
TRAIN, TRANSLATE = Step("train", ("fairseq-train", "DATA-BIN")), Step("generate", ("fairseq-generate", "--path", BEST))
SCORE = Step("score", ("fairseq-dsp-score", "--path", BEST, "--output", SCORES), SCORES)
PRUNE = Step("prune", ("fairseq-dsp-prune", BEST, "runs/cut/small.pt", "--scores", SCORES), "runs/cut/small.pt")
AGAIN = Step("generate", ("fairseq-generate", "--path", "runs/cut/small.pt"))
DENSE = Run("dense", "dense", 12, 1, (TRAIN, TRANSLATE), deployed=BEST)
SCORED = Run("scores", "gradient", None, 1, (SCORE,), ("dense",))
CUT = Run("cut", "gradient", 4, 1, (PRUNE, AGAIN), ("dense", "scores"), "runs/cut/small.pt")
ALL = [DENSE, SCORED, CUT]


def test_a_recipe_is_every_command_once_in_order_and_no_translation_of_another_run():
    assert recipe_of(DENSE, ALL) == [TRAIN, TRANSLATE]
    assert recipe_of(SCORED, ALL) == [TRAIN, SCORE]
    assert recipe_of(CUT, ALL) == [TRAIN, SCORE, PRUNE, AGAIN]


def test_the_files_that_a_run_reads_of_another_are_those_its_commands_name():
    assert files_from(CUT, "dense") == [BEST]
    assert files_from(CUT, "scores") == [SCORES]
    assert files_from(DENSE, "scores") == []
