"""Who may import whom, read from the source: the parts that know nothing of fairseq, or of each other, stay so."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_dsp

ROOT = Path(fairseq_dsp.__file__).parent
FILES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = pytest.mark.parametrize("module", FILES)

MAY_TOUCH_FAIRSEQ = {
    "model",
    "task",
    "criterion",
    "optim",
    "compat",
    "data_folder",
    "finished",
    "untrusted",
    "checkpoint",
    "old_options",
    "native",
    "rewriting",
    "objections",
    "computation",
    "starting",
}
MAY_TOUCH_FAIRSEQ |= {
    f"benchmark/{name}" for name in ("choosing", "comparison", "sentences", "subjects", "training", "workloads")
}

# What each may import of this package; modules that are not named here may import what they like, except cli.
MAY_IMPORT = {
    "subset": set(),
    "heads": {"subset"},
    "errors": set(),
    "room": set(),
    "output": {"errors", "room"},
    "config": {"errors", "heads"},
    "masks": set(),
    "loss": set(),
    "live": {"heads", "attention"},  # of the latter its types alone
    "attention": {"errors", "heads", "live", "masks", "sharing"},
    "sharing": set(),
    "json_values": set(),
    "scoring": {"floors", "heads", "attention", "errors", "json_values", "scoring"},
    "floors": {"errors", "heads", "subset"},
    "marginals": {"subset"},
    "methods": {"heads", "subset", "marginals", "config", "errors", "methods"},
}

OPTIONAL = {"matplotlib", "rich", "sacremoses", "sentencepiece", "subword_nmt", "ctranslate2", "jinja2"}


def imported(module: str) -> set[str]:
    """Full names of all that the module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_of_ours(module: str) -> set[str]:
    """Modules and subpackages of this package that the module imports, by their first name."""
    ours = [name.split(".")[1] for name in imported(module) if name.startswith("fairseq_dsp.")]
    return {name for name in ours if name in {file.split("/")[0] for file in FILES}}


@MODULES
def test_imports_only_what_its_place_allows(module):
    allowed = MAY_IMPORT.get(module.split("/")[0])
    if allowed is not None:
        assert imported_of_ours(module) <= allowed
    if not module.startswith("cli/"):
        assert "cli" not in imported_of_ours(module)


@MODULES
def test_touches_fairseq_only_if_its_place_is_next_to_it(module):
    if module not in MAY_TOUCH_FAIRSEQ and not module.startswith("cli/"):
        assert not [name for name in imported(module) if name.split(".")[0] == "fairseq"]


@MODULES
def test_has_fewer_than_300_lines(module):
    assert len(FILES[module].read_text().splitlines()) < 300


@MODULES
def test_says_first_what_it_is(module):
    assert ast.get_docstring(ast.parse(FILES[module].read_text()))


def test_the_rules_name_modules_that_exist():
    assert MAY_IMPORT.keys() <= {module.split("/")[0] for module in FILES}
    assert MAY_TOUCH_FAIRSEQ <= FILES.keys()


def test_importing_the_plug_in_imports_no_optional_dependency():
    program = "import {}, sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    loaded = [
        set(
            json.loads(
                subprocess.run([sys.executable, "-c", program.format(name)], capture_output=True, check=True).stdout
            )
        )
        for name in ("fairseq_dsp", "fairseq.tasks, fairseq.models, fairseq.criterions, fairseq.optim")
    ]
    assert "fairseq_dsp" in loaded[0]
    assert (loaded[0] - loaded[1]) & OPTIONAL == set()
