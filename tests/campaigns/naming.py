"""Names outputs in every odd way, and lets several writers write one output.

    python -m tests.campaigns.naming --count 500 --writers 1200 --seed 1

`--count` commands write to a name that was drawn, in a folder with files and folders of a user, links, pipes, devices and an older
output. What must come of it is known: a refusal after which everything is as it was, or the output of an undisturbed run where the
name leads, with the mode of what it replaces, and everything else as it was.

`--writers` times two to four processes write one file or folder at the same moment, some over an older one, some beside a stranger
who makes something of that name. With `--force` all of them end well, but where the stranger's is no output; without, one of them
or the stranger has the name, and the others are told. What lies there in the end is whole, and nothing lies beside it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from commands import Running

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.output import checked_file, checked_folder
from tests.campaigns.kills import Target, fingerprint, targets
from tests.campaigns.material import Material, Tally, make, parser

# What an output may be called, and where that leads from the working folder: None where nothing may be written.
_NOWHERE = (
    "",
    ".",
    "./",
    "..",
    "/",
    "//",
    "HERE",
    "/HERE",
    "../here",
    "gone/..",
    "folder/..",
    "none/new",
    "file/new",
    "x" * 256,
)
NAMES: dict[str, str | None] = dict.fromkeys((*_NOWHERE, "to nothing", "to itself", "to here", "to here/"))
NAMES |= dict.fromkeys(("new", "./new", "HERE/new", "/HERE/new", "gone/../new", "to here/new"), "new")
NAMES |= {name: name for name in ("file", "folder", "empty", "old", "pipe", "device")}
NAMES |= {f"to {name}": name for name in ("file", "folder", "empty", "old", "device")}
NAMES |= {f"{name}/": name for name in ("new", "file", "folder", "empty", "old")}
# long ones, and what a shell, a terminal, rich or glob would act upon
_STRANGE = (
    "x" * 200,
    "x" * 255,
    "ü" * 127,
    " ",
    "-",
    "a\nb",
    "[b]",
    "[",
    ":smile:",
    "*",
    "?",
    "$(touch no)",
    "\udcff",
    "\x1b[31m",
)
NAMES |= {name: name for name in _STRANGE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; 1 where something was not as it should be."""
    numbers = {"count": (500, "commands"), "writers": (1200, "outputs with several writers")}
    args = parser(str(__doc__), **numbers).parse_args(arguments)
    draw = random.Random(args.seed)
    tally = Tally(args.count + args.writers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        name_outputs(make(folder), folder, args.count, draw, tally)
        write_together(folder, args.writers, draw, tally)
    return tally.finish()


def name_outputs(made: Material, folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """So many commands, each with a name that was drawn, the commands in turn."""
    found = [(target, *_outputs(target, folder, number)) for number, target in enumerate(targets(made)[:count])]
    for done in range(count):
        target, old, mark = found[done % len(found)]
        name, force = draw.choice(list(NAMES)), draw.random() < 0.5
        failures = name_output(target, old, mark, folder, name, force, tally)
        tally.step([f"{target.name} to {name!r}{' with --force' if force else ''}: {failure}" for failure in failures])


def _outputs(target: Target, folder: Path, number: int) -> tuple[Path, str]:
    """An older output of the command, and what an undisturbed run writes."""
    old, new = (folder / f"{which}{number}" for which in ("older", "newer"))
    for path, arguments in ((old, target.older(old)), (new, target.arguments(new))):
        done = Running(target.module, arguments, folder).wait()
        assert done.code == 0, done.err
        path.chmod(0o700 if target.folder else 0o600)
    return old, fingerprint(new)


def name_output(target: Target, old: Path, mark: str, folder: Path, name: str, force: bool, tally: Tally) -> list[str]:
    """Runs one command, and says what is wrong then.

    Args:
        old: an output to lay there.
        mark: fingerprint of what the command must write.
    """
    here = folder / "place/here"
    _furnish(here, old)
    before = _tree(here)
    leads = NAMES[name]
    free = leads is not None and leads not in before
    replaced = leads == "old" and force or leads == "file" and force and not target.folder
    fits = (target.folder or not name.endswith("/")) and (free or replaced or target.folder and leads == "empty")

    def act() -> None:
        os.chdir(here)
        importlib.import_module(target.module).cli_main()

    words = [*target.arguments(name.replace("HERE", str(here))), *(["--force"] if force else [])]  # type: ignore[arg-type]
    done = Running(act, words, folder).wait()
    failures, after = [], _tree(here)
    if fits:
        assert leads is not None
        if done.code:
            failures.append(f"ended with code {done.code}: {done.err[-600:]}")
        elif fingerprint(here / leads) != mark:
            failures.append("wrote something else")
        elif leads in before and before[leads][0] != after[leads][0]:
            failures.append(f"changed the mode from {before[leads][0]:o} to {after[leads][0]:o}")
        before, after = (
            {path: what for path, what in each.items() if path.split("/")[0] != leads} for each in (before, after)
        )
    elif done.code != 2 or "error: " not in done.err or "Traceback" in done.err:
        failures.append(f"ended with code {done.code}: {done.err[-600:]}")
    tally.count("outputs written" if fits else "outputs refused")
    changed = sorted(path for path in before | after if before.get(path) != after.get(path))
    shutil.rmtree(here.parent)
    return failures + ([f"changed {changed}"] if changed else [])


def _furnish(here: Path, old: Path) -> None:
    """What lies in the working folder."""
    for name in ("folder", "empty"):
        (here / name).mkdir(parents=True)
    for name in ("file", "folder/file"):
        (here / name).write_text("the user's")
    if old.is_dir():
        shutil.copytree(old, here / "old")
    else:
        shutil.copy(old, here / "old")
    for name in ("file", "folder", "empty", "old", "nothing", "device"):
        (here / f"to {name}").symlink_to(name)
    (here / "to itself").symlink_to("to itself")
    (here / "to here").symlink_to(here)
    os.mkfifo(here / "pipe")
    try:
        os.mknod(here / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # a /dev/null of one's own
    except PermissionError:
        os.mkfifo(here / "device")


def _tree(here: Path) -> dict[str, tuple[int, str]]:
    """Mode of everything in a folder, and content or target."""
    found = {}
    for path in here.parent.rglob("*"):
        mode = path.lstat().st_mode
        content = os.readlink(path) if path.is_symlink() else fingerprint(path) if stat.S_ISREG(mode) else ""
        found[os.path.relpath(path, here)] = mode, content
    return found


def write_together(folder: Path, count: int, draw: random.Random, tally: Tally) -> None:
    """So many outputs, each with several writers."""
    place = folder / "together"
    for _ in range(count):
        place.mkdir()
        kind, force, old = draw.choice(("file", "folder")), draw.random() < 0.5, draw.random() < 0.5
        if old:
            _write(place, kind, True, "old", 0)
        writers, stranger = draw.randint(2, 4), draw.random() < 0.2
        failures = write_at_once(place, kind, force, old, writers, stranger, draw)
        tally.count(f"{kind}{'' if force else ', without --force'}{', with a stranger' if stranger else ''}")
        tally.step([f"{writers} writers of a {kind}, {force=}, {old=}, {stranger=}: {failure}" for failure in failures])
        shutil.rmtree(place)


def write_at_once(
    place: Path, kind: str, force: bool, old: bool, writers: int, stranger: bool, draw: random.Random
) -> list[str]:
    """Starts the writers of one output, and says what is wrong in the end."""
    begin, go = os.pipe()
    waits = [draw.random() * 0.003 if draw.random() < 0.5 else 0 for _ in range(writers + 1)]
    acts: list[Callable[[], Any]] = [
        lambda number=number: _write(place, kind, force, f"writer {number}", waits[number]) for number in range(writers)
    ]
    if stranger:
        acts.append(lambda: _be_strange(place / "out", waits[-1]))
    children = [_started(act, begin, go) for act in acts]
    os.close(begin)
    os.close(go)  # all of them
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    strange = stranger and codes.pop() == 0
    content = _read(place / "out")
    failures = [f"ended with codes {codes}"] if set(codes) - {0, 2} else []
    if os.listdir(place) != ["out"]:
        failures.append(f"left {os.listdir(place)}")
    if force and not stranger and any(codes):
        failures.append(f"refused a writer that may replace: {codes}")
    if not force and codes.count(0) != (0 if old or strange else 1):
        failures.append(f"{codes.count(0)} have written")
    winners = [f"writer {number}" for number, code in enumerate(codes) if code == 0]
    allowed = ["the stranger's"] if strange and not force else winners or ["old"]
    if strange and force:
        allowed.append("the stranger's")  # who may be the last, or nothing to be replaced
    if content not in allowed:
        failures.append(f"{content!r} is there instead of {allowed}")
    return failures


def _write(place: Path, kind: str, force: bool, text: str, wait: float) -> None:
    if kind == "file":
        checked_file(place / "out", force).write(lambda file: (file.write(text.encode()), time.sleep(wait)), "it")
        return
    with checked_folder(place / "out", force, "folders", lambda path: os.listdir(path) == ["content"]).written(
        "it"
    ) as new:
        Path(new, "content").write_text(text)
        time.sleep(wait)


def _be_strange(path: Path, wait: float) -> None:
    """Makes something that is no output, where there is nothing.

    Raises:
        FileExistsError: there is.
    """
    time.sleep(wait)
    path.mkdir()
    (path / "the stranger's").touch()


def _read(path: Path) -> str:
    if path.is_dir():
        inside = os.listdir(path)
        return (path / "content").read_text() if inside == ["content"] else ", ".join(inside)
    return path.read_text()


def _started(act: Callable[[], Any], begin: int, go: int) -> int:
    """A child that acts once nobody can write into the pipe any more."""
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(BaseException):
        os.close(go)
        os.read(begin, 1)
        try:
            act()
            code = 0
        except (Refusal, FileExistsError) as error:
            code = 2 if "could not be written" not in str(error) else 3
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
