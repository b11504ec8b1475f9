"""Peak memory of one run, in a process of its own: within one process the peak would be that of the largest model.

Started by `peak`, which sends it the run as JSON; `python -m fairseq_dsp.benchmark.memory` is that process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.subjects import Subject
from fairseq_dsp.benchmark.workloads import WORKLOADS
from fairseq_dsp.errors import Refusal


def peak(subject: Subject, settings: Settings, case: Case, phase: str) -> int:
    """Bytes at the highest: of the whole process on a CPU, of torch's allocations on a GPU.

    Raises:
        Refusal: the process failed; its last line says why.
    """
    request = {"subject": asdict(subject), "settings": asdict(settings), "case": asdict(case), "phase": phase}
    done = subprocess.run(
        [sys.executable, "-m", "fairseq_dsp.benchmark.memory"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Refusal(f"the memory of {subject.text} could not be measured: {reason}")
    return int(done.stdout.strip().splitlines()[-1])


def _answer() -> None:
    request = json.load(sys.stdin)
    request["settings"]["words"] = tuple(request["settings"]["words"])
    subject, settings, case = Subject(**request["subject"]), Settings(**request["settings"]), Case(**request["case"])
    torch.set_num_threads(settings.threads)
    model = subject.build(settings.words)
    run = WORKLOADS[case.workload].prepare(model, settings, case, request["phase"])
    for _ in range(2):
        run.call()
    print(torch.cuda.max_memory_allocated() if settings.device == "cuda" else _process_peak())


def _process_peak() -> int:
    """The process's largest resident size.

    Linux's own VmHWM where there is one: ru_maxrss survives the start of a program, so a child's begins at its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


if __name__ == "__main__":
    _answer()
