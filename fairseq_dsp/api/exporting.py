"""Checkpoints for programs that do not know this package. Called by `fairseq-dsp-export`."""

from __future__ import annotations

import os

from fairseq_dsp.errors import Refusal
from fairseq_dsp.export.ctranslate2 import QUANTIZATIONS, Conversion, convert, is_model
from fairseq_dsp.export.dense import DenseExport, fold
from fairseq_dsp.files.checkpoint import write_checkpoint
from fairseq_dsp.files.output import checked_file, checked_folder


def export_dense(
    checkpoint: str | os.PathLike[str], output: str | os.PathLike[str], *, force: bool = False
) -> DenseExport:
    """Writes a checkpoint of stock fairseq's shapes, removed heads zero: `fairseq-dsp-export --format dense`.

    Args:
        checkpoint: rewritten, trained with a budget, or dense.
        output: the file to write.
        force: overwrite `output`.

    Returns:
        what was written (`layout`, `state`), and how exactly it agrees with `checkpoint`.

    Raises:
        Refusal: the request cannot be honoured, with the sentences of the command; nothing has been written.
    """
    target = checked_file(output, force)
    done = fold(os.fspath(checkpoint))
    write_checkpoint(done.state, target)
    return done


def export_ctranslate2(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: str | os.PathLike[str] | None,
    *,
    quantization: str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
    force: bool = False,
) -> Conversion:
    """Writes a model for CTranslate2, compared with fairseq's before it gets its name: `fairseq-dsp-export --format ctranslate2`.

    Args:
        checkpoint: rewritten, trained with a budget, or dense.
        output: the folder to write.
        data: folder of fairseq-preprocess, for its dictionaries.
        quantization: type of the weights, one of `int8`, `int8_float32`, `int8_float16`, `int8_bfloat16`, `float16`, `bfloat16` and
            `float32`; None for float32.
        source_lang: of `data`, where the checkpoint and the folder do not tell it. Likewise:
        target_lang: its target language.
        force: replace the model in `output`.

    Returns:
        the layout, how exactly the model agrees with fairseq's, and what the quantization does to translations.

    Raises:
        Refusal: the request cannot be honoured, with the sentences of the command; nothing has been written.
    """
    if data is None:
        raise Refusal("`--data` must be given for `--format ctranslate2`: the folder with the dictionaries.")
    if quantization not in (None, *QUANTIZATIONS):
        raise Refusal(f"`--quantization` must be one of {', '.join(QUANTIZATIONS)}, but is {quantization}.")
    target = checked_folder(output, force, "models of CTranslate2", is_model)
    return convert(os.fspath(checkpoint), target, os.fspath(data), quantization, source_lang, target_lang)
