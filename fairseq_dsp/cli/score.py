"""`fairseq-dsp-score DATA-BIN --path CHECKPOINT`: says how much each head of a finished model matters."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import fairseq_dsp
from fairseq_dsp.checkpoints.batches import draw_batches, loss_of
from fairseq_dsp.checkpoints.building import ungated
from fairseq_dsp.cli.arguments import add_languages, whole_number
from fairseq_dsp.cli.waiting import steps
from fairseq_dsp.config import flag, get_option, set_option
from fairseq_dsp.errors import Refusal, as_command, noted
from fairseq_dsp.files.data_folder import refuse_no_folder
from fairseq_dsp.files.output import checked_file
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.scoring import SCORERS, finite_scores, removal_order
from fairseq_dsp.scoring.subject import Subject
from fairseq_dsp.units.score_file import ScoreFile

SUBSETS = ("train", "valid")
_DEFAULTS = {"subset": "train", "batches": "100", "max_tokens": "4096", "seed": "1"}
_READERS = [name for name, scorer in SCORERS.items() if scorer.reads_data]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-score",
        description="Scores the attention heads of a finished fairseq transformer, for fairseq-dsp-prune --scores.",
    )
    readers = " and ".join(_READERS)
    parser.add_argument("data", metavar="DATA-BIN", nargs="?", help=f"the data folder; read by {readers} alone")
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="the model, dense or with gates")
    parser.add_argument("--scorer", required=True, metavar="NAME", help="one of " + ", ".join(SCORERS))
    parser.add_argument("--output", required=True, metavar="FILE", help="where to write the scores, JSON")
    parser.add_argument("--subset", help="train (the default) or valid; never test")
    parser.add_argument("--batches", metavar="N", help="batches, drawn with --seed (default: 100), or all")
    parser.add_argument("--max-tokens", metavar="N", help="tokens in a batch (default: 4096)")
    add_languages(parser)
    parser.add_argument("--iterative", metavar="N", help="score again after every N heads removed")
    parser.add_argument("--seed", help="of the choice of batches and of random scores (default: 1)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured; nothing has been written.
    """
    args = get_parser().parse_intermixed_args(arguments)  # a folder that may be missing may stand anywhere
    _check(args)
    model, options, weights = ungated(args.path)
    batches = []
    if SCORERS[args.scorer].reads_data:
        for side in ("source_lang", "target_lang"):
            set_option(options, side, getattr(args, side) or get_option(options, side))
        batches = draw_batches(model, options, args.data, args.subset, args.batches, args.max_tokens, args.seed)
    file = _score(args, model, batches, weights)
    args.output.write(lambda handle: handle.write(file.text().encode()), "the score file")
    data = f" on {file.sentences:,} sentences of {file.subset}" if batches else ""
    print(f"scored {model.layout.count} heads of {args.path}{data} by {args.scorer}: {args.output.path}")


def cli_main() -> None:
    logging.getLogger("fairseq").setLevel(logging.WARNING)  # its warnings of sentences that are left out remain
    with as_command():
        main()


def _score(
    args: argparse.Namespace, model: DspTransformerModel, batches: list[dict[str, Any]], weights: dict[str, str]
) -> ScoreFile:
    """Scores the heads, and shows how far it is."""
    model.to("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    grid = model.layout.surviving
    scorer = SCORERS[args.scorer]()
    rounds = 1 if args.iterative is None else max(-(-grid.total // args.iterative), 1)
    order = None
    with steps(f"{args.scorer}, batches", rounds * len(batches)) as step:
        subject = Subject(
            grid=grid,
            attentions=dict(attentions(model, model.layout.grid)),
            batches=_Watched(batches, step),
            loss=lambda batch: loss_of(model, batch),
            seed=args.seed,
        )
        if args.iterative is None:
            scores = finite_scores(scorer, subject, torch.ones(grid.total))
        else:
            scores, order = removal_order(scorer, subject, args.iterative)
    return ScoreFile(
        version=fairseq_dsp.__version__,
        scorer=args.scorer,
        layout=model.layout,
        scores=tuple(scores.tolist()),
        order=None if order is None else tuple(order),
        iterative=args.iterative,
        subset=args.subset if batches else None,
        batches=len(batches) or None,
        max_tokens=args.max_tokens if batches else None,
        sentences=sum(len(batch["target"]) for batch in batches) or None,
        seed=args.seed,
        checkpoint=os.path.basename(args.path),
        weights=weights,
    )


class _Watched:
    """Batches that tell when one of them is done."""

    def __init__(self, batches: list[Any], done: Callable[[], Any]) -> None:
        self.batches, self.done = batches, done

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch
            self.done()


def _check(args: argparse.Namespace) -> None:
    """Reads the numbers and the output, in place.

    Raises:
        Refusal: options that cannot be honoured, all at once.
    """
    reasons: list[str] = []
    if args.scorer not in SCORERS:
        reasons.append(f"`--scorer` must be one of {', '.join(SCORERS)}, but is {args.scorer}.")
    else:
        reasons += _ignored(args)
    for option, default in _DEFAULTS.items():
        if getattr(args, option) is None:
            setattr(args, option, default)
    if args.subset not in SUBSETS:
        why = ": heads chosen on a test set make its scores worthless" if "test" in args.subset else ""
        reasons.append(f"`--subset` must be {' or '.join(SUBSETS)}, but is {args.subset}{why}.")
    for option, least in (("batches", 1), ("max_tokens", 1), ("iterative", 1), ("seed", 0)):
        if option == "batches" and args.batches == "all":
            args.batches = None
            continue
        with noted(reasons):
            setattr(args, option, whole_number(getattr(args, option), option, least))
    if args.scorer not in SCORERS or SCORERS[args.scorer].reads_data:
        with noted(reasons):
            if args.data is None:
                raise Refusal(f"DATA-BIN must be given for `--scorer {args.scorer}`: a folder of fairseq-preprocess.")
            refuse_no_folder(args.data, "DATA-BIN")
    with noted(reasons):
        args.output = checked_file(args.output, args.force)
    if reasons:
        raise Refusal(*reasons)


def _ignored(args: argparse.Namespace) -> list[str]:
    """Sentences on options that the scorer has no use for. A folder that it does not read does no harm."""
    scorer = SCORERS[args.scorer]
    aliens = [] if scorer.reads_data else ["iterative", "subset", "batches", "max_tokens", "source_lang", "target_lang"]
    owners = " and ".join(_READERS)
    found = [
        f"{flag(name)} belongs to {owners}: `--scorer {args.scorer}` reads no sentences, but it is {getattr(args, name)}."
        for name in aliens
        if getattr(args, name) is not None
    ]
    if not scorer.takes_seed and args.seed is not None:
        found.append(
            f"`--seed` must not be given for `--scorer {args.scorer}`, which draws nothing, but is {args.seed}."
        )
    return found
