"""Translates stdin to stdout, a sentence a line, with a model that `fairseq-dsp-export --format ctranslate2` made.

    python serve_ctranslate2.py MODEL --bpe-codes codes < tokenised.de > tokenised.en
    python serve_ctranslate2.py MODEL --bpe-codes codes --moses de en < raw.de > raw.en

Whatever was done to the text before fairseq-preprocess has to be done here too: nothing but splitting at spaces, BPE of
subword-nmt (--bpe-codes), and before that the Moses tokeniser (--moses).
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Iterable, Iterator

import ctranslate2
import without_fairseq  # noqa: F401  before the import below

from fairseq_dsp.errors import Refusal, as_command


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder that fairseq-dsp-export wrote")
    parser.add_argument("--bpe-codes", metavar="FILE", help="codes of subword-nmt; the translation's BPE is joined")
    parser.add_argument("--moses", nargs=2, metavar=("SRC", "TGT"), help="tokenise and detokenise these languages")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="sentences that are translated together")
    parser.add_argument("--max-length", type=int, default=200, help="words of a translation at most")
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


def main() -> None:
    with as_command("serve_ctranslate2.py", exact=True):
        try:
            _serve()
        except UnicodeError as error:
            raise Refusal(f"text must be {sys.stdin.encoding} (PYTHONIOENCODING), but is not: {error}.") from error


def _serve() -> None:
    parser = get_parser()
    args = parser.parse_args()
    try:
        translator = ctranslate2.Translator(
            args.model, device=args.device, compute_type=args.compute_type, intra_threads=args.threads
        )
    except (RuntimeError, ValueError) as error:  # no such model, or a type or device that is not to be had here
        parser.error(str(error))
    text = Text(args.bpe_codes, args.moses)
    for lines in batches(sys.stdin, args.batch_size):
        sources = [text.split(line) for line in lines]
        results = iter(
            translator.translate_batch(
                [source for source in sources if source], beam_size=args.beam, max_decoding_length=args.max_length
            )
        )
        for source in sources:  # an empty line is answered by one, so that line numbers agree
            print(text.join(next(results).hypotheses[0]) if source else "", flush=True)


if __name__ == "__main__":
    main()
