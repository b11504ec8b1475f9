"""Outputs that a test writes without asking whether they are free."""

from __future__ import annotations

from pathlib import Path

from fairseq_dsp.export.ctranslate2 import is_model
from fairseq_dsp.files.output import OutputFile, OutputFolder, checked_file, checked_folder


def file(path: Path) -> OutputFile:
    return checked_file(path, force=True)


def served(folder: Path) -> OutputFolder:
    """A model for CTranslate2."""
    return checked_folder(folder, True, "models of CTranslate2", is_model)
