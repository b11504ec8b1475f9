"""The runs, each a list of commands, and which runs need which: pure functions of preset, data and options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fairseq_dsp.config import AUTO
from fairseq_dsp.errors import Refusal
from fairseq_dsp.heads import HeadGrid, HeadLayout

from .presets import LEARNED, METHODS, Preset, Schedule
from .steps import DATA, PLUGIN, Run, Step

# The scores that methods cut a finished model by: name -> options of fairseq-dsp-score. Iteratively as the paper's authors do.
SCORES = {
    "gradient": ("--scorer", "gradient"),
    "gradient-iterative": ("--scorer", "gradient", "--iterative", "4"),
    "random": ("--scorer", "random"),
}


@dataclass(frozen=True)
class Settings:
    """What all runs share."""

    preset: Preset
    schedule: Schedule
    source: str
    target: str
    remove_bpe: str
    gpu: bool
    precision: str
    raw: bool = False

    @property
    def data(self) -> list[str]:
        """The words that give fairseq's commands the data."""
        languages = ["--source-lang", self.source, "--target-lang", self.target]
        return [DATA, *languages, *(["--dataset-impl", "raw"] if self.raw else [])]


def parse_budgets(words: Sequence[str], total: int) -> list[int | str]:
    """Budgets as counts: `18`, a share of the heads (`0.25`, `1/4`), or `auto` for hard-concrete alone.

    Raises:
        Refusal: one is none, or the model has fewer heads; all reasons.
    """
    budgets: list[int | str] = []
    reasons = []
    for word in words:
        if word == AUTO:
            budgets.append(AUTO)
            continue
        try:
            count = int(word) if re.fullmatch(r"-?\d+", word) else round(Fraction(word) * total)
        except (ValueError, ZeroDivisionError):
            reasons.append(f"`--budgets` must be counts, shares such as 0.25 or 1/4, or auto, but one is {word!r}.")
            continue
        if not 0 <= count <= total:
            reasons.append(f"`--budgets` must be between 0 and {total} (the heads of this model), but one is {word}.")
        budgets.append(count)
    if reasons:
        raise Refusal(*reasons)
    return list(dict.fromkeys(budgets))


