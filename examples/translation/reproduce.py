"""The paper's experiment with one command: every method at every budget, then BLEU, sacreBLEU and chrF of all.

    python examples/translation/reproduce.py --preset paper --data DATA-BIN --output DIR --jobs 4 --gpus
    python examples/translation/reproduce.py --preset smoke --output DIR        on the sample corpus, about 6 minutes of processor time

It may be killed at any moment; the same command goes on. DIR/results.jsonl gets a line for every finished run;
`fairseq-dsp-report DIR/results.jsonl --output DIR/report` shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import sample_corpus
import torch
from reproduction.commands import Setup
from reproduction.data import INFO, Data, read_data
from reproduction.experiment import RESULT, Experiment
from reproduction.measure import hardware
from reproduction.plan import parse_budgets, plan, plan_preset
from reproduction.presets import METHODS, PRESETS, Preset, scale_batch, schedule
from reproduction.results import write_marker
from reproduction.running import Place, refuse_full_disk
from reproduction.steps import Run

from fairseq_dsp.config import flag
from fairseq_dsp.errors import Refusal, as_command, refused_disk
from fairseq_dsp.files.output import refuse_no_name

MARKER = "reproduce.json"
GPU_MAX_TOKENS = 16384  # the paper's batches leave a GPU idle


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Trains every method at every budget, and appends to results.jsonl.")
    parser.add_argument("--preset", required=True, choices=tuple(PRESETS), help="size of model and training")
    parser.add_argument("--data", type=Path, metavar="DATA-BIN", help="of fairseq-preprocess; smoke: the sample corpus")
    parser.add_argument("--output", required=True, metavar="DIR", help="new, or an earlier call's, to go on")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="among " + " ".join(METHODS))
    parser.add_argument("--budgets", nargs="+", metavar="K", help="counts, shares (0.25, 1/4), auto (hard-concrete)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, on one GPU too (default: 1)")
    parser.add_argument("--gpus", nargs="?", const="all", metavar="IDS", help="use all GPUs, or these: 0,1")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: bf16 with --gpus, else fp32")
    parser.add_argument("--source-lang", metavar="SRC")
    parser.add_argument("--target-lang", metavar="TGT")
    parser.add_argument("--label", help="what the results must say of the data, such as '30 %% of the training set'")
    parser.add_argument("--keep-checkpoints", action="store_true", help="also those that nothing needs any more")
    parser.add_argument("--dry-run", action="store_true", help="print every command and stop")
    group = parser.add_argument_group("instead of the preset's")
    group.add_argument("--epochs", type=int, metavar="N", help="warm-up and cooldown keep their share")
    group.add_argument("--max-tokens", type=int, metavar="N", help="the learning rate follows its square root")
    group.add_argument("--select", choices=("bleu", "loss"), help="what chooses the best checkpoint")
    group.add_argument("--l0-penalty", type=float, metavar="X", help="of hard-concrete, at every budget")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0, or 1 where a run failed.

    Raises:
        Refusal: the request cannot be honoured and nothing has been started, or the disk failed: the same command goes on.
    """
    args = get_parser().parse_args(arguments)
    with refused_disk(args.output):
        return reproduce(args)


def reproduce(args: argparse.Namespace) -> int:
    """Checks everything, then does what is not finished; see `main`."""
    reasons = [
        f"{flag(name)} must be at least {least}, but is {value}."
        for name, least in (("jobs", 1), ("epochs", 1), ("max_tokens", 1), ("seeds", 0))
        for value in (getattr(args, name) if name == "seeds" else [getattr(args, name)]) or ()
        if value is not None and value < least
    ]
    reasons += [f"`--seeds` must be below {2**32}, but is {seed}." for seed in args.seeds or () if seed >= 2**32]
    if reasons:
        raise Refusal(*reasons)
    gpus = find_gpus(args.gpus)
    preset = choose_preset(args, bool(gpus))
    budgets = parse_budgets(args.budgets or preset.budgets, preset.total_heads)
    refuse_no_name(args.output)
    out = Path(args.output).absolute()
    if args.data is None and args.preset != "smoke":
        raise Refusal(f"`--data` must be given for `--preset {args.preset}`: a folder of fairseq-preprocess.")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).is_file())):
        raise Refusal(f"`--output` must be new, empty or an earlier call's folder, but {out} holds other files.")
    if args.data is not None:
        data = read_data(args.data.absolute(), args.source_lang, args.target_lang, args.label)
    elif args.dry_run:
        raise Refusal("`--dry-run` must come with `--data`: without, the sample corpus would have to be written.")
    else:
        data = sample_data(out)
    setup = Setup(
        preset=preset, schedule=schedule(preset, data.updates_an_epoch(preset.max_tokens)), source=data.source,
        target=data.target, remove_bpe=data.remove_bpe, gpu=bool(gpus),
        precision=args.precision or ("bf16" if gpus else "fp32"), words=data.words, raw=data.raw,
    )  # fmt: skip
    if args.methods or args.seeds:
        runs = plan(setup, args.methods or preset.methods, budgets, args.seeds or preset.seeds)
    else:
        runs = plan_preset(setup, budgets)
    if args.dry_run:
        print("\n".join(shlex.join(step.words) for run in runs for step in run.steps))
        return 0
    prepare_output(out, setup, data)
    waiting = [run for run in runs if not (out / "runs" / run.name / RESULT).is_file()]
    if waiting:
        refuse_full_disk(out, bytes_needed(waiting, preset, data, args.jobs, args.keep_checkpoints))
    threads = max((len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) // args.jobs, 1)
    experiment = Experiment(runs, data, gpus, args.jobs, hardware(gpus, args.jobs), args.keep_checkpoints)
    place = Place(out, data.folder, threads, experiment.say)
    with place.locked():
        experiment.say(
            f"{setup.schedule.updates_an_epoch} updates an epoch, {preset.epochs} epochs, warm-up "
            f"{setup.schedule.warmup}, cooldown {setup.schedule.cooldown}, batches of {preset.max_tokens} tokens, "
            f"learning rate {preset.learning_rate:g}, {' '.join(setup.schedule.importance)}"
        )
        return experiment.run(place)


def choose_preset(args: argparse.Namespace, gpu: bool) -> Preset:
    """The preset with the options that replace its values."""
    preset = PRESETS[args.preset]
    max_tokens = args.max_tokens or (GPU_MAX_TOKENS if gpu and args.preset == "paper" else preset.max_tokens)
    preset = scale_batch(preset, max_tokens)
    given = {name: getattr(args, name) for name in ("epochs", "select")}
    given["l0_penalties"] = None if args.l0_penalty is None else ((1.0, args.l0_penalty),)
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def find_gpus(asked: str | None) -> list[str]:
    """Ids of the GPUs to use; none without `--gpus`.

    Raises:
        Refusal: there are none, or not these.
    """
    if asked is None:
        return []
    count = torch.cuda.device_count()
    there = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word] or list(
        map(str, range(count))
    )
    wanted = there[:count] if asked == "all" else [word for word in asked.split(",") if word]
    if not count or not wanted or not set(wanted) <= set(there[:count]):
        raise Refusal(f"`--gpus` must name GPUs that are there ({', '.join(there[:count]) or 'none'}), but is {asked}.")
    return wanted


