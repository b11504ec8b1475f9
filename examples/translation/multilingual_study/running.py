"""Runs what is planned, a few at once, and skips what is finished; a call that was ended goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from reproduction.running import Job, Place
from reproduction.steps import Run


def run_all(
    runs: Sequence[Run], place: Place, jobs: int, deadline: float, ended: Callable[[Run], None], finished: set[str]
) -> list[str]:
    """Runs those that can be, in their order.

    Args:
        jobs: that run at once.
        deadline: by time.monotonic, after which none is begun.
        ended: called when one has ended well.
        finished: names of those that have, also of earlier calls; grows.

    Returns:
        sentences on what failed.
    """
    waiting, active, failed = list(runs), [], {}  # type: ignore[var-annotated]
    try:
        while waiting or active:
            for run in list(waiting):
                if any(name in failed for name in run.needs):
                    failed[run.name] = f"{run.name} needs what failed."
                    waiting.remove(run)
                elif len(active) < jobs and finished.issuperset(run.needs):
                    if time.monotonic() > deadline and not _is_done(run, place):
                        waiting.remove(run)
                        continue
                    waiting.remove(run)
                    active.append(Job(run, place, None))
            for job in list(active):
                if job.advance():
                    active.remove(job)
                    if job.failed is not None:
                        failed[job.run.name] = job.failed
                        place.say(f"failed: {job.failed}")
                    else:
                        finished.add(job.run.name)
                        ended(job.run)
            blocked = {run.name for run in waiting}
            if not active and blocked and not any(finished.issuperset(run.needs) for run in waiting):
                break  # what they need failed, or was not begun before the deadline
            time.sleep(0.1)
    finally:
        for job in active:
            job.stop()
    return list(failed.values())


def _is_done(run: Run, place: Place) -> bool:
    return Job(run, place, None).step is None
