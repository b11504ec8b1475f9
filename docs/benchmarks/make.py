"""Makes the lines behind the tables of docs/performance.md again, on your machine.

    python docs/benchmarks/make.py --output DIR                      # all of them but `learned`: hours
    python docs/benchmarks/make.py --output DIR mask training        # these
    python docs/benchmarks/make.py --output DIR learned --runs runs --data DATA-BIN
    python docs/benchmarks/make.py --dry-run                         # prints the commands

Each command writes DIR/NAME.jsonl and prints its table. What lies in DIR already is left as it is, so a run that was stopped
goes on. A machine without other work gives the narrowest intervals.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DENSE = "transformer_iwslt_de_en"
OURS = f"dsp_{DENSE}"
BENCH = ["-c", "from fairseq_dsp.cli.bench import cli_main; cli_main()"]
PRUNING = ["-m", "fairseq_dsp.benchmark.pruning"]
SPEED = ["-m", "fairseq_dsp.benchmark.unit_speed"]

SPREAD_AND_PACKED = [DENSE, *(f"{OURS}:{how}={kept}" for kept in (36, 18) for how in ("spread", "packed"))]
GENERATION = ["--random", *SPREAD_AND_PACKED, f"{OURS}:spread=6", f"{OURS}:spread=0"]
GENERATION_2 = ["--random", *SPREAD_AND_PACKED, f"{OURS}:spread=6", "--threads", "2"]
SIZES = ["--batch-size", "1,32", "--beam", "5", "--length", "20"]
BOTH = ["--workloads", "encoder,generate", *SIZES, "--no-memory"]
GATED = [f"{OURS}:spread=18,gated", f"{OURS}:spread=18,gated,pipelined"]
UPDATE = ["--workloads", "update", "--max-tokens", "4096", "--length", "20"]

# Arguments of fairseq-dsp-bench by the name of the file that they make.
COMMANDS = {
    "generation": [*GENERATION, *BOTH, "--profile"],
    "generation-2-threads": [*GENERATION_2, *BOTH],
    "memory": [*GENERATION, "--workloads", "generate", *SIZES, "--pairs", "1"],
    "training": ["--random", DENSE, *GATED, *UPDATE, "--no-memory"],
    "training-2-threads": ["--random", DENSE, *GATED, *UPDATE, "--no-memory", "--threads", "2"],
    "training-profile-busy": [
        "--random", DENSE, f"{OURS}:spread=18", *GATED, *UPDATE, "--profile", "--clock", "cpu",
    ],
    "validation": [
        "--random", f"{OURS}:spread=18", f"{OURS}:spread=18,gated", "--workloads", "validation,generate", "--no-memory",
    ],
    "ctranslate2": [
        "--random", DENSE, f"{OURS}:spread=18", f"{OURS}:packed=18", "--workloads", "generate", "--batch-size", "16",
        "--beam", "5", "--ctranslate2", "int8", "--no-memory",
    ],
    "mask": [
        "--random", f"{OURS}:spread=60,gated", f"{OURS}:spread=60,gated,relaxation=projection", "--workloads", "mask",
        "--no-memory",
    ],
}  # fmt: skip
LEARNED, REWRITING, PROJECTIONS, UNITS = "learned", "rewriting", "projections", "units"
NAMES = [*COMMANDS, REWRITING, PROJECTIONS, UNITS, LEARNED]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all but {LEARNED})")
    parser.add_argument(
        "--output", default="benchmarks", metavar="DIR", help="folder of the lines (default: benchmarks)"
    )
    parser.add_argument(
        "--runs", metavar="RUNS", help=f"for {LEARNED}: the `runs` folder that reproduce.py has written"
    )
    parser.add_argument("--data", metavar="DATA-BIN", help=f"for {LEARNED}: the data that it was run on")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    return parser


def learned(runs: str, data: str) -> list[str]:
    """What joint DSP chose with 18, 12 and 6 of 36 heads, seed 1, beside dense."""
    models = [f"{runs}/dense-s1/checkpoint_best.pt", *(f"{runs}/dsp-k{kept}-s1/pruned.pt" for kept in (18, 12, 6))]
    work = ["--workloads", "encoder,generate", "--batch-size", "1,32", "--output-length", "20", "--no-memory"]
    return ["--path", *models, "--data", data, *work]


def command(name: str, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """What Python runs, and the arguments that make a file."""
    if name == REWRITING:
        return PRUNING, ["--megabytes", "1000"]
    if name == UNITS:
        return SPEED, []
    return BENCH, learned(args.runs, args.data) if name == LEARNED else COMMANDS[name]


def measure_projections() -> None:
    """Microseconds of three products for q, k and v, and of one: rows are words times hypotheses, width 512."""
    import torch
    from torch.utils.benchmark import Timer

    for rows in (5, 160, 640):
        for heads in (1, 4):
            x, weights = torch.randn(rows, 512), [torch.randn(128 * heads, 512) for _ in "qkv"]
            names = {"x": x, "weights": weights, "joint": torch.cat(weights), "linear": torch.nn.functional.linear}
            for code in ("[linear(x, each) for each in weights]", "linear(x, joint).chunk(3, -1)"):
                median = Timer(code, globals=names, num_threads=1).blocked_autorange().median
                print(rows, heads, code, median * 1e6)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = get_parser()
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.names if name not in NAMES]:
        parser.error(f"NAME must be of {', '.join(NAMES)}, but is {', '.join(unknown)}.")
    names = args.names or [name for name in NAMES if name != LEARNED]
    if LEARNED in names and not (args.runs and args.data):
        parser.error(f"`{LEARNED}` needs `--runs` and `--data`.")
    for name in names:
        if name == PROJECTIONS:
            print(f"{name}: the products of this script")
            if not args.dry_run:
                measure_projections()
            continue
        program, words = command(name, args)
        output = Path(args.output) / f"{name}.jsonl"
        words = [*words, "--json", str(output)]
        called = ["fairseq-dsp-bench"] if program is BENCH else ["python", *program]
        print(shlex.join([*called, *words]), flush=True)
        if args.dry_run or output.exists():
            continue
        output.parent.mkdir(parents=True, exist_ok=True)
        threads = words[words.index("--threads") + 1] if "--threads" in words else "1"
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, *program, *words], check=True, env=environment)


if __name__ == "__main__":
    main()
