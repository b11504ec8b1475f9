"""Lays out what `make docs` builds a site from: the pages where they lie in the checkout, and what they link to.

    python docs/pages.py build/pages

Starts from the README and the pages of docs, follows their links to files of the checkout, and copies each. Then it writes a page of
public docstrings for each folder of the package, which mkdocstrings fills without importing anything.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fairseq_dsp"


def linked_files(page: Path) -> list[Path]:
    """Files of the checkout that a page links to. Links to nothing are left to the site's generator, which refuses them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    found = [(page.parent / target).resolve() for target in targets if target]
    return [path for path in found if path.is_file() and path.is_relative_to(ROOT)]


def copy_pages(output: Path) -> None:
    """Copies the pages, and what can be reached from them."""
    waiting = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        target = output / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        new = set(linked_files(path) if path.suffix == ".md" else ()) - seen
        seen |= new
        waiting += new


def write_reference(output: Path) -> None:
    """A page of docstrings for each room of the package, and one for the modules at its top."""
    output.mkdir(parents=True, exist_ok=True)
    rooms: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        if not any(name.startswith("__") and name != "__init__" for name in names):
            room = names[1] if len(names) > 2 else names[0]
            rooms.setdefault(room, []).append(".".join(name for name in names if name != "__init__"))
    for room, modules in rooms.items():
        entries = "\n".join(f"::: {module}\n" for module in modules)
        (output / f"{room}.md").write_text(f"# {room}\n\n{entries}", encoding="utf-8")
    listed = "".join(f"- [{room}]({room}.md)\n" for room in rooms)
    (output / "index.md").write_text(f"# Docstrings\n\nOne page a folder of the package.\n\n{listed}", encoding="utf-8")


def main() -> None:
    output = Path(sys.argv[1])
    if output.exists():
        shutil.rmtree(output)
    copy_pages(output)
    write_reference(output / "reference")


if __name__ == "__main__":
    main()
