"""Runs jobs in several processes, a line of results each; what has a line is not run again."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fairseq_dsp.errors import Refusal

from . import arms
from .data import Data, load
from .models import build
from .setting import Job, Setting
from .training import Training, nats
from .translating import bleu_of

RESULTS, SETTING = "results.jsonl", "setting.json"
DENSE = "dense"


def key_of(line: dict[str, Any]) -> str:
    """What tells a line of results from others."""
    names = ("arm", "seed", "K", "share", "U", "lr", "schedule", "a")
    return json.dumps({name: line.get(name) for name in names}, sort_keys=True)


def head_of(job: Job, setting: Setting) -> dict[str, Any]:
    """The part of a line that is known before the arm runs."""
    line = {"arm": job.arm, "K": job.kept, "seed": job.seed, "U": job.setting_of(setting).updates, "lr": job.lr}
    line |= {} if job.share is None else {"share": job.share}
    return json.loads(json.dumps({**line, "schedule": job.schedule, "a": job.details}))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file that are whole; a killed writer may have left a broken last one, which is cut off."""
    if not path.exists():
        return []
    whole, newline, broken = path.read_bytes().rpartition(b"\n")
    if broken:
        os.truncate(path, len(whole + newline))  # never written anew: who is killed on the way would lose all lines
    return [json.loads(line) for line in whole.splitlines() if line]


def claim(output: Path, data: str, setting: Setting) -> None:
    """Makes the folder, or checks that what is in it belongs to the same data and setting.

    Raises:
        Refusal: it does not.
    """
    wanted = {"data": os.path.basename(os.path.abspath(data)), **asdict(setting)}
    del wanted["updates"]  # lines say it, and the dense models do not depend on it
    path = output / SETTING
    if path.exists():
        found = json.loads(path.read_text())
        names = [name for name in wanted if found.get(name) != wanted[name]]
        if names:
            raise Refusal(
                *(f"`--{name.replace('_', '-')}` must be {found.get(name)} in {output}, whose results are of that, but is {wanted[name]}."
                  for name in names)
            )  # fmt: skip
        return
    if output.exists() and any(output.iterdir()):
        raise Refusal(f"`--output` must be a new folder or one of an exploration, but {output} is neither.")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")


def run_all(
    data: str, output: Path, setting: Setting, jobs: Sequence[Job], workers: int, limit: float, translated: int = 0
) -> tuple[int, list[str]]:
    """Trains the dense models that are missing, then the arms.

    Args:
        limit: seconds after which nothing is begun any more.
        translated: sentences of the test set whose BLEU the line of an arm has; lines that are there stay as they are.

    Returns:
        how many jobs are left, and a sentence for each that failed.
    """
    deadline = time.time() + limit
    failures: list[str] = []
    lines = read_lines(output / RESULTS)
    dense = {line["seed"] for line in lines if line["arm"] == DENSE}
    seeds = [
        seed
        for seed in dict.fromkeys(seed for job in jobs for seed in job.seeds)
        if seed not in dense or not dense_path(output, seed).exists()
    ]
    done = {key_of(line) for line in lines}
    todo = [job for job in jobs if key_of(head_of(job, setting)) not in done]
    if not todo and not seeds:
        return 0, []
    with _pool(workers, (data, setting, output, deadline, translated)) as submit:
        failures += _collect([submit(train_dense, seed) for seed in seeds])
        ready = [job for job in todo if all(dense_path(output, seed).exists() for seed in job.seeds)]
        failures += _collect([submit(run_job, job) for job in ready])
    done = {key_of(line) for line in read_lines(output / RESULTS)}
    return sum(key_of(head_of(job, setting)) not in done for job in todo), failures


def dense_path(output: Path, seed: int) -> Path:
    return output / f"dense{seed}.pt"


class _Worker:
    """What a process holds: the data, loaded once."""

    data: Data
    setting: Setting
    output: Path
    deadline: float


def _begin(data: str, setting: Setting, output: Path, deadline: float, translated: int) -> None:
    logging.getLogger("fairseq").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    _Worker.data, _Worker.setting = load(data, setting, translated), setting
    _Worker.output, _Worker.deadline = output, deadline


def train_dense(seed: int) -> str | None:
    """Trains and stores a dense model; a sentence if it failed."""
    if time.time() > _Worker.deadline:
        return None
    data, setting, begin = _Worker.data, _Worker.setting, time.time()
    try:
        model = build(setting, data, seed)
        training = Training(model, data, seed, setting.dense_updates, setting.lr, setting.warmup, "isqrt")
        curve = []
        while training.done < setting.dense_updates:
            training.step()
            if training.done % len(data.train) == 0 or training.done == setting.dense_updates:
                curve.append((training.done, round(nats(model, data.valid), 4)))
        path = dense_path(_Worker.output, seed)
        torch.save(model.state_dict(), f"{path}.tmp")
        os.replace(f"{path}.tmp", path)
        line = {"arm": DENSE, "seed": seed, "curve": curve, "updates_an_epoch": len(data.train)}
        line |= {} if data.test is None else bleu_of(model, data.task, data.test)
        _write(line | {"seconds": round(time.time() - begin, 1)})
    except Exception:
        return f"dense, seed {seed}: {traceback.format_exc()}"
    return None


def run_job(job: Job) -> str | None:
    """Runs an arm; a sentence if it failed."""
    if time.time() > _Worker.deadline:
        return None
    try:
        setting, data = job.setting_of(_Worker.setting), _Worker.data
        states = {
            seed: torch.load(dense_path(_Worker.output, seed), map_location=data.device, weights_only=True)
            for seed in job.seeds
        }
        if job.scratch:
            states = {job.seed: build(setting, data, job.seed).state_dict()}
        lines = arms.run(job, setting, data, states)
        _write(*({**head_of(job, setting), **line} for line in lines))
    except Exception:
        return f"{job.arm}, {job.budget_text}, seed {job.seed}: {traceback.format_exc()}"
    return None


def _write(*lines: dict[str, Any]) -> None:
    with open(
        _Worker.output / RESULTS, "a", encoding="utf-8"
    ) as file:  # one write of whole lines: processes do not mix theirs
        file.write("".join(json.dumps(line) + "\n" for line in lines))


@contextmanager
def _pool(workers: int, given: tuple[Any, ...]) -> Iterator[Any]:
    """What takes a function and its argument and gives a future; with one worker the work is done here and at once."""
    if workers == 1:
        _begin(*given)
        yield _at_once
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _begin, given) as pool:
        yield pool.submit


def _at_once(work: Any, argument: Any) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_result(work(argument))
    return future


def _collect(futures: Sequence[concurrent.futures.Future[Any]]) -> list[str]:
    return [failure for future in futures if (failure := future.result()) is not None]
