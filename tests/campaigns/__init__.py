"""Long runs that look for what a test would miss.

`fuzz`, `kills`, `naming`, `folders` and `soak` are commands with `--count` and `--seed`; the other modules are their parts.
`tests/integration/test_campaigns.py` runs a slice of each: that of the kills of `reproduce.py` with `--slow` only.
"""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in ("tests", "tests/integration"):  # what tests share is imported by its bare name, as pytest does
    _path = str(Path(__file__).resolve().parents[2] / _folder)
    if _path not in sys.path:
        sys.path.append(_path)
