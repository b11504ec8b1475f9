"""What a benchmark is told: plain data, which also goes to the process that measures memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What all cases share.

    Args:
        device: `cpu` or `cuda`.
        dtype: `float32`, `float16` or `bfloat16`.
        threads: of torch, within an operation.
        length: words of a synthetic sentence, source and target, without its end.
        output_length: words that generation must put out; None for its own end, at most 200.
        max_tokens: tokens, padding included, of the batch of an update or a validation.
        data: folder of fairseq-preprocess to take sentences from; None for synthetic ones.
        subset: of `data`.
        source_lang: of `data`; None for that of its only language pair. Likewise:
        target_lang: the target language.
        task_of: a checkpoint of several language pairs, whose task makes the sentences of `data`; None where no model is one.
        words: sizes of the source and the target dictionary, as far as all models have them.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    length: int = 20
    output_length: int | None = 20
    max_tokens: int = 4096
    data: str | None = None
    subset: str = "test"
    source_lang: str | None = None
    target_lang: str | None = None
    task_of: str | None = None
    words: tuple[int, int] = (8848, 6632)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        workload: a name in `workloads.WORKLOADS`.
        batch: sentences; None where tokens set the size, or there are no sentences.
        beam: hypotheses a sentence; None where nothing is searched.
    """

    workload: str
    batch: int | None = None
    beam: int | None = None
