"""Runs prepare-iwslt14.sh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from commands import ROOT

SCRIPT = ROOT / "examples/translation/prepare-iwslt14.sh"


def prepare(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    variables.pop("MOSES", None) if "MOSES" not in environment else None
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)], text=True, capture_output=True, env=variables, check=False
    )


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
