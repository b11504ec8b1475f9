"""The things that are timed. Each builds what it needs once and returns a call that can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from torch import nn

from fairseq_dsp.benchmark.candidates import Facts, dictionaries_of
from fairseq_dsp.benchmark.sentences import PREFIX, batch_of, batch_of_tokens, to_device
from fairseq_dsp.benchmark.settings import Case, Settings
from fairseq_dsp.benchmark.training import trainer_of, update
from fairseq_dsp.plugin.model import DspTransformerModel

_DRAWS = 20


@dataclass(frozen=True)
class Run:
    """Something to time.

    Args:
        call: does it.
        times: how often a call does what the table's time is of.
        tokens: tokens a call works through; None where speed in tokens means nothing.
    """

    call: Callable[[], Any]
    times: int = 1
    tokens: int | None = None


@dataclass(frozen=True)
class Workload:
    """A kind of run.

    Args:
        prepare: makes a run of a fresh model; the last argument is the phase of training.
        what: what the time is of, for the table.
        takes_batch: whether there is one for every `--batch-size`.
        takes_beam: whether there is one for every `--beam`.
        phases: the phases in which a model is measured; none where it does not apply to it.
    """

    prepare: Callable[[nn.Module, Settings, Case, str], Run]
    what: str
    takes_batch: bool = False
    takes_beam: bool = False
    phases: Callable[[Facts], tuple[str, ...]] = lambda facts: ("",)


def encoder(model: nn.Module, settings: Settings, case: Case, phase: str) -> Run:
    """The encoder as generation runs it."""
    model = _for_inference(model, settings)
    batch = to_device(batch_of(settings, case.batch or 1), settings.device)
    inputs = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]

    @torch.no_grad()
    def call() -> None:
        model.encoder(*inputs)

    return Run(call, tokens=int(inputs[1].sum()))


def decoder_step(model: nn.Module, settings: Settings, case: Case, phase: str) -> Run:
    """A word for every hypothesis, with caches and their reordering, but without the search: mean over a sentence."""
    model = _for_inference(model, settings)
    beam = case.beam or 1
    batch = to_device(batch_of(settings, case.batch or 1), settings.device)
    hypotheses = beam * (case.batch or 1)
    steps = settings.output_length or settings.length
    words = torch.randint(4, settings.words[1], (hypotheses, steps + 1), generator=torch.Generator().manual_seed(0))
    words = words.to(settings.device)
    # every hypothesis of a sentence goes on from its neighbour
    order = torch.arange(hypotheses, device=settings.device).view(-1, beam).roll(1, dims=1).flatten()
    with torch.no_grad():
        encoded = model.encoder(batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"])
        every = torch.arange(case.batch or 1, device=settings.device).repeat_interleave(beam)
        encoded = model.encoder.reorder_encoder_out(encoded, every)

    @torch.no_grad()
    def call() -> None:
        caches: dict[str, Any] = {}
        for step in range(1, steps + 1):
            if step > 1:
                model.decoder.reorder_incremental_state_scripting(caches, order)
            model.decoder(words[:, :step], encoder_out=encoded, incremental_state=caches)

    return Run(call, times=steps, tokens=steps * hypotheses)


def generate(model: nn.Module, settings: Settings, case: Case, phase: str) -> Run:
    """Encoder and beam search by fairseq's own generator."""
    model = _for_inference(model, settings)
    length = settings.output_length
    limits = {"max_len_b": 200} if length is None else {"max_len_b": length, "min_len": length}
    generator = SequenceGenerator([model], dictionaries_of(model)[1], beam_size=case.beam or 1, max_len_a=0, **limits)
    batch = to_device(batch_of(settings, case.batch or 1), settings.device)
    start = batch.get(PREFIX)
    found: list[Any] = generator.generate([model], batch, prefix_tokens=start)

    def call() -> None:
        generator.generate([model], batch, prefix_tokens=start)

    return Run(call, tokens=sum(len(hypotheses[0]["tokens"]) for hypotheses in found))


def training_update(model: nn.Module, settings: Settings, case: Case, phase: str) -> Run:
    """Forward, label-smoothed loss, backward, clipping, Adam: fairseq's Trainer."""
    trainer = trainer_of(model, settings)
    batch = batch_of_tokens(settings)
    return Run(lambda: update(trainer, batch, phase == "heads fixed"), tokens=batch["ntokens"])


def validation(model: nn.Module, settings: Settings, case: Case, phase: str) -> Run:
    """The loss of a batch in evaluation mode; a model that is choosing heads is not rewritten for it."""
    trainer = trainer_of(model, settings)
    batch = to_device(batch_of_tokens(settings), settings.device)
    criterion, task, measured = trainer.criterion, trainer.task, trainer.model
    return Run(lambda: task.valid_step(batch, measured, criterion), tokens=batch["ntokens"])


def mask(model: nn.Module, settings: Settings, case: Case, phase: str) -> Run:
    """Drawing the gates of all heads, forward and backward, in mid-cooldown."""
    assert isinstance(model, DspTransformerModel)
    gates = model.to(settings.device).train().head_gates
    assert gates is not None
    gates.set_num_updates((gates.method.fixes_at or 0) // 2)
    gradient = torch.linspace(-1, 1, gates.importance.numel(), device=settings.device)

    def call() -> None:
        for _ in range(_DRAWS):
            gates.importance.grad = None
            gates.gates().backward(gradient)

    return Run(call, times=_DRAWS)


WORKLOADS = {
    "encoder": Workload(encoder, "a batch", takes_batch=True),
    "decoder-step": Workload(decoder_step, "a step", takes_batch=True, takes_beam=True),
    "generate": Workload(generate, "a batch", takes_batch=True, takes_beam=True),
    "update": Workload(training_update, "an update", phases=lambda facts: facts.phases),
    "validation": Workload(validation, "a batch"),
    "mask": Workload(mask, "a draw", phases=lambda facts: ("",) if facts.gated else ()),
}


def _for_inference(model: nn.Module, settings: Settings) -> nn.Module:
    """The model as fairseq-generate prepares it: with gates, the chosen heads remain."""
    model = model.to(dtype=getattr(torch, settings.dtype)).to(settings.device)
    model.prepare_for_inference_(OmegaConf.create({"generation": {"print_alignment": None, "replace_unk": None}}))
    return model  # not model.eval(), which returns nothing from here on
