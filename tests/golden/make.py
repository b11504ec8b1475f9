"""Makes the stored checkpoints anew: `python -m tests.golden.make --output DIR`. Needed for a new format version only.

A small model is trained on the sample corpus with a budget, rewritten, and asked to translate. What later versions must
still translate to the same text is the whole of this folder; README.md there says what each file is.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("tests", "tests/integration"):  # what tests share is imported by its bare name, as pytest does
    sys.path.append(str(ROOT / _folder))

from commands import INTERACTIVE, PLUGIN, PREPROCESS, QUIET, Running, budget, load, prune, run, train  # noqa: E402

GOLDEN = ROOT / "tests/golden"
SIDES = ("qar", "qte")
SENTENCES = 12
KEPT = 5
# of heads and neurons: some of them, all of them and none of them in a layer
LAYOUT = "enc:01.10/dec:01.00/cross:01.01/ffn-enc:11111111.00000000/ffn-dec:01111111.11111101"
SEARCH = ["--source-lang", SIDES[0], "--target-lang", SIDES[1], "--beam", "4", "--cpu", "--max-len-b", "20"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the stored checkpoints and what they translate to.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the files; it must exist")
    parser.add_argument("--neurons", action="store_true", help="only what is of format 2, of the stored `trained.pt`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        (cut_neurons if args.neurons else make)(Path(name), args.output.resolve())


def make(folder: Path, target: Path) -> None:
    """Trains in `folder`, writes to `target`."""
    script = ROOT / "examples/translation/sample_corpus.py"
    corpus = folder / "text"
    writing = ["--output", corpus, "--pairs", 2000]
    done = Running(lambda: runpy.run_path(str(script), run_name="__main__"), writing, folder).wait()
    assert done.code == 0, done.err
    arguments: list[Any] = ["-s", SIDES[0], "-t", SIDES[1], "--destdir", folder / "bin", "--workers", 1]
    for subset in ("train", "valid", "test"):
        arguments += [f"--{subset}pref", corpus / subset]
    done = run(PREPROCESS, *arguments, folder=folder)
    assert done.code == 0, done.err
    schedule = ["--max-update", 700, "--batch-size", 32, "--warmup-updates", 50, "--no-save-optimizer-state"]
    train(folder / "bin", folder / "save", *QUIET, *budget(KEPT, cooldown=200), *schedule)
    state = without_places(load(folder / "save/checkpoint_last.pt"), (str(folder), str(ROOT)))
    torch.save(state, target / "trained.pt")
    prune(target / "trained.pt", target / "rewritten.pt", "--force")
    for side in SIDES:
        (target / f"dict.{side}.txt").write_text((folder / f"bin/dict.{side}.txt").read_text())
    lines = (corpus / f"test.{SIDES[0]}").read_text().splitlines(keepends=True)
    (target / "source.txt").write_text("".join(lines[:SENTENCES]))
    write_expected(target / "rewritten.pt", target, folder)


def cut_neurons(folder: Path, target: Path) -> None:
    """Cuts heads and neurons off the stored model, and writes the file and what it translates to `target`."""
    prune(GOLDEN / "trained.pt", target / "rewritten.pt", "--layout", LAYOUT, "--force")
    write_expected(target / "rewritten.pt", target, folder)


def write_expected(checkpoint: Path, target: Path, folder: Path) -> None:
    """What a checkpoint makes of the stored sentences."""
    done = translate(target if (target / "source.txt").exists() else GOLDEN, checkpoint, folder)
    rows = [f"{done.scores()[number]:.4f}\t{text}\n" for number, text in sorted(done.hypotheses().items())]
    (target / "expected.tsv").write_text("".join(rows))


def translate(golden: Path, checkpoint: Path, folder: Path) -> Any:
    """What plain fairseq-interactive makes of the stored sentences; `commands.Result`."""
    source = (golden / "source.txt").read_text()
    done = run(INTERACTIVE, golden, *PLUGIN, "--path", checkpoint, *SEARCH, folder=folder, stdin=source)
    assert done.code == 0, done.err
    return done


def without_places(value: Any, places: tuple[str, ...]) -> Any:
    """The state with every text in which a folder of this machine occurs replaced by an empty one."""
    if isinstance(value, str):
        return "" if any(place in value for place in places) else value
    if isinstance(value, argparse.Namespace):
        return argparse.Namespace(**without_places(vars(value), places))
    if isinstance(value, dict):
        return {key: without_places(item, places) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_places(item, places) for item in value)
    return value


if __name__ == "__main__":
    main()
