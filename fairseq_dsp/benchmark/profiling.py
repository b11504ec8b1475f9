"""Where the time of a run goes, operator by operator, by torch's profiler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

REST = "outside of operators"


def seconds_by_operator(run: Callable[[], Any], device: str) -> dict[str, float]:
    """Self time of every operator in one call, the longest first; on a GPU, of the kernels that it launched.

    Returns:
        seconds by torch's name of the operator, and under `REST` what the profiled call took besides: Python, and on a GPU
        the time in which it waited. The profiler itself takes time, so the shares count, not the sum.
    """
    gpu = device == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if gpu else [])
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        if gpu:
            torch.cuda.synchronize()
        whole = time.perf_counter() - start
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        micro = event.self_device_time_total if gpu else event.self_cpu_time_total
        # torch lists the kernels too, whose time it adds to their operators, and what the profiler itself does
        operator = event.device_type == DeviceType.CPU and "::" in event.key
        if micro and operator and (gpu or event.key.startswith("aten::")):
            found[event.key] = found.get(event.key, 0.0) + micro / 1e6
    found[REST] = max(whole - sum(found.values()), 0.0)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
