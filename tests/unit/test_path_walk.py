"""docs/path_walk.py counts runs of functions and steps to importers: on a made-up package of four modules."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_specification = importlib.util.spec_from_file_location("docs_path_walk", ROOT / "docs/path_walk.py")
path_walk = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(path_walk)

MODULES = {
    "top": "from walked.low import inner\nfrom walked import middle\n\n\ndef start():\n    inner.a()\n    middle.b()\n    inner.a()\n    inner.c()\n",
    "middle": "from walked.low.inner import d\n\n\ndef b():\n    d()\n",
    "low/inner": "def a(): pass\n\n\ndef c(): pass\n\n\ndef d(): pass\n",
    "alone": "",
    "__init__": "",
    "low/__init__": "",
}


def test_functions_are_noted_once_in_the_order_of_first_calls(tmp_path, monkeypatch):
    package = tmp_path.resolve() / "walked"
    for name, text in MODULES.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(package.parent))
    entered = path_walk.first_entries(package, importlib.import_module("walked.top").start)
    assert [function for _, function in entered] == ["start", "a", "b", "d", "c"]
    assert path_walk.stays(module for module, _ in entered) == ["top", "low/inner", "middle", "low/inner"]
    above = path_walk.importers(package)
    assert above["low/inner"] == {"top", "middle"}
    assert above["middle"] == {"top"}
    assert above["alone"] == above["top"] == set()
