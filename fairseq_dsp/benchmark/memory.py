"""Peak memory of one run, in a process of its own: within one process the peak would be that of the largest model.

Started by `peak`, which sends it the run as JSON; `python -m fairseq_dsp.benchmark.memory` is that process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from fairseq_dsp.benchmark.candidates import Candidate
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.workloads import WORKLOADS
from fairseq_dsp.errors import Refusal

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak(candidate: Candidate, settings: Settings, case: Case, phase: str) -> int:
    """Bytes that model and run need at the highest, without the libraries and without what loading needs.

    On a GPU the peak of torch's allocations. On a CPU that of the process's resident size, less what it was before the
    model; where the system cannot start counting anew (it is Linux that can), loading the model is included.

    Raises:
        Refusal: the process failed; its last line says why.
    """
    request = {"candidate": asdict(candidate), "settings": asdict(settings), "case": asdict(case), "phase": phase}
    done = subprocess.run(
        [sys.executable, "-m", "fairseq_dsp.benchmark.memory"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Refusal(f"the memory of {candidate.text} could not be measured: {reason}")
    return int(done.stdout.strip().splitlines()[-1])


def _answer() -> None:
    request = json.load(sys.stdin)
    request["settings"]["words"] = tuple(request["settings"]["words"])
    candidate, settings, case = (
        Candidate(**request["candidate"]),
        Settings(**request["settings"]),
        Case(**request["case"]),
    )
    torch.set_num_threads(settings.threads)
    before = _resident_peak()
    model = candidate.build(settings.words)
    gc.collect()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # the peak is the present size from here on
    run = WORKLOADS[case.workload].prepare(model, settings, case, request["phase"])
    for _ in range(2):
        run.call()
    print(torch.cuda.max_memory_allocated() if settings.device == "cuda" else _resident_peak() - before)


def _resident_peak() -> int:
    """The process's largest resident size in bytes.

    Linux's own VmHWM where there is one: ru_maxrss survives the start of a program, so a child's begins at its parent's.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


if __name__ == "__main__":
    _answer()
