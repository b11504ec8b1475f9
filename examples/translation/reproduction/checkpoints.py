"""What a killed training left: the newest whole checkpoint is put where fairseq goes on from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from fairseq_dsp.files.checkpoint import (
    check_sums,  # the package registers the types that fairseq's checkpoints hold
)

LAST, BEST = "checkpoint_last.pt", "checkpoint_best.pt"


def updates_of(path: Path) -> int | None:
    """Updates that a checkpoint has been trained for; None where the file is not there or not whole."""
    try:
        check_sums(str(path))
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(state["optimizer_history"][-1]["num_updates"])
    except Exception:  # torch raises a dozen kinds for a broken file
        return None


def recover(folder: Path) -> str:
    """Makes a folder fit for going on, and says from where.

    fairseq writes the first of its files atomically and copies it over the others, which a kill may leave cut; after the
    best is improved, `checkpoint_last.pt` is such a copy. Without epoch checkpoints the best is never one.
    """
    last, best = updates_of(folder / LAST), updates_of(folder / BEST)
    for leftover in (*folder.glob("*.tmp"), *folder.glob(".*.copy")):
        leftover.unlink()
    if best is None and (folder / BEST).exists():
        # fairseq writes it atomically, so something else has damaged it. The choice among the epochs so far is lost with it,
        # and going on from the last would quietly choose among later ones: the training starts again.
        for name in (BEST, LAST):
            if (folder / name).exists():
                os.replace(folder / name, folder / f"{name}.set-aside")
        return "starts again: its best checkpoint is damaged; both are set aside"
    if best is not None and (last is None or best > last):
        copy = folder / f".{LAST}.copy"
        shutil.copyfile(folder / BEST, copy)
        with open(copy, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(copy, folder / LAST)
        return f"goes on after {best} updates, from the best checkpoint: the last is cut or older"
    if last is None:
        (folder / LAST).unlink(missing_ok=True)
        return "starts"
    return f"goes on after {last} updates"
