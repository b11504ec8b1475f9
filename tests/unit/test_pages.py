"""docs/pages.py lays out all pages that the site's menu names, what they link to, and a page of docstrings for each room."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
_specification = importlib.util.spec_from_file_location("docs_pages", ROOT / "docs/pages.py")
pages = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(pages)


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    pages.copy_pages(folder)
    pages.write_reference(folder / "reference")
    return folder


def test_every_entry_of_the_menu_is_there(output):
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = [page for entry in menu[1:] for section in entry.values() for page in section]
    for page in [menu[0], *(next(iter(page.values())) if isinstance(page, dict) else page for page in named)]:
        assert (output / page).is_file(), page


def test_every_page_of_docs_is_laid_out_and_what_pages_link_to(output):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (output / page.relative_to(ROOT)).read_bytes() == page.read_bytes()
    for page in output.rglob("*.md"):
        source = ROOT / page.relative_to(output)
        if source.is_file():
            assert all((output / link.relative_to(ROOT)).is_file() for link in pages.linked_files(source))
    assert (output / "examples/translation/results/cpu-amd-epyc-2-cores/figures/bleu-against-heads.png").is_file()


def test_every_module_of_the_package_has_its_docstrings_shown_once(output):
    shown = [
        line.removeprefix("::: ")
        for page in (output / "reference").glob("*.md")
        for line in page.read_text().splitlines()
        if line.startswith("::: ")
    ]
    modules = [path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "fairseq_dsp").rglob("*.py")]
    assert sorted(shown) == sorted(".".join(name for name in parts if name != "__init__") for parts in modules)


def test_links_in_code_and_to_other_hosts_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text(
        "[b](b.md#c) [web](https://b.md) [none](none.md)\n```\n[d](d.md)\n```\n[up](../a.md)"
    )
    for name in ("b.md", "d.md"):
        (tmp_path / name).touch()
    assert pages.linked_files(tmp_path / "a.md") == [tmp_path / "b.md"]
