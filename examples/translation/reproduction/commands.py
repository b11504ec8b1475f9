"""The commands that runs are made of, in words. Called by `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .presets import Preset, Schedule
from .sizes import Shape
from .steps import DATA, PLUGIN, Step


@dataclass(frozen=True)
class Setup:
    """What all runs share."""

    preset: Preset
    schedule: Schedule
    source: str
    target: str
    remove_bpe: str
    gpu: bool
    precision: str
    words: tuple[int, int]  # of the two dictionaries
    raw: bool = False

    @property
    def data(self) -> list[str]:
        """The words that give fairseq's commands the data."""
        languages = ["--source-lang", self.source, "--target-lang", self.target]
        return [DATA, *languages, *(["--dataset-impl", "raw"] if self.raw else [])]


class Commands:
    """Trains, cuts, scores and translates with the setup of a call."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.preset = setup, setup.preset

    def score(self, checkpoint: str, output: str, options: Sequence[str], seed: int) -> Step:
        words = ["fairseq-dsp-score", DATA, "--path", checkpoint, *options]
        words += ["--seed", seed, "--output", output, *([] if self.setup.gpu else ["--cpu"])]
        return Step("score", text(words), output)

    def ours(self, selection: str, budget: int | str) -> list[Any]:
        words = ["--task", "translation_dsp", "--unpruned-heads", budget, *self.architecture(True)]
        words += ["--criterion", "label_smoothed_cross_entropy_dsp", "--optimizer", "dsp_adam"]
        return [*words, "--head-selection", selection]

    def stock(self) -> list[str]:
        return ["--task", "translation", "--criterion", "label_smoothed_cross_entropy", "--optimizer", "adam"]

    def architecture(self, ours: bool, shape: Shape | None = None) -> list[Any]:
        """Words of the preset's model, or of one of another shape."""
        words: list[Any] = ["--arch", ("dsp_" if ours else "") + self.preset.architecture]
        shape = shape or self.preset.shape
        if shape is not None:
            layers, heads, width, inner = shape
            for side in ("encoder", "decoder"):
                words += [f"--{side}-layers", layers, f"--{side}-attention-heads", heads]
                words += [f"--{side}-embed-dim", width, f"--{side}-ffn-embed-dim", inner]
                words += [f"--{side}-normalize-before"] if self.preset.pre_norm else []
        return words

    def train(self, name: str, parts: Sequence[Any], seed: int, epochs: int, warmup: int) -> Step:
        """A training from the start."""
        return self._training(name, parts, seed, epochs, self._rate(self.preset.learning_rate, epochs, warmup))

    def finetune(self, name: str, parts: Sequence[Any], seed: int) -> Step:
        """A shorter training of what is trained already."""
        preset = self.preset
        rate = self._rate(
            preset.learning_rate * preset.finetune_rate, preset.finetune, self.setup.schedule.finetune_warmup
        )
        return self._training(name, parts, seed, preset.finetune, rate)

    def _rate(self, peak: float, epochs: int, warmup: int) -> list[Any]:
        """Learning rate and its schedule."""
        words: list[Any] = ["--lr", f"{peak:g}", "--lr-scheduler"]
        if self.preset.decays:
            words += ["polynomial_decay", "--total-num-update", epochs * self.setup.schedule.updates_an_epoch]
        else:
            words += ["inverse_sqrt"]
        return [*words, "--warmup-updates", warmup]

    def _training(self, name: str, parts: Sequence[Any], seed: int, epochs: int, rate: Sequence[Any]) -> Step:
        preset, setup = self.preset, self.setup
        words = ["fairseq-train", *setup.data]
        words += ["--user-dir", PLUGIN, *parts, "--share-decoder-input-output-embed", "--label-smoothing", "0.1"]
        words += ["--adam-betas", "(0.9, 0.98)", *rate]
        words += ["--dropout", preset.dropout, "--weight-decay", "0.0001"]
        words += ["--max-tokens", preset.max_tokens, "--max-epoch", epochs, "--seed", seed]
        words += ["--required-batch-size-multiple", 1, "--no-epoch-checkpoints", "--no-progress-bar"]
        words += ["--log-format", "simple", "--log-interval", 100, "--save-dir", f"runs/{name}/checkpoints"]
        if preset.select == "bleu":
            words += ["--eval-bleu", "--eval-bleu-args", '{"beam": 5, "max_len_a": 1.2, "max_len_b": 10}']
            words += ["--eval-bleu-detok", "moses", "--eval-bleu-remove-bpe", setup.remove_bpe]
            words += ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]
        words += [f"--{setup.precision}"] if setup.precision != "fp32" else []
        words += ["--num-workers", 2] if setup.gpu else ["--cpu", "--num-workers", 0]
        return Step("train", text(words))

    def prune(self, source: str, target: str, *options: Any) -> Step:
        return Step("prune", text(["fairseq-dsp-prune", source, target, *options]), target)

    def generate(self, name: str, checkpoint: str) -> Step:
        setup = self.setup
        words = ["fairseq-generate", *setup.data]
        words += ["--user-dir", PLUGIN, "--path", checkpoint, "--beam", self.preset.beam]
        words += ["--remove-bpe", setup.remove_bpe]
        words += ["--batch-size", 512 if setup.gpu else 128, "--required-batch-size-multiple", 1, "--num-workers", 0]
        words += [] if setup.gpu else ["--cpu"]
        return Step("generate", text(words))


def text(words: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(word) for word in words)
