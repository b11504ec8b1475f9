"""Who may import whom, read from the source: rooms that know nothing of fairseq, or of each other, stay so."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_dsp

ROOT = Path(fairseq_dsp.__file__).parent
FILES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = pytest.mark.parametrize("module", FILES)

# A line a room: what it may import of this package besides itself. Nothing points back; `package` is the plug-in's entry,
# which names the Python API and imports none of it before it is asked for.
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "guards": set(),
    "files": {"errors", "config", "guards"},
    "config": {"errors"},
    "units": {"errors", "files"},
    "methods": {"errors", "config", "units"},
    "modules": {"errors", "units", "methods"},
    "options": {"errors", "config", "files", "guards", "units", "methods", "modules"},
    "plugin": {"errors", "config", "files", "guards", "units", "methods", "modules", "options"},
    "checkpoints": {"errors", "config", "files", "guards", "units", "methods", "modules", "version"}
    | {"options", "plugin"},
    "scoring": {"errors", "units", "modules"},
    "export": {"errors", "config", "files", "units", "modules", "options", "plugin", "checkpoints"},
    "benchmark": {"errors", "config", "files", "units", "methods", "modules", "version"}
    | {"options", "plugin", "checkpoints", "scoring", "export"},
    "analysis": {"errors", "files", "units"},
    "api": {"errors", "config", "files", "units", "modules", "version"}
    | {"options", "plugin", "checkpoints", "scoring", "export", "analysis"},
    "package": {"errors", "version", "guards", "units", "plugin", "api"},
    "cli": {"errors", "config", "files", "units", "checkpoints", "scoring", "export", "benchmark", "analysis", "api"},
}

MAY_TOUCH_FAIRSEQ = {
    "guards/versions",
    "guards/untrusted",
    "files/checkpoint",
    "files/data_folder",
    "files/old_options",
    "plugin/model",
    "plugin/task",
    "plugin/best_metric",
    "options/languages",
    "plugin/multilingual",
    "plugin/pair_figures",
    "options/pair_folders",
    "plugin/criterion",
    "plugin/decoder",
    "plugin/optimizer",
    "options/objections",
    "options/records",
    "options/computation",
    "options/starting",
    "plugin/building",
    "checkpoints/stock",
    "checkpoints/batches",
    "checkpoints/pair_batches",
    "api/translating",
}
MAY_TOUCH_FAIRSEQ |= {
    f"benchmark/{name}" for name in ("choosing", "comparison", "sentences", "candidates", "training", "workloads")
}

# Who asks a cfg for an option by its name: records. Others ask the records.
MAY_ASK_A_CFG = {"config", "options/records", "options/languages"}
# Who takes all that a cfg gives: the records, who judges values that no record can hold, and who copies a cfg.
MAY_TAKE_A_CFG = {*MAY_ASK_A_CFG, "options/objections", "options/stored_options", "options/widths"}
MAY_TAKE_A_CFG |= {"checkpoints/pair_batches", "checkpoints/stock", "export/ctranslate2"}

# Folders of a user dir of which fairseq imports every file.
FAIRSEQ_S_OWN = {"models", "tasks"}


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
    """Modules of this package that the module imports, inside functions and for type checkers too."""
    return {_module_of(name) for name in imported(module) if name.split(".")[0] == "fairseq_dsp"}


def _module_of(name: str) -> str:
    """The module that a full name stands for, or lies in."""
    path = name.split(".")[1:]
    while path and not {"/".join(path), "/".join([*path, "__init__"])} & FILES.keys():
        path.pop()
    return "/".join(path) if "/".join(path) in FILES else "/".join([*path, "__init__"])


def room_of(module: str) -> str:
    return "package" if module == "__init__" else module.split("/")[0]


@MODULES
def test_imports_only_what_its_room_allows(module):
    assert {room_of(name) for name in imported_of_ours(module)} - {room_of(module)} <= MAY_IMPORT[room_of(module)]


def test_the_rules_point_one_way():
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()


def test_no_circle_of_imports_runs_through_modules():
    graphlib.TopologicalSorter({module: imported_of_ours(module) for module in FILES}).prepare()


@MODULES
def test_touches_fairseq_only_if_its_place_is_next_to_it(module):
    if module not in MAY_TOUCH_FAIRSEQ and not module.startswith("cli/"):
        assert not [name for name in imported(module) if name.split(".")[0] == "fairseq"]


@MODULES
def test_asks_a_cfg_only_if_it_makes_a_record_of_it(module):
    names = imported(module)
    assert module in MAY_ASK_A_CFG or "fairseq_dsp.config.get_option" not in names
    assert module in MAY_TAKE_A_CFG or "fairseq_dsp.config.given_options" not in names


@MODULES
def test_has_fewer_than_300_lines(module):
    assert len(FILES[module].read_text().splitlines()) < 300


@MODULES
def test_says_first_what_it_is(module):
    assert ast.get_docstring(ast.parse(FILES[module].read_text()))


def test_the_rules_name_modules_that_exist():
    assert MAY_IMPORT.keys() == {room_of(module) for module in FILES}
    assert MAY_TOUCH_FAIRSEQ | MAY_TAKE_A_CFG <= FILES.keys()


def test_no_folder_has_a_name_of_which_fairseq_imports_every_file():
    assert not FAIRSEQ_S_OWN & {folder.name for folder in ROOT.rglob("*") if folder.is_dir()}


def test_logs_name_the_modules_as_ever_wherever_these_have_moved():
    named = re.findall(r'getLogger\("fairseq_dsp\.(\w+)"\)', "".join(path.read_text() for path in FILES.values()))
    assert sorted(set(named)) == ["gates", "old_options", "starting", "task"]


def test_importing_the_plug_in_imports_what_fairseq_sees_and_nothing_that_fairseq_has_not():
    program = "import {}, sys, json; print(json.dumps(sorted(sys.modules)))"
    loaded = [
        set(
            json.loads(
                subprocess.run([sys.executable, "-c", program.format(name)], capture_output=True, check=True).stdout
            )
        )
        for name in ("fairseq_dsp", "fairseq.tasks, fairseq.models, fairseq.criterions, fairseq.optim")
    ]
    ours = {name for name in loaded[0] if name.split(".")[0] == "fairseq_dsp"}
    more = {name.split(".")[0] for name in loaded[0] - loaded[1] - ours}
    assert more <= {"fairseq", *sys.stdlib_module_names}
    rooms = {room_of(_module_of(name)) for name in ours}
    assert rooms == {
        "package",
        "version",
        "guards",
        "errors",
        "config",
        "files",
        "units",
        "methods",
        "modules",
        "options",
        "plugin",
    }
    files = {name.split(".")[2] for name in ours if name.startswith("fairseq_dsp.files.")}
    assert files == {"checkpoint", "data_folder", "old_options", "spectral", "weights"}


def test_public_names_are_found_where_type_checkers_see_them_and_no_others():
    tree = ast.parse(FILES["__init__"].read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: f"{node.module}" for node in block.body for alias in node.names}
    assert sorted(seen) == fairseq_dsp.__all__ == sorted(fairseq_dsp.__all__, key=str)
    assert set(fairseq_dsp.__all__) <= set(dir(fairseq_dsp))
    for name, module in seen.items():
        assert getattr(fairseq_dsp, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = fairseq_dsp.no_such_name
