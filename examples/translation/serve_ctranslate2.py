"""Translates stdin to stdout, a sentence a line, with a model that `fairseq-dsp-export --format ctranslate2` made.

    python serve_ctranslate2.py MODEL --bpe-codes codes < tokenised.de > tokenised.en
    python serve_ctranslate2.py MODEL --bpe-codes codes --moses de en < raw.de > raw.en
    python serve_ctranslate2.py MULTILINGUAL --bpe-codes codes --source-lang en --target-lang de < tokenised.en > tokenised.de

Whatever was done to the text before fairseq-preprocess has to be done here too: nothing but splitting at spaces, BPE of
subword-nmt (--bpe-codes), and before that the Moses tokeniser (--moses).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import ctranslate2
import without_fairseq  # noqa: F401  before the import below

from fairseq_dsp.errors import Refusal, as_command

WORDS = 200  # of a translation, as in fairseq-generate
ADVICE = (
    "(a line too long for a model of an earlier fairseq-dsp-export? Its limits travel with it if you export it again.)"
)
LEAST = {"beam": 1, "batch_size": 1, "max_length": 1, "threads": 0}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder that fairseq-dsp-export wrote")
    parser.add_argument("--bpe-codes", metavar="FILE", help="codes of subword-nmt; the translation's BPE is joined")
    parser.add_argument("--moses", nargs=2, metavar=("SRC", "TGT"), help="tokenise and detokenise these languages")
    for side in ("source", "target"):
        parser.add_argument(f"--{side}-lang", metavar="LANGUAGE", help="of a model of several language pairs")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="sentences that are translated together")
    parser.add_argument(
        "--max-length", type=int, help=f"words of a translation at most (default: {WORDS}, or all positions)"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    parser.add_argument("--threads", type=int, default=0, help="on a CPU (default: CTranslate2's choice)")
    parser.add_argument("--compute-type", default="default", help="such as int8 or float16 (default: the model's own)")
    return parser


class Text:
    """From lines to words of the model's vocabulary, and back."""

    def __init__(self, bpe_codes: str | None, languages: list[str] | None) -> None:
        self.bpe = self.tokenizer = self.detokenizer = None
        if bpe_codes:
            from subword_nmt.apply_bpe import BPE

            with open(bpe_codes, encoding="utf-8") as codes:
                self.bpe = BPE(codes)
        if languages:
            from sacremoses import MosesDetokenizer, MosesTokenizer

            self.tokenizer, self.detokenizer = MosesTokenizer(languages[0]), MosesDetokenizer(languages[1])

    def split(self, line: str) -> list[str]:
        words = self.tokenizer.tokenize(line, escape=True) if self.tokenizer else line.split()
        return self.bpe.segment_tokens(words) if self.bpe else words

    def join(self, words: list[str]) -> str:
        line = " ".join(words)
        if self.bpe:
            line = re.sub(r"@@( |$)", "", line)
        return self.detokenizer.detokenize(line.split()) if self.detokenizer else line


def batches(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    lines = iter(lines)
    while batch := list(itertools.islice(lines, size)):
        yield batch


def limits_of(model: str) -> dict[str, Any]:
    """What fairseq-dsp-export notes in a model's config.json; nothing in models of earlier versions."""
    try:
        with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
            return dict(json.load(file).get("fairseq_dsp", {}))
    except (OSError, ValueError):  # CTranslate2 says what is wrong with the folder
        return {}


def objections(args: argparse.Namespace, limits: dict[str, Any]) -> list[str]:
    """Why nothing can be translated so: sentences."""
    given = {name: getattr(args, name) for name in LEAST}
    found = [
        f"`--{name.replace('_', '-')}` must be at least {least}, but is {given[name]}."
        for name, least in LEAST.items()
        if given[name] is not None and given[name] < least
    ]
    positions = limits.get("max_target_positions")
    if positions and args.max_length is not None and args.max_length > positions:
        found.append(
            f"`--max-length` must be at most the {positions} positions of the model, but is {args.max_length}."
        )
    pairs, given = limits.get("language_pairs"), (args.source_lang, args.target_lang)
    if pairs and "-".join(each or "?" for each in given) not in pairs:
        asked = " and ".join(each or "not given" for each in given)
        found.append(
            f"`--source-lang` and `--target-lang` must be a language pair of the model ({', '.join(pairs)}), but are {asked}."
        )
    if not pairs and any(given):
        found.append(
            "`--source-lang` and `--target-lang` must be for a model of several language pairs, but this one has no tokens of them."
        )
    return found


def main() -> None:
    with as_command("serve_ctranslate2.py", exact=True):
        try:
            _serve()
        except UnicodeError as error:
            raise Refusal(f"text must be {sys.stdin.encoding} (PYTHONIOENCODING), but is not: {error}.") from error


def _serve() -> None:
    parser = get_parser()
    args = parser.parse_args()
    limits = limits_of(args.model)
    reasons = objections(args, limits)
    text = translator = None
    try:
        text = Text(args.bpe_codes, args.moses)
    except (OSError, ValueError) as error:  # no such file, or no text
        reasons.append(f"`--bpe-codes` must be codes of subword-nmt, but {args.bpe_codes} cannot be read: {error}.")
    except ImportError as error:
        reasons.append(f"`--bpe-codes` needs subword-nmt and `--moses` sacremoses, but {error.name} is not installed.")
    try:
        translator = ctranslate2.Translator(
            args.model, device=args.device, compute_type=args.compute_type, intra_threads=max(args.threads, 0)
        )
    except (RuntimeError, ValueError) as error:  # no such model, or a type or device that is not to be had here
        reasons.append(str(error))
    if reasons or text is None or translator is None:
        parser.error("\n".join(reasons))
    before = limits.get("language_pairs", {}).get(f"{args.source_lang}-{args.target_lang}", {})
    start, prefix = before.get("source", []), before.get("target", [])  # tokens of languages
    end, first = before.get("source_end", []), before.get("target_start", [])  # those that take the place of ends
    # the end of the sentence has a position too, whatever it is
    longest = limits.get("max_source_positions", sys.maxsize) - 1 - len(start)
    most = args.max_length or min(WORDS, limits.get("max_target_positions", WORDS) - len(prefix))
    padding, number, code = limits.get("padding"), 0, 0
    for lines in batches(sys.stdin, args.batch_size):
        # the text is no padding, whatever it says; fairseq takes words that are none of its dictionary's for unknown
        sources = [["<unk>" if word == padding else word for word in text.split(line)] for line in lines]
        fitting = [source for source in sources if 0 < len(source) <= longest]
        try:
            # 0: CTranslate2 would cut longer inputs without a word
            translated = translator.translate_batch(
                [[*start, *source, *end] for source in fitting],
                [[*first, *prefix]] * len(fitting) if first or prefix else None,
                beam_size=args.beam,
                max_decoding_length=most + len(prefix),
                max_input_length=0,
            )
        except RuntimeError as error:
            parser.exit(2, f"{parser.prog}: error: line {number + 1} to line {number + len(lines)}: {error} {ADVICE}\n")
        results = iter(translated)
        for source in sources:  # an empty line is answered by one, so that line numbers agree
            number += 1
            if len(source) > longest:
                said = f"line {number} must have at most {longest} words, which the model has positions for, but has {len(source)}"
                print(f"{parser.prog}: error: {said}: its translation is empty.", file=sys.stderr)
                code = 2
            done = text.join(next(results).hypotheses[0][len(prefix) :]) if 0 < len(source) <= longest else ""
            print(done, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
