"""A checkpoint whose writing or copying was cut short is refused wherever it was cut; one that is written over stays what was read."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT

sys.path.append(str(ROOT))

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files import checkpoint
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


def write_over(path: Path) -> None:
    """Puts other weights into the very file, as fairseq copies a new checkpoint over `checkpoint_best.pt`."""
    state = torch.load(path, weights_only=True)
    for weight in state["model"].values():
        weight.add_(1)
    torch.save(state, path.with_name("next.pt"))
    shutil.copyfile(path.with_name("next.pt"), path)


@pytest.mark.parametrize("name", ["trained.pt", "rewritten.pt"])
def test_weights_stay_those_that_were_read_when_the_file_is_written_over(name: str, tmp_path: Path):
    golden, path = ROOT / "tests/golden" / name, tmp_path / name
    shutil.copy(golden, path)
    found = read_checkpoint(str(path))["model"]
    write_over(path)
    expected = read_checkpoint(str(golden))["model"]
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []


def test_weights_that_share_memory_in_the_file_still_do(tmp_path: Path):
    """Or what is made of them would be larger."""
    state = torch.load(ROOT / "tests/golden/rewritten.pt", weights_only=True)
    words = "decoder.embed_tokens.weight", "decoder.output_projection.weight"
    state["model"][words[1]] = state["model"][words[0]]
    torch.save(state, tmp_path / "tied.pt")
    found = read_checkpoint(str(tmp_path / "tied.pt"))["model"]
    assert found[words[0]].data_ptr() == found[words[1]].data_ptr()


def test_a_checkpoint_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "in.pt"
    shutil.copy(ROOT / "tests/golden/trained.pt", path)
    os.utime(path, (0, 0))
    check = checkpoint.check_sums
    monkeypatch.setattr(checkpoint, "check_sums", lambda name: (check(name), write_over(path)))
    with pytest.raises(Refusal, match="written to meanwhile"):
        read_checkpoint(str(path))