def prepare_output(out: Path, setup: Setup, data: Data) -> None:
    """Makes the folder, or checks that an earlier call's runs are comparable with these.

    Raises:
        Refusal: they are not.
        OSError: the folder cannot be made.
    """
    now = {**asdict(setup.preset), "gpu": setup.gpu, "precision": setup.precision}
    now = {name: value for name, value in now.items() if name not in ("methods", "budgets", "seeds", "deciding")}
    now |= {f"data: {name}": value for name, value in data.info.items()}
    now = json.loads(json.dumps(now))
    if (out / MARKER).is_file():
        try:
            before = json.loads((out / MARKER).read_text(encoding="utf-8"))
        except ValueError as error:
            raise Refusal(f"{out / MARKER} must be JSON, but is not ({error}): remove the folder.") from error
        if not isinstance(before, dict):
            raise Refusal(f"{out / MARKER} must hold an object, but holds {type(before).__name__}: remove the folder.")
        if before:
            reasons = [
                f"`--output` must be of a call with the same settings, but {out} was begun with {name} "
                f"{before.get(name)!r} instead of {now.get(name)!r}."
                for name in dict.fromkeys((*before, *now))
                if before.get(name) != now.get(name)
            ]
            if reasons:
                raise Refusal(*reasons)
            return
    write_marker(out / MARKER, now)


def bytes_needed(runs: Sequence[Run], preset: Preset, data: Data, jobs: int, keep: bool = False) -> int:
    """About what the checkpoints of these runs will take: weights, and the optimizer's two moments where training wrote them.

    Args:
        keep: both checkpoints of a training stay, not only the one that translates.
    """
    copies = 0
    for run in runs:
        both = (keep or run.budget is None) and any(step.trains for step in run.steps)
        whole = run.deployed.endswith("checkpoint_best.pt")
        copies += 6 if both else 3 if whole else 0
        copies += 1 if run.deployed and not whole else 0
    return 4 * preset.parameters(*data.words) * (copies + 7 * min(jobs, len(runs)))


def sample_data(out: Path) -> Data:
    """The sample corpus as a data folder, made once."""
    final, begun = out / "data-bin", out / ".data-bin"
    if not (final / INFO).is_file():
        out.mkdir(parents=True, exist_ok=True)
        if not (out / MARKER).is_file():
            write_marker(out / MARKER, {})
        text = out / "text"
        for folder in (final, begun, text):
            shutil.rmtree(folder, ignore_errors=True)
        pair = ["--source-lang", sample_corpus.SOURCE, "--target-lang", sample_corpus.TARGET]
        prefixes = [word for subset in ("train", "valid", "test") for word in (f"--{subset}pref", str(text / subset))]
        for command in (
            [sample_corpus.__file__, "--output", str(text)],
            ["-m", "fairseq_cli.preprocess", *pair, *prefixes, "--destdir", str(begun)],
        ):
            done = subprocess.run(
                [sys.executable, *command], text=True, errors="replace", capture_output=True, check=False
            )
            if done.returncode:
                raise Refusal(f"the sample corpus must be there, but making it failed: {done.stderr.strip()[-300:]}")
        info = {"label": "artificial sample corpus", "tokenised": "no", "segmentation": "subword_nmt"}
        (begun / INFO).write_text(json.dumps(info), encoding="utf-8")
        os.replace(begun, final)
    return read_data(final, None, None, None)


def cli_main() -> None:
    started = time.monotonic()
    with as_command():
        code = main()
        print(f"{time.monotonic() - started:.0f} seconds", flush=True)
        sys.exit(code)


if __name__ == "__main__":
    cli_main()
