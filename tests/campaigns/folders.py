"""Trains again and again in one folder, each time for something else, and looks what the folder holds then.

    python -m tests.campaigns.folders --count 200 --seed 1

Every training draws a method, a budget, a schedule, how long it lasts and how it starts: as it comes, by `--restore-file`,
`--finetune-from-model` or the `--reset-…` options, with or without the optimizer's state in its checkpoints. One that ends well must
leave a checkpoint that was trained for what was asked and that deploys as many heads. Any other must end in a sentence, exit code 2,
and leave the checkpoint as it was. After four trainings a folder is cleared.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands import HEADS, QUIET, train

from fairseq_dsp.config import PruningConfig, get_option
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.methods import METHODS
from fairseq_dsp.plugin.building import load_model
from tests.campaigns.material import Material, Tally, make, parser

_IN_A_FOLDER = 4
_VALUES: dict[str, list[Any]] = {
    "cooldown_updates": [2, 5, 40],
    "keep_sampling": [True],
    "initial_temperature": [0.5],
    "final_temperature": [1e-3],
    "relaxation": ["projection"],
    "l0_penalty": [0.1],
}


@dataclass(frozen=True)
class Wish:
    """What a training is to do.

    Args:
        options: of head pruning, by name; what is not there is not given.
        way: how it starts.
        words: all else on its command line.
    """

    options: dict[str, Any]
    way: str
    words: tuple[Any, ...]

    @property
    def command_line(self) -> list[Any]:
        """Its arguments."""
        ours = [
            f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
            for name, value in self.options.items()
        ]
        return [*ours, *self.words]

    def __str__(self) -> str:
        return " ".join(str(word) for word in self.command_line)


def draw_wish(draw: random.Random, made: Material, folder: Path) -> Wish:
    """Any wish that is fit by itself."""
    method = METHODS[draw.choice(list(METHODS))]
    options: dict[str, Any] = {"head_selection": method.name, "unpruned_heads": draw.choice([0, 3, 5, HEADS])}
    if method.finds_number and draw.random() < 0.4:
        options["unpruned_heads"] = "auto"
    for name in method.options:
        if name in _VALUES and draw.random() < 0.4:
            options[name] = draw.choice(_VALUES[name])
    words: list[Any] = ["--max-update", draw.choice([3, 6]), *draw.choice([[], [], ["--no-save-optimizer-state"]])]
    way = draw.choice([*["as it comes"] * 5, "reset", "reset but the data", "restore", "finetune"])
    if way.startswith("reset"):
        words += ["--reset-optimizer", *([] if "but" in way else ["--reset-dataloader"])]
        words += ["--max-epoch", draw.choice([1, 2, 3])]
    elif way == "restore":
        words += ["--restore-file", draw.choice([folder / "checkpoint_last.pt", made.trained, made.dense])]
    elif way == "finetune":
        words += ["--finetune-from-model", draw.choice([made.trained, made.dense])]
    return Wish(options, way, tuple(words))


def wrong(wish: Wish, code: int, said: str, path: Path, before: bytes | None) -> list[str]:
    """What is wrong with how a training ended.

    Args:
        code: its exit code.
        said: all that it printed.
        path: the folder's checkpoint.
        before: the checkpoint's content before; None where there was none.
    """
    now = path.read_bytes() if path.exists() else None
    if code == 2 and "fairseq_dsp: error: " in said and "Traceback" not in said:
        return [] if now == before else [f"{wish}: refused, but the checkpoint is another"]
    if code:
        return [f"{wish}: ended with code {code}: {said[-600:]}"]
    if now is None:
        return [f"{wish}: ended well without a checkpoint"]
    state = read_checkpoint(str(path))
    cfg, failures = state["cfg"].model, []
    derived = (PruningConfig.from_model_cfg(cfg).derived or "").split(",")  # by a recipe, where nothing was asked
    for name in METHODS[wish.options["head_selection"]].options:
        if name in derived and wish.options.get(name) is None:
            continue
        asked = get_option(wish.options, name, getattr(PruningConfig, name))
        if (found := getattr(PruningConfig.from_model_cfg(cfg), name)) != asked:
            failures.append(f"{wish}: left a checkpoint that was trained for {name} {found}")
    if (found := PruningConfig.from_model_cfg(cfg).head_selection or "dsp") != wish.options["head_selection"]:
        failures.append(f"{wish}: left a checkpoint that was trained for {found}")
    kept, asked = load_model(state).deployed_layout().count, wish.options["unpruned_heads"]
    if asked not in ("auto", kept):
        failures.append(f"{wish}: left a checkpoint of {kept} heads")
    return failures


def use_again(made: Material, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """So many trainings."""
    save = folder / "used"
    wish = draw_wish(draw, made, save)
    for number in range(count):
        if number % _IN_A_FOLDER == 0:
            shutil.rmtree(save, ignore_errors=True)
        earlier, wish, path = wish, draw_wish(draw, made, save), save / "checkpoint_last.pt"
        same = draw.random()
        if number % _IN_A_FOLDER and same < 0.6:  # for the same as before, or for another number of heads alone
            other = {} if same < 0.3 else {"unpruned_heads": draw.choice([1, 2, 4])}
            wish = replace(wish, options={**earlier.options, **other})
        before = path.read_bytes() if path.exists() else None
        done = train(made.data, save, *QUIET, *wish.command_line, ok=False)
        tally.count(wish.way, f"{'refused' if done.code == 2 else 'done'}{'' if before else ' in a new folder'}")
        tally.step(wrong(wish, done.code, done.out + done.err, path, before))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; 1 where something was not as it should be."""
    args = parser(str(__doc__), count=(200, "trainings")).parse_args(arguments)
    tally = Tally(args.count)
    with tempfile.TemporaryDirectory() as name:
        use_again(make(Path(name)), Path(name), args.count, random.Random(args.seed), tally)
    return tally.finish()


if __name__ == "__main__":
    sys.exit(main())
