"""What each command makes of each stored file, as text: `python -m tests.golden.texts --output tests/golden/texts`.

The texts in that folder are of the last version before the rooms, the units and the Python API. Every later version must give the
same, to the byte. Made anew for a new cell only: a text that changes is a promise that breaks.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]
for _folder in ("tests", "tests/integration"):  # what tests share is imported by its bare name, as pytest does
    sys.path.append(str(ROOT / _folder))

from commands import run  # noqa: E402

GOLDEN = ROOT / "tests/golden"
CHECKPOINTS = {"trained": "trained.pt", "rewritten": "rewritten.pt", "dense": "fairseq-0.12.2/dense.pt"}
CHECKPOINTS["neurons"] = "format-2/rewritten.pt"
LAYOUTS = {
    "trained": "enc:01.11/dec:00.00/cross:10.11",
    "rewritten": "enc:00.01/dec:00.00/cross:01.00",
    "dense": "enc:10/dec:00/cross:01",
    "neurons": "enc:01.10/dec:00.00/cross:01.01/ffn-enc:00110011.00000000/ffn-dec:00000000.11110001",
}
LANGUAGES = ["--source-lang", "qar", "--target-lang", "qte"]
DATA = ["data", *LANGUAGES, "--subset", "valid", "--max-tokens", "60", "--cpu"]

OF_INTEREST = {"model", "task", "criterion", "optimizer"}  # groups of options that are shown; of others a hash

# name of a command here -> its module, and its arguments for a checkpoint; what it writes is `out` or `out.pt`
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "prune": ("prune", ["{path}", "out.pt"]),
    "prune-layout": ("prune", ["{path}", "out.pt", "--layout", "{layout}"]),
    "prune-scores": ("prune", ["{path}", "out.pt", "--scores", "scores.json", "--unpruned-heads", "4"]),
    "prune-rescale": ("prune", ["{path}", "out.pt", "--layout", "{layout}", "--rescale", "data", *LANGUAGES]),
    "score-random": ("score", ["--path", "{path}", "--scorer", "random", "--output", "out.json", "--seed", "7"]),
    "score-magnitude": ("score", ["--path", "{path}", "--scorer", "magnitude", "--output", "out.json"]),
    "score-gradient": ("score", [*DATA, "--path", "{path}", "--scorer", "gradient", "--output", "out.json"]),
    "score-joint-fisher": ("score", [*DATA, "--path", "{path}", "--scorer", "joint-fisher", "--output", "out.json"]),
    "average": ("average", ["out.pt", "{path}", "{path}"]),
    "export-dense": ("export", ["--format", "dense", "{path}", "out.pt"]),
    "export-ctranslate2": ("export", ["--format", "ctranslate2", "--data", "data", *LANGUAGES, "{path}", "out"]),
}
CELLS = [f"{command}.{checkpoint}" for command in COMMANDS for checkpoint in CHECKPOINTS if checkpoint != "neurons"]
CELLS += [
    f"{command}.neurons" for command in ("prune", "prune-layout", "average", "export-dense", "export-ctranslate2")
]
CELLS += ["report"]
for _name in ("prune", "score", "average", "export", "report"):
    importlib.import_module(f"fairseq_dsp.cli.{_name}")  # before any fork


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes what each command makes of each stored file.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the texts; it must exist")
    target = parser.parse_args().output
    for cell in CELLS:
        with tempfile.TemporaryDirectory() as name:
            (target / f"{cell}.txt").write_text(text_of(cell, Path(name).resolve()), encoding="utf-8")


def text_of(cell: str, folder: Path) -> str:
    """Exit code, what was printed and what was written, as one text. What differs between machines is left out.

    Args:
        cell: one of `CELLS`.
        folder: an empty one.
    """
    if cell == "report":
        module, arguments = "report", ["results.jsonl", "--output", "out"]
        shutil.copy(GOLDEN / "results.jsonl", folder)
    else:
        command, _, name = cell.partition(".")
        module, pattern = COMMANDS[command]
        filled = {"path": f"{name}.pt", "layout": LAYOUTS[name]}
        arguments = [word.format(**filled) for word in pattern]
        shutil.copy(GOLDEN / CHECKPOINTS[name], folder / f"{name}.pt")
        shutil.copy(GOLDEN / "scores.json", folder)
        make_data(folder / "data")
    with mock.patch.dict(os.environ, {"COLUMNS": "100"}):
        done = run(f"fairseq_dsp.cli.{module}", *_in(folder, arguments), folder=folder)
    parts = [f"exit code {done.code}", done.out, done.err]
    for output in sorted(folder.glob("out*")):
        parts += [f"{file.relative_to(folder)}:\n{_content(file)}" for file in _files(output)]
    text = "\n".join(parts).replace(f"{folder}/", "")
    if not cell.startswith("score-random"):  # rounding is a matter of the machine
        text = re.sub(r"(?<![\d.:])\d+\.\d{6,}(e-?\d+)?", lambda match: f"{float(match[0]):.4g}", text)
    text = re.sub(r'("version": )"[^"]*"', r"\1…", text)
    return re.sub(r"by at most \d\S*", "by at most …", text)


def make_data(folder: Path) -> None:
    """A data folder, in text, of the stored sentences and what `rewritten.pt` makes of them."""
    folder.mkdir()
    for side in ("qar", "qte"):
        shutil.copy(GOLDEN / f"dict.{side}.txt", folder)
    targets = [line.split("\t")[1] for line in (GOLDEN / "expected.tsv").read_text().splitlines()]
    for subset in ("train", "valid"):
        shutil.copy(GOLDEN / "source.txt", folder / f"{subset}.qar-qte.qar")
        (folder / f"{subset}.qar-qte.qte").write_text("".join(f"{line}\n" for line in targets))


def _in(folder: Path, arguments: list[str]) -> list[str]:
    """The arguments with names of files as paths in the folder."""
    files = ("data", "out", "results.jsonl", "scores.json")
    return [f"{folder}/{word}" if word in files or word.endswith((".pt", ".json")) else word for word in arguments]


def _files(output: Path) -> list[Path]:
    """The file, or those of the folder that are text and the same everywhere."""
    if output.is_file():
        return [output]
    return [path for path in sorted(output.iterdir()) if path.suffix in (".json", ".md")]


def _content(path: Path) -> str:
    if path.suffix != ".pt":
        text = path.read_text(encoding="utf-8")
        return text if not path.stem.endswith("_vocabulary") else f"{_mark(text.encode())}\n"
    state = _plain(torch.load(path, weights_only=True))
    for name in state["cfg"].keys() - OF_INTEREST:
        state["cfg"][name] = _mark(_json(state["cfg"][name]).encode())
    return _json(state)


def _plain(value: Any) -> Any:
    """A checkpoint's content as JSON; of a tensor its type, shape and the hash of its bytes."""
    if isinstance(value, torch.Tensor):
        content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {_mark(content)}"
    if isinstance(value, argparse.Namespace):
        return {"a Namespace": _plain(vars(value))}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, default=repr) + "\n"


def _mark(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    main()
