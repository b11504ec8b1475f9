"""What several unit tests start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shell_runs import Shell


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, tmp_path, 1, print)
    with shell.locked():
        yield shell
