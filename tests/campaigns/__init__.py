"""Long runs that look for what a test would miss. Each is a command with `--count` and `--seed`; tests run a slice of it."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in ("tests", "tests/integration"):  # what tests share is imported by its bare name, as pytest does
    _path = str(Path(__file__).resolve().parents[2] / _folder)
    if _path not in sys.path:
        sys.path.append(_path)
