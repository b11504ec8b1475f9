"""A checkpoint whose writing or copying was cut short is refused wherever it was cut."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from commands import ROOT

sys.path.append(str(ROOT))

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import read_checkpoint
from tests.campaigns.mutations import boundaries_of


@pytest.mark.parametrize("name", ["trained.pt", "rewritten.pt", "fairseq-0.12.2/dense.pt"])
def test_a_checkpoint_cut_at_any_boundary_of_its_records_is_refused(name: str, tmp_path: Path):
    content, cut = (ROOT / "tests/golden" / name).read_bytes(), tmp_path / "cut.pt"
    cut.write_bytes(content)
    read_checkpoint(str(cut))
    *boundaries, end = boundaries_of(content)
    assert end == len(content)
    assert len(boundaries) > 200
    taken = []
    for place in sorted({*boundaries, *(place - 1 for place in (*boundaries, end) if place)}):
        cut.unlink()  # a mapped file that is still in use must not change
        cut.write_bytes(content[:place])
        with contextlib.suppress(Refusal):
            read_checkpoint(str(cut))
            taken.append(place)
    assert taken == []
