"""results.jsonl, which reproduce.py appends to: nothing that a kill leaves can break it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fairseq_dsp.errors import Refusal

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/translation"))

from reproduction import results


class TestResults:
    def record(self, **values: object) -> dict:
        return {**dict.fromkeys(results.KEYS, 1), **values}

    def test_come_back_as_they_were_appended(self, tmp_path: Path):
        path = tmp_path / "results.jsonl"
        both = [self.record(method="dsp"), self.record(method="ste", command="é\n")]
        for record in both:
            results.append_result(path, record)
        assert results.read_results(path) == both

    @pytest.mark.parametrize("broken", [b'{"method": "ds', b"\xc3", b"12", b"\0\0\0\n", b'{"method": "ds\n\n'])
    def test_lose_a_broken_last_line_only(self, broken: bytes, tmp_path: Path):
        path = tmp_path / "results.jsonl"
        results.append_result(path, self.record())
        whole = path.read_bytes()
        path.write_bytes(whole + broken)
        assert results.read_results(path) == [self.record()]
        assert path.read_bytes() == whole

    def test_keep_a_whole_last_line_that_lacks_its_newline(self, tmp_path: Path):
        path = tmp_path / "results.jsonl"
        results.append_result(path, self.record())
        path.write_bytes(path.read_bytes()[:-1])
        assert results.read_results(path) == [self.record()]
        results.append_result(path, self.record(seed=2))
        assert len(results.read_results(path)) == 2

    def test_may_have_empty_lines(self, tmp_path: Path):
        path = tmp_path / "results.jsonl"
        results.append_result(path, self.record())
        path.write_bytes(b"\n" + path.read_bytes() + b"\n\n")
        results.append_result(path, self.record(seed=2))
        assert results.read_results(path) == [self.record(), self.record(seed=2)]

    def test_with_a_broken_line_before_the_last_are_refused(self, tmp_path: Path):
        path = tmp_path / "results.jsonl"
        path.write_bytes(b"x\n{}\n")
        with pytest.raises(Refusal, match="line 1"):
            results.read_results(path)
