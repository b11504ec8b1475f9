"""What block pruning costs in quality, and what it brings in speed: a model is masked, fine-tuned under the masks, and measured.

    fairseq-dsp-score DATA-BIN --path dense.pt --units blocks --block 16 --scorer magnitude --output blocks.json
    python examples/translation/blocks.py --data DATA-BIN --path dense.pt --scores blocks.json --output DIR --densities 0.5,0.25

DIR gets a checkpoint for every density, bench.jsonl, and blocks.md: nats a word on the validation set and measured speed. Masked blocks are
zeros. No runtime that models are exported to computes sparse blocks, so this is a study of quality and no way to deploy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.utils import prune

from fairseq_dsp.benchmark.measuring import paired_ratio
from fairseq_dsp.checkpoints.batches import draw_batches, loss_of, loss_per_token
from fairseq_dsp.cli import bench
from fairseq_dsp.errors import Refusal, as_command, noted
from fairseq_dsp.files.checkpoint import read_checkpoint, write_checkpoint
from fairseq_dsp.files.output import checked_file, checked_folder
from fairseq_dsp.plugin.building import load_model
from fairseq_dsp.units.blocks import BlockScores, matrices_of, read_block_scores
from fairseq_dsp.units.fingerprint import fingerprint

WARNING = (
    "Masked blocks are zeros in matrices of full size. No runtime that models are exported to (fairseq, CTranslate2) computes sparse blocks. "
    "Speeds are measured side by side, times as fast as with all blocks. Blocks are masks, and nothing here is a way to deploy."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured.
    """
    args = _parser().parse_args(arguments)
    reasons: list[str] = []
    densities: list[float] = []
    with noted(reasons):
        densities = _densities(args.densities)
    reasons += [
        f"`--{name.replace('_', '-')}` must be {'at least 0' if name == 'updates' else 'above 0'}, but is {getattr(args, name)}."
        for name in ("updates", "lr", "max_tokens", "pairs")
        if not (getattr(args, name) >= 0 if name == "updates" else getattr(args, name) > 0)
    ]
    if args.ctranslate2 and importlib.util.find_spec("ctranslate2") is None:
        reasons.append("`--ctranslate2` needs CTranslate2: pip install 'fairseq_dsp[ctranslate2]'.")
    with noted(reasons):
        scores = read_block_scores(args.scores, "--scores")
    with noted(reasons):
        target = checked_folder(args.output, args.force, "folders of this command", _is_ours)
    if reasons:
        raise Refusal(*reasons)
    with target.written("the study") as folder:
        rows = [study_density(args, scores, density, Path(folder)) for density in (1.0, *densities)]
        speeds = measured(args, [row["file"] for row in rows], Path(folder))
        (Path(folder) / "blocks.md").write_text(page(args, scores, rows, speeds), encoding="utf-8")
    print(f"{os.path.join(args.output, 'blocks.md')}: {len(rows)} densities of {scores.count:,} blocks")


def study_density(args: argparse.Namespace, scores: BlockScores, density: float, folder: Path) -> dict[str, Any]:
    """One row of the table: the model under the mask, before and after it is fine-tuned; all densities see the same batches."""
    state = read_checkpoint(args.path)
    model = load_model(state)
    if model.head_gates is not None:
        raise Refusal(f"`--path` must be a finished model, but {args.path} chooses among its heads: rewrite it first.")
    if scores.weights != fingerprint(model.weights()):
        raise Refusal(f"`--scores` must be of the weights of {args.path}, but are of others, of {scores.checkpoint}.")
    model.float()
    torch.manual_seed(args.seed)
    masks = scores.masks(density)
    modules = {
        name: model.get_submodule(name.removesuffix(".weight")) for name in matrices_of(dict(model.named_parameters()))
    }
    for name, module in modules.items():
        prune.custom_from_mask(module, "weight", masks[name])
    options = state["cfg"].task
    valid = draw_batches(model.eval(), options, args.data, "valid", None, args.max_tokens, args.seed)
    cut = loss_per_token(model, valid)
    train = draw_batches(model, options, args.data, "train", None, args.max_tokens, args.seed)
    fine_tune(model, train, args.updates, args.lr)
    tuned = loss_per_token(model.eval(), valid)
    for module in modules.values():
        prune.remove(module, "weight")
    kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    path = folder / f"density-{density:g}.pt"
    write_checkpoint(
        {
            **{
                name: state[name]
                for name in ("args", "task_state", "optimizer_history", "extra_state")
                if name in state
            },
            "cfg": OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True),
            "model": model.state_dict(),
            "criterion": None,
        },
        checked_file(str(path), False),
    )
    return {"density": density, "kept": kept, "cut": cut, "tuned": tuned, "file": str(path)}


