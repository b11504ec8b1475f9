"""What several commands read and print alike: languages, whole numbers of options, sizes of files."""

from __future__ import annotations

import argparse
import os

from fairseq_dsp.config import flag
from fairseq_dsp.errors import Refusal


def add_languages(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--source-lang` and `--target-lang`, for commands that read a data folder."""
    for side, metavar in (("source", "SRC"), ("target", "TGT")):
        parser.add_argument(f"--{side}-lang", metavar=metavar, help=f"{side} language, where nothing else tells it")


def whole_numbers(text: str, option: str, least: int) -> list[int]:
    """The numbers of an option that takes several, with commas between.

    Raises:
        Refusal: one is no whole number, or below `least`.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise Refusal(f"{flag(option)} must be whole numbers of at least {least}, but is {text!r}.")
    return numbers


def megabytes(path: str) -> str:
    """Size of a file, or of the files in a folder, for people; a dash where it is gone by now: no reason to fail after the work."""
    try:
        files = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else [path]
        return f"{sum(map(os.path.getsize, files)) / 1e6:.1f}"
    except OSError:
        return "-"