def plan(settings: Settings, methods: Sequence[str], budgets: Sequence[int | str], seeds: Sequence[int]) -> list[Run]:
    """Every run, those first that others need.

    Raises:
        Refusal: an unknown method.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise Refusal(f"`--methods` must be among {', '.join(METHODS)}, but {', '.join(unknown)} is not.")
    maker = _Maker(settings)
    runs: dict[str, Run] = {}

    def add(run: Run) -> None:
        runs.setdefault(run.name, run)

    pruned = [method for method in methods if method != "dense"]
    if set(budgets) == {AUTO} and "hard-concrete" not in methods:
        raise Refusal("`--budgets` must be counts or shares where `--methods` has no hard-concrete, but is auto.")
    for seed in seeds:
        if any(method in ("dense", "pipelined") or scores_of(method) for method in methods):
            add(maker.dense(seed))
    for seed in seeds:
        for name in dict.fromkeys(scores for method in pruned if (scores := scores_of(method))):
            add(maker.scores(name, seed))
        for budget in budgets:
            for method in pruned:
                if method == "hard-concrete":
                    add(maker.hard_concrete(budget, seed))
                if budget != AUTO or method == "hard-concrete":
                    add(maker.pruned(method, budget, seed))
    return list(runs.values())


def scores_of(method: str) -> str | None:
    """The scores that a method cuts a finished model by; None where it does not."""
    name = method.removesuffix("-finetune")
    return name if name in SCORES else None


class _Maker:
    def __init__(self, settings: Settings) -> None:
        self.settings, self.preset, self.schedule = settings, settings.preset, settings.schedule
        layers = (self.preset.heads_per_layer,) * self.preset.layers
        self.full = HeadLayout.full(HeadGrid(layers, layers, layers))

    def dense(self, seed: int) -> Run:
        name = f"dense-s{seed}"
        folder = f"runs/{name}/checkpoints"
        # stock fairseq's command line takes --bf16 for TPUs; our architecture does not
        ours = ["--head-layout", str(self.full)] if self.settings.precision == "bf16" else None
        parts = [*self._stock(), *self._architecture(ours is not None), *(ours or [])]
        train = self._train(name, parts, seed, self.preset.epochs, self.schedule.warmup)
        best = f"{folder}/checkpoint_best.pt"
        return Run(name, "dense", self.preset.total_heads, seed, (train, self._generate(name, best)), deployed=best)

    def scores(self, scores: str, seed: int) -> Run:
        name, needed = f"{scores}-scores-s{seed}", f"dense-s{seed}"
        output = f"runs/{name}/scores.json"
        words = ["fairseq-dsp-score", DATA, "--path", f"runs/{needed}/checkpoints/checkpoint_best.pt", *SCORES[scores]]
        words += ["--seed", seed, "--output", output, *([] if self.settings.gpu else ["--cpu"])]
        return Run(name, scores, None, seed, (Step("score", _text(words), output),), (needed,))

    def hard_concrete(self, budget: int | str, seed: int) -> Run:
        """The one training for all budgets of a penalty and a seed: no gate depends on K."""
        penalty = self.preset.l0_penalty(budget)
        name = f"hard-concrete-s{seed}" if penalty is None else f"hard-concrete-l{penalty:g}-s{seed}"
        parts = [*self._ours("hard-concrete", AUTO), *self.schedule.importance[:2]]
        parts += ["--l0-penalty", penalty] if penalty is not None else []
        train = self._train(name, parts, seed, self.preset.epochs, self.schedule.warmup)
        return Run(name, "hard-concrete", None, seed, (train,))

    def pruned(self, method: str, budget: int | str, seed: int) -> Run:
        name = f"{method}-k{budget}-s{seed}"
        if method == "hard-concrete":
            return self._cut(name, budget, seed)
        if method in LEARNED or method == "fixed":
            return self._trained(name, method, budget, seed)
        small = f"runs/{name}/pruned.pt"
        dense, scores = f"dense-s{seed}", f"{scores_of(method)}-scores-s{seed}"
        cut = self._prune(
            f"runs/{dense}/checkpoints/checkpoint_best.pt", small, "--scores", f"runs/{scores}/scores.json",
            "--unpruned-heads", budget,
        )  # fmt: skip
        steps, deployed = [cut], small
        if method.endswith("-finetune"):
            parts = [*self._stock(), *self._architecture(True), "--head-layout", small, "--finetune-from-model", small]
            steps.append(
                self._train(
                    name, parts, seed, self.preset.finetune, self.schedule.finetune_warmup, self.preset.finetune_rate
                )
            )
            deployed = f"runs/{name}/checkpoints/checkpoint_best.pt"
        steps.append(self._generate(name, deployed))
        return Run(name, method, budget, seed, tuple(steps), (dense, scores), deployed)

    def _cut(self, name: str, budget: int | str, seed: int) -> Run:
        needed, small = self.hard_concrete(budget, seed).name, f"runs/{name}/pruned.pt"
        # the number of heads falls throughout the training: the best checkpoint is an early one with most of them
        trained = f"runs/{needed}/checkpoints/checkpoint_last.pt"
        choice = [] if budget == AUTO else ["--unpruned-heads", budget]
        steps = (self._prune(trained, small, *choice), self._generate(name, small))
        method = "hard-concrete" if budget != AUTO else "hard-concrete-auto"
        return Run(name, method, budget, seed, steps, (needed,), small, needed)

    def _trained(self, name: str, method: str, budget: int | str, seed: int) -> Run:
        parts = self._ours("dsp" if method == "pipelined" else method, budget)
        importance, schedule, needs, epochs = self.schedule.importance, self.schedule, (), self.preset.epochs
        cooldown, warmup = schedule.cooldown, schedule.warmup
        if method == "pipelined":
            needs = (f"dense-s{seed}",)
            dense = f"runs/{needs[0]}/checkpoints/checkpoint_best.pt"
            parts += ["--pipelined", "--finetune-from-model", dense]
            parts += ["--head-layout", dense] if self.settings.precision == "bf16" else []
            epochs, cooldown, warmup = self.preset.pipelined, schedule.pipelined_cooldown, 1
        if method in ("dsp", "pipelined"):
            parts += [*importance, "--cooldown-updates", cooldown]
        elif method == "ste":
            parts += [*importance[:2], "--cooldown-updates", cooldown]
        small = f"runs/{name}/pruned.pt"
        train = self._train(name, parts, seed, epochs, warmup)
        trained = f"runs/{name}/checkpoints/checkpoint_best.pt"
        if method == "fixed":  # has no other heads to remove
            return Run(name, method, budget, seed, (train, self._generate(name, trained)), needs, trained)
        steps = (train, self._prune(trained, small), self._generate(name, small))
        return Run(name, method, budget, seed, steps, needs, small)

    def _ours(self, selection: str, budget: int | str) -> list[Any]:
        words = ["--task", "translation_dsp", "--unpruned-heads", budget, *self._architecture(True)]
        words += ["--criterion", "label_smoothed_cross_entropy_dsp", "--optimizer", "dsp_adam"]
        return [*words, "--head-selection", selection]

    def _stock(self) -> list[str]:
        return ["--task", "translation", "--criterion", "label_smoothed_cross_entropy", "--optimizer", "adam"]

    def _architecture(self, ours: bool) -> list[Any]:
        words: list[Any] = ["--arch", ("dsp_" if ours else "") + self.preset.architecture]
        if self.preset.shape is not None:
            layers, heads, width, inner = self.preset.shape
            for side in ("encoder", "decoder"):
                words += [f"--{side}-layers", layers, f"--{side}-attention-heads", heads]
                words += [f"--{side}-embed-dim", width, f"--{side}-ffn-embed-dim", inner]
                words += [f"--{side}-normalize-before"] if self.preset.pre_norm else []
        return words

    def _train(self, name: str, parts: Sequence[Any], seed: int, epochs: int, warmup: int, rate: float = 1.0) -> Step:
        preset, settings = self.preset, self.settings
        words = ["fairseq-train", *settings.data]
        words += ["--user-dir", PLUGIN, *parts, "--share-decoder-input-output-embed", "--label-smoothing", "0.1"]
        words += [
            "--adam-betas",
            "(0.9, 0.98)",
            "--lr",
            f"{preset.learning_rate * rate:g}",
            "--lr-scheduler",
            "inverse_sqrt",
        ]
        words += ["--warmup-updates", warmup, "--dropout", preset.dropout, "--weight-decay", "0.0001"]
        words += ["--max-tokens", preset.max_tokens, "--max-epoch", epochs, "--seed", seed]
        words += ["--required-batch-size-multiple", 1, "--no-epoch-checkpoints", "--no-progress-bar"]
        words += ["--log-format", "simple", "--log-interval", 100, "--save-dir", f"runs/{name}/checkpoints"]
        if preset.select == "bleu":
            words += ["--eval-bleu", "--eval-bleu-args", '{"beam": 5, "max_len_a": 1.2, "max_len_b": 10}']
            words += ["--eval-bleu-detok", "moses", "--eval-bleu-remove-bpe", settings.remove_bpe]
            words += ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]
        words += [f"--{settings.precision}"] if settings.precision != "fp32" else []
        words += ["--num-workers", 2] if settings.gpu else ["--cpu", "--num-workers", 0]
        return Step("train", _text(words))

    def _prune(self, source: str, target: str, *options: Any) -> Step:
        return Step("prune", _text(["fairseq-dsp-prune", source, target, *options]), target)

    def _generate(self, name: str, checkpoint: str) -> Step:
        settings = self.settings
        words = ["fairseq-generate", *settings.data]
        words += [
            "--user-dir",
            PLUGIN,
            "--path",
            checkpoint,
            "--beam",
            self.preset.beam,
            "--remove-bpe",
            settings.remove_bpe,
        ]
        words += ["--batch-size", 512 if settings.gpu else 128, "--required-batch-size-multiple", 1, "--num-workers", 0]
        words += [] if settings.gpu else ["--cpu"]
        return Step("generate", _text(words))


def _text(words: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(word) for word in words)