def fine_tune(model: Any, batches: list[dict[str, Any]], updates: int, lr: float) -> None:
    """Adam on the mean loss of a word, at a rate that falls to zero; what is masked stays zero."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.98))
    model.train()
    for update in range(updates):
        batch = batches[update % len(batches)]
        loss: Tensor = loss_of(model, batch).sum() / (batch["target"] != model.decoder.padding_idx).sum()
        optimizer.param_groups[0]["lr"] = lr * (1 - update / updates)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def measured(args: argparse.Namespace, paths: list[str], folder: Path) -> dict[tuple[str, str], str]:
    """Times as fast as at density 1 in generation, by engine and file, from fairseq-dsp-bench side by side."""
    lines = str(folder / "bench.jsonl")
    command = [
        "--path",
        *paths,
        "--workloads",
        "generate",
        "--cpu",
        "--no-memory",
        "--pairs",
        str(args.pairs),
        "--json",
        lines,
    ]
    command += ["--output-length", "20", "--batch-size", "32", "--beam", "5", *args.ctranslate2]
    bench.main(command)
    found: dict[tuple[str, str], str] = {}
    baselines: dict[str, list[float]] = {}
    for record in map(json.loads, Path(lines).read_text(encoding="utf-8").splitlines()):
        ratio = paired_ratio(baselines.setdefault(record["engine"], record["seconds"]), record["seconds"])
        interval = "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
        found[record["engine"], record["model"].partition(" in CTranslate2 ")[0]] = f"{ratio.median:.2f}{interval}"
    return found


def page(
    args: argparse.Namespace, scores: BlockScores, rows: list[dict[str, Any]], speeds: dict[tuple[str, str], str]
) -> str:
    """The study as markdown."""
    engines = list(dict.fromkeys(engine for engine, _ in speeds))
    heads = [
        "blocks kept",
        "nats a word, masked",
        f"after {args.updates} updates",
        *(f"speed in {engine}" for engine in engines),
    ]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---:" for _ in heads) + " |"]
    for row in rows:
        name = os.path.basename(row["file"])
        cells = [
            f"{row['kept']:.1%}",
            f"{row['cut']:.3f}",
            f"{row['tuned']:.3f}",
            *(speeds[engine, name] for engine in engines),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    what = f"{scores.count:,} blocks of {scores.block} x {scores.block} of {scores.checkpoint}, by {scores.scorer}, seed {args.seed}."
    return "\n".join([f"# Block pruning: a study\n\n{WARNING}\n\n{what}\n", *lines]) + "\n"


def _densities(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= density < 1 for density in found) or len(set(found)) < len(found):
        raise Refusal(f"`--densities` must be numbers from 0 to below 1 with commas between, each once, but is {text}.")
    return found


def _is_ours(folder: str) -> bool:
    return all(name in ("blocks.md", "bench.jsonl") or name.startswith("density-") for name in os.listdir(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA-BIN", help="a folder of fairseq-preprocess")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="a finished model")
    parser.add_argument("--scores", required=True, metavar="FILE", help="of fairseq-dsp-score --units blocks")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--densities",
        default="0.75,0.5,0.25",
        metavar="LIST",
        help="shares of the blocks that stay (default: %(default)s)",
    )
    parser.add_argument("--updates", type=int, default=200, metavar="N", help="of fine-tuning (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-4, help="of fine-tuning, at its begin (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="of a batch (default: %(default)s)")
    parser.add_argument(
        "--pairs", type=int, default=7, metavar="N", help="times that every model is measured (default: %(default)s)"
    )
    parser.add_argument(
        "--ctranslate2",
        action="store_const",
        const=["--ctranslate2", "float32"],
        default=[],
        help="measure CTranslate2 too",
    )
    parser.add_argument("--seed", type=int, default=1, help="of batches and dropout (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace DIR, a folder of this command")
    return parser


if __name__ == "__main__":
    for talker in ("fairseq", "hydra"):
        logging.getLogger(talker).setLevel(logging.WARNING)
    with as_command():
        main()
