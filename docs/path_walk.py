"""Counts how far the path of a checkpoint walks through the package: the figures of docs/overview.md.

    python docs/path_walk.py tests/golden/trained.pt [--root CHECKOUT] [--list]

`fairseq-dsp-prune` rewrites the checkpoint, and every function that is entered for the first time is noted. A stay is a run of such
functions within one module, or within one room. A climb is a step to a module that imports, over others too, the module that it comes
from. `--root` counts in another checkout, an older one for example.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--list", action="store_true", help="print the functions too")
    args = parser.parse_args()
    sys.path.insert(0, str(args.root.resolve()))
    package = args.root.resolve() / "fairseq_dsp"
    command = importlib.import_module("fairseq_dsp.cli.prune").main
    with tempfile.TemporaryDirectory() as folder:
        entered = first_entries(package, lambda: command([args.checkpoint, f"{folder}/small.pt"]))
    if args.list:
        print(*(f"{module}: {function}" for module, function in entered), sep="\n")
    modules = stays(module for module, _ in entered)
    rooms = stays(module.split("/")[0] for module, _ in entered)
    above = importers(package)
    climbs = sum(b in above[a] and a not in above[b] for a, b in itertools.pairwise(modules))
    print(f"{len(entered)} functions, {len(modules)} stays in {len(set(modules))} modules, {climbs} climbs")
    print(f"{len(rooms)} stays in {len(set(rooms))} rooms")


def first_entries(package: Path, work: Callable[[], object]) -> list[tuple[str, str]]:
    """Module and name of every function of a package that the work enters, in the order of their first calls."""
    entered: dict[object, tuple[str, str]] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(f"{package}/") and not code.co_name.startswith("<"):
            entered.setdefault(code, (name_of(Path(code.co_filename), package), code.co_qualname))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return list(entered.values())


def stays(names: Iterable[str]) -> list[str]:
    """Names, each once for a run of its like."""
    return [name for name, _ in itertools.groupby(names)]


def importers(package: Path) -> dict[str, set[str]]:
    """For every module those that import it, over others too."""
    files = {name_of(path, package): path for path in package.rglob("*.py")}
    direct: dict[str, set[str]] = {name: set() for name in files}
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package.name:
                inside = (node.module or "").split(".")[1:]
                for name in [inside, *([*inside, alias.name] for alias in node.names)]:
                    direct.get("/".join(name), set()).add(module)
    found = {}
    for module in files:
        found[module], waiting = set[str](), [module]
        while waiting:
            new = direct[waiting.pop()] - found[module]
            found[module] |= new
            waiting += new
    return found


def name_of(path: Path, package: Path) -> str:
    return path.relative_to(package).with_suffix("").as_posix()


if __name__ == "__main__":
    main()
