"""`fairseq-dsp-average OUT IN…`: averages the weights of checkpoints that keep the same heads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from fairseq_dsp.checkpoint import load_model, read_checkpoint, write_checkpoint
from fairseq_dsp.errors import Refusal, exit_on_refusal
from fairseq_dsp.heads import HeadLayout
from fairseq_dsp.output import refuse_to_overwrite


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-average", description="Averages the weights of checkpoints that keep the same heads."
    )
    parser.add_argument("output", metavar="OUT", help="where to write the average")
    parser.add_argument("inputs", metavar="IN", nargs="+", help="checkpoints of one model, pruned or not")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the checkpoints differ in heads, names or shapes; nothing has been written.
    """
    args = get_parser().parse_args(arguments)
    refuse_to_overwrite(args.output, args.force)
    write_checkpoint(average(args.inputs), args.output)
    print(f"averaged {len(args.inputs)} checkpoints into {args.output}")


def cli_main() -> None:
    with exit_on_refusal():
        main()


def average(paths: Sequence[str]) -> dict[str, Any]:
    """The last checkpoint with the mean of all weights, summed in float64; the optimizer's state goes.

    Raises:
        Refusal: the checkpoints are not of one model with one choice of heads.
    """
    sums: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    layouts: dict[str, HeadLayout] = {}
    for path in paths:
        state = read_checkpoint(path)
        shapes = {name: value.shape for name, value in state["model"].items()}
        if sums and shapes != {name: value.shape for name, value in sums.items()}:
            raise Refusal(f"all checkpoints must be of one model, but {path} has other parameters than {paths[0]}.")
        for name, value in state["model"].items():
            kinds.setdefault(name, value.dtype)
            sums[name] = sums[name] + value.double() if name in sums else value.double()
        cfg = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
        layouts[path] = load_model(state).deployed_layout()
    if len(set(layouts.values())) > 1:
        listed = "; ".join(f"{path} keeps {layout}" for path, layout in layouts.items())
        raise Refusal(f"all checkpoints must keep the same heads, but {listed}.")
    mean = {name: (total / len(paths)).to(kinds[name]) for name, total in sums.items()}
    kept = {name: state[name] for name in ("args", "task_state", "optimizer_history", "fairseq_dsp") if name in state}
    extra = {name: value for name, value in state.get("extra_state", {}).items() if name == "train_iterator"}
    return {**kept, "cfg": cfg, "model": mean, "criterion": None, "extra_state": extra}
