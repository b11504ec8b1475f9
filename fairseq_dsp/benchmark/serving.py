"""Translation by CTranslate2, to set beside fairseq's generation. Called by `comparison`."""

from __future__ import annotations

import tempfile
from types import SimpleNamespace
from typing import Any

from fairseq_dsp.benchmark.candidates import dictionaries_of, options_of
from fairseq_dsp.benchmark.sentences import PREFIX, batch_of
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.workloads import Run
from fairseq_dsp.errors import Refusal
from fairseq_dsp.export.ctranslate2 import objections_to_export
from fairseq_dsp.export.specification import Vocabularies, build_spec, import_ctranslate2
from fairseq_dsp.options.records import TransformerOptions
from fairseq_dsp.plugin.model import DspTransformerModel


def translate(model: DspTransformerModel, settings: Settings, case: Case, weights: str) -> Run:
    """The batch that `workloads.generate` has, with the same beam and, where a length is asked for, as many steps.

    Args:
        model: not baked yet; baked afterwards.
        weights: their type, as CTranslate2 names it; it computes in the same.

    Raises:
        Refusal: CTranslate2 is missing, cannot represent the model, or has no such type on this machine.
    """
    api = import_ctranslate2()
    model.bake()
    source, target = dictionaries_of(model)
    words = Vocabularies(list(source.symbols), list(target.symbols))
    options = options_of(model)
    reasons = objections_to_export(
        model, SimpleNamespace(task=SimpleNamespace(_name="translation"), model=options), words
    )
    if reasons:
        raise Refusal(*reasons)
    with tempfile.TemporaryDirectory() as folder:
        spec = build_spec(model, TransformerOptions.of(options), words)
        spec.validate()
        spec.optimize(weights)
        spec.save(folder)
        try:
            translator = api.Translator(
                folder, settings.device, compute_type=weights, inter_threads=1, intra_threads=settings.threads
            )
        except ValueError as error:
            raise Refusal(f"`--ctranslate2 {weights}` cannot be had on this machine: {error}") from error
    batch = batch_of(settings, case.batch or 1)
    tokens = batch["net_input"]["src_tokens"]
    special = (source.pad(), source.eos())
    sentences = [[source.symbols[word] for word in sentence if word not in special] for sentence in tokens.tolist()]
    limits: dict[str, Any] = {
        "max_decoding_length": 200
    }  # and of the source everything (0), where CTranslate2 would cut at 1,024
    if settings.output_length is not None:
        # fairseq's end of a sentence is a step too
        limits = dict.fromkeys(("min_decoding_length", "max_decoding_length"), settings.output_length + 1)

    if PREFIX in batch:
        limits["target_prefix"] = [[target.symbols[word] for word in start] for start in batch[PREFIX].tolist()]

    def call() -> list[list[str]]:
        results = translator.translate_batch(sentences, beam_size=case.beam or 1, max_input_length=0, **limits)
        return [result.hypotheses[0] for result in results]

    return Run(call, tokens=sum(map(len, call())))
