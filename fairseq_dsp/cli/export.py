"""`fairseq-dsp-export --format dense|ctranslate2 IN OUT`: a checkpoint for stock fairseq, or a model for CTranslate2."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

from fairseq_dsp.api.exporting import export_ctranslate2, export_dense
from fairseq_dsp.cli.arguments import add_languages, megabytes
from fairseq_dsp.config import flag
from fairseq_dsp.errors import Refusal, as_command
from fairseq_dsp.export.ctranslate2 import QUANTIZATIONS
from fairseq_dsp.export.quality import Effect
from fairseq_dsp.units.layout import Layout

FORMATS = ("dense", "ctranslate2")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairseq-dsp-export",
        description="Exports a checkpoint with fewer heads for programs that do not know this package.",
    )
    parser.add_argument("input", metavar="IN", help="checkpoint: rewritten, trained with a head budget, or dense")
    parser.add_argument("output", metavar="OUT", help="file (dense) or folder (ctranslate2) to write")
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="dense: a checkpoint of stock fairseq's shapes, removed heads zero; ctranslate2: a model for CTranslate2",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    group = parser.add_argument_group("for --format ctranslate2")
    group.add_argument("--data", metavar="DATA-BIN", help="folder of fairseq-preprocess, for its dictionaries")
    group.add_argument("--quantization", choices=QUANTIZATIONS, help="type of the weights (default: float32)")
    add_languages(group)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        Refusal: the request cannot be honoured; nothing has been written.
    """
    args = get_parser().parse_args(arguments)
    if args.format == "dense":
        _export_dense(args)
    else:
        _export_ctranslate2(args)


def cli_main() -> None:
    for talker in ("fairseq", "sacrebleu"):  # of every data set, and of every step of a test
        logging.getLogger(talker).setLevel(logging.WARNING)
    with as_command():
        main()


def _export_dense(args: argparse.Namespace) -> None:
    alien = [name for name in ("data", "quantization", "source_lang", "target_lang") if getattr(args, name) is not None]
    if alien:
        raise Refusal(*(f"{flag(name)} belongs to `--format ctranslate2`, but the format is dense." for name in alien))
    done = export_dense(args.input, args.output, force=args.force)
    _report(args, done.layout, megabytes(args.output))
    print(f"checked: folded and given model differ by at most {done.difference:.1e} in log-probability")


def _export_ctranslate2(args: argparse.Namespace) -> None:
    given = {name: value for name, value in vars(args).items() if name not in ("input", "output", "format")}
    done = export_ctranslate2(args.input, args.output, **given)
    size = sum(entry.stat().st_size for entry in os.scandir(args.output))
    _report(args, done.layout, f"{size / 1e6:.1f}")
    print("heads a sublayer: encoder {}, decoder {}".format(*done.heads))
    print(f"checked: CTranslate2 and fairseq differ by at most {done.difference:.1e} in log-probability, in float32")
    if done.quantized_difference is not None:
        print(f"with {args.quantization}: by at most {done.quantized_difference:.1e}")
    if isinstance(done.effect, Effect):
        print(f"with {args.quantization}, translations of real sentences: {done.effect}")
    elif done.effect:
        print(f"with {args.quantization}, what becomes of translations of real sentences is not known: {done.effect}")


def _report(args: argparse.Namespace, layout: Layout, size: str) -> None:
    sizes = f"{megabytes(args.input)} -> {size} megabytes"
    print(f"{args.input} -> {args.output}: {layout.counted()}, {sizes}")
