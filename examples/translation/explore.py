"""Compares ways of choosing heads of a trained model: dense models first, then arms that are fine-tuned from them.

    python examples/translation/explore.py --data DATA-BIN --output DIR --plan phase3 --workers 14

DIR gets results.jsonl (a line an arm), setting.json and the dense models. The same command goes on where it stopped; another
plan in the same folder uses the same dense models. A GPU is used where there is one. `explore_report.py` makes tables of the lines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from exploration.plans import PLANS
from exploration.running import claim, run_all
from exploration.setting import Setting
from reproduction.data import read_data

from fairseq_dsp.cli.arguments import whole_numbers
from fairseq_dsp.errors import Refusal, as_command, noted
from fairseq_dsp.files.data_folder import DataFolder


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured.
    """
    args = _parser().parse_args(arguments)
    reasons = [
        f"`--{name.replace('_', '-')}` must be above 0, but is {value}."
        for name, value in vars(args).items()
        if isinstance(value, (int, float)) and name not in ("dropout", "bleu") and value <= 0
    ]
    if args.bleu < 0:
        reasons.append(f"`--bleu` must be at least 0, but is {args.bleu}.")
    if not 0 <= args.dropout < 1:
        reasons.append(f"`--dropout` must be from 0 to below 1, but is {args.dropout}.")
    seeds: list[int] = []
    with noted(reasons):
        DataFolder(args.data)
        if args.bleu > 0:
            read_data(Path(args.data), None, None, None)
    with noted(reasons):
        seeds = list(dict.fromkeys(whole_numbers(args.seeds, "seeds", 0)))
    if args.heads > 0 and args.width % args.heads:
        reasons.append(f"`--width` must divide by `--heads` ({args.heads}), but is {args.width}.")
    if reasons:
        raise Refusal(*reasons)
    setting = Setting(**{each.name: getattr(args, each.name) for each in fields(Setting)})
    jobs = PLANS[args.plan](setting, seeds)
    if reasons := sorted({f"`--plan {args.plan}` must fit the {setting.grid.total} heads of the model, but keeps {job.kept}."
                          for job in jobs if job.kept is not None and job.kept > setting.grid.total}):  # fmt: skip
        raise Refusal(*reasons)
    output = Path(args.output)
    claim(output, args.data, setting)
    left, failures = run_all(args.data, output, setting, jobs, args.workers, args.limit, args.bleu)
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{len(jobs) - left} of {len(jobs)} arms are in {output / 'results.jsonl'}")
    if failures:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA-BIN", help="a folder of fairseq-preprocess")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or one to go on in")
    parser.add_argument("--plan", required=True, choices=PLANS, help="see exploration/plans.py")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS",
                        help="begin nothing any more after so long")  # fmt: skip
    parser.add_argument("--bleu", type=int, default=0, metavar="N",
                        help="translate the first N sentences of the test set with every new arm (default: none)")  # fmt: skip
    parser.add_argument("--seeds", default="1,2,3,4,5,6", help="a plan takes the first ones (default: %(default)s)")
    for each in fields(Setting):
        name, kind = each.name.replace("_", "-"), type(each.default)
        parser.add_argument(f"--{name}", type=kind, default=each.default, metavar="N",
                            help="of the setting, see exploration/setting.py (default: %(default)s)")  # fmt: skip
    return parser


if __name__ == "__main__":
    with as_command():
        main()
