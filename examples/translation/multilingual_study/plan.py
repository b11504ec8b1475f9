"""The runs of a study, as commands. Names are `DIRECTION-sSEED-ARM`; paths are seen from the output folder.

A direction is one-to-many (`o2m`) or many-to-one (`m2o`). Its multilingual model is trained, scored pair by pair, cut by a ranking,
fine-tuned and tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from reproduction.steps import PLUGIN, Run, Step

from .presets import Preset
from .text import DATA, HALVES

TASK = "translation_multi_simple_epoch"
DIRECTIONS = ("o2m", "m2o")
MERGES = ("sum", "max", "worst")
RANDOM, LOWEST, MAGNITUDE, JOINT, ALONE = "random", "lowest", "magnitude", "joint-dsp", "bilingual-dsp"
THIRD = "third"  # of the heads removed, and nothing fine-tuned
SPECIALIST, WHOLE = "specialist", "whole"  # without that third, or with all heads, trained on for one pair


@dataclass(frozen=True)
class Study:
    """What is asked for.

    Attributes:
        pairs: as the text names them, the shared language in each.
        hub: the shared language.
        low: the low-resource pair.
        scorer: of fairseq-dsp-score.
    """

    preset: Preset
    pairs: tuple[str, ...]
    hub: str
    low: str
    scorer: str = "gradient"
    gpu: bool = False

    def others(self) -> list[str]:
        """The languages beside the hub, in the order of the pairs."""
        return [next(side for side in pair.split("-") if side != self.hub) for pair in self.pairs]

    def directed(self, direction: str) -> list[str]:
        """The pairs of a direction."""
        return [f"{self.hub}-{other}" if direction == "o2m" else f"{other}-{self.hub}" for other in self.others()]

    def low_pair(self, direction: str) -> str:
        return self.directed(direction)[self.pairs.index(self.low)]


class Planner:
    """Makes the runs of one direction and one seed."""

    def __init__(self, study: Study, direction: str, seed: int) -> None:
        self.study, self.preset, self.direction, self.seed = study, study.preset, direction, seed
        self.pairs = study.directed(direction)
        self.base, self.low = f"{direction}-s{seed}", study.low_pair(direction)
        self.dense = f"runs/{self.base}-dense/checkpoints/checkpoint_best.pt"

    def first(self) -> list[Run]:
        """The multilingual model, its rankings, and the trainings that need neither."""
        return [self._dense(), self._rankings(), self._joint(), *map(self._alone, self.pairs)]

    def arms(self, lowest: Callable[[str, int], str] | None) -> list[Run]:
        """The model cut by each ranking, fine-tuned and tested; and with two thirds of its heads, as it is.

        Args:
            lowest: the layout of so many heads that matter least to a pair; None before scores are there.
        """
        runs = []
        for pair in self.pairs:  # the matrix: chosen and fine-tuned on one pair, tested on all
            runs.append(self._cut(pair, [pair], self.pairs, ["--scores", self._scores(pair)]))
            if pair != self.low:  # the low-resource pair with the ranking of a donor
                runs.append(self._cut(pair, [self.low], [self.low], ["--scores", self._scores(pair)]))
        for number in range(1, self.preset.randoms + 1):
            step = self._drawn(f"{RANDOM}{number}-on-{self.low}", RANDOM, "--seed", number)
            runs.append(self._cut(f"{RANDOM}{number}", [self.low], [self.low], ["--scores", step.output], [step]))
        step = self._drawn(f"{MAGNITUDE}-on-{self.low}", MAGNITUDE)
        runs.append(self._cut(MAGNITUDE, [self.low], [self.low], ["--scores", step.output], [step]))
        if lowest is not None:
            runs.append(self._cut(LOWEST, [self.low], [self.low], ["--layout", lowest(self.low, self.preset.kept)]))
        for name in ("all", *MERGES):  # one small model for all pairs
            runs.append(self._cut(name, self.pairs, self.pairs, ["--scores", self._scores(name)]))
        return runs + self._thirds(lowest)

    def _thirds(self, lowest: Callable[[str, int], str] | None) -> list[Run]:
        """A third of the heads gone: those that matter least to the pair, random ones, and those that matter most."""
        kept, runs = self.preset.most_kept, []
        for pair in self.pairs:
            choice = ["--scores", self._scores(pair), "--unpruned-heads", kept]
            runs.append(self._bare(THIRD, pair, [pair], choice))
            if lowest is not None:
                runs.append(self._bare(f"{THIRD}-{LOWEST}", pair, [pair], ["--layout", lowest(pair, kept)]))
        for number in range(1, self.preset.randoms + 1):
            step = self._drawn(f"{THIRD}-{RANDOM}{number}", RANDOM, "--seed", number)
            choice = ["--scores", step.output, "--unpruned-heads", kept]
            runs.append(self._bare(f"{THIRD}-{RANDOM}{number}", "", self.pairs, choice, [step]))
        return runs

    def specialists(self) -> list[Run]:
        """The model without the third of its heads that matters least to a pair, trained on for it; and with all, trained on likewise."""
        runs = []
        for pair in self.pairs:
            choice = ["--scores", self._scores(pair), "--unpruned-heads", self.preset.most_kept]
            runs += [self._special(SPECIALIST, pair, choice), self._special(WHOLE, pair, [])]
        return runs

    def _special(self, arm: str, pair: str, choice: Iterable[Any]) -> Run:
        name, start, steps, given = f"{self.base}-{arm}-on-{pair}", self.dense, [], []
        if choice:
            start = f"runs/{name}/small.pt"
            steps = [self._step("prune", "fairseq-dsp-prune", self.dense, start, *choice, "--force", output=start)]
            given = ["--head-layout", start]
        given += ["--finetune-from-model", start]
        half, soon = self.preset.rate / 2, max(1, self.preset.warmup // 5)
        words = self._training(name, [pair], self.preset.special, half, *given, stock=not choice, warmup=soon)
        needs = (f"{self.base}-dense", f"{self.base}-scores")
        return self._run(
            name, arm, [*steps, Step("train", words)], f"runs/{name}/checkpoints/checkpoint_best.pt", [pair], needs
        )

    def _dense(self) -> Run:
        name = f"{self.base}-dense"
        words = self._training(name, self.pairs, self.preset.epochs, self.preset.rate, stock=True)
        return self._run(name, "dense", [Step("train", words)], self.dense, self.pairs)

    def _rankings(self) -> Run:
        """Scores of every pair, of all, of halves, and merged ones."""
        folder, name = f"runs/{self.base}-scores", f"{self.base}-scores"
        common = ["--path", self.dense, "--scorer", self.study.scorer, "--batches", self.preset.batches]
        common += ["--max-tokens", self.preset.max_tokens, "--seed", self.seed, "--force", *self._device()]
        several = ["--lang-pairs", ",".join(self.pairs)]
        steps = [self._step("pairs", "fairseq-dsp-score", DATA, *common, *several, "--output", f"{folder}/pairs")]
        for half in HALVES:
            steps.append(self._step(half, "fairseq-dsp-score", half, *common, *several, "--output", f"{folder}/{half}"))
        # as many batches as the pairs have together
        whole = [*common, "--batches", self.preset.batches * len(self.pairs), "--output", self._scores("all")]
        steps.append(self._step("all", "fairseq-dsp-score", DATA, *whole, output=self._scores("all")))
        inputs = [self._scores(pair) for pair in self.pairs]
        for by in MERGES:
            merged = self._scores(by)
            steps.append(self._step(by, "fairseq-dsp-merge", merged, *inputs, "--by", by, "--force", output=merged))
        return Run(name, "scores", None, self.seed, tuple(steps), (f"{self.base}-dense",))

    def _joint(self) -> Run:
        return self._learned(JOINT, self.pairs)

    def _alone(self, pair: str) -> Run:
        return self._learned(f"{ALONE}-{pair}", [pair])

    def _learned(self, arm: str, pairs: Sequence[str]) -> Run:
        """A model that has K heads, chosen while it is trained from the start."""
        name = f"{self.base}-{arm}"
        trained, small = f"runs/{name}/checkpoints/checkpoint_best.pt", f"runs/{name}/small.pt"
        words = self._training(name, pairs, self.preset.epochs, self.preset.rate, "--unpruned-heads", self.preset.kept)
        cut = self._step("prune", "fairseq-dsp-prune", trained, small, "--force", output=small)
        return self._run(name, arm, [Step("train", words), cut], small, pairs)

    def _cut(self, arm: str, tuned: Sequence[str], tested: Sequence[str], choice: Iterable[Any], first: Sequence[Step] = ()) -> Run:  # fmt: skip
        name = f"{self.base}-{arm}-on-{'all' if len(tuned) > 1 else tuned[0]}"
        small, best = f"runs/{name}/small.pt", f"runs/{name}/checkpoints/checkpoint_best.pt"
        options = [] if arm == LOWEST else ["--unpruned-heads", self.preset.kept]
        cut = self._step("prune", "fairseq-dsp-prune", self.dense, small, *choice, *options, "--force", output=small)
        given = ["--head-layout", small, "--finetune-from-model", small]
        words = self._training(name, tuned, self.preset.tuning, self.preset.rate / 10, *given)
        needs = (f"{self.base}-dense", f"{self.base}-scores")
        return self._run(name, arm, [*first, cut, Step("train", words)], best, tested, needs)

    def _bare(
        self, arm: str, pair: str, tested: Sequence[str], choice: Iterable[Any], first: Sequence[Step] = ()
    ) -> Run:
        name = f"{self.base}-{arm}{pair and '-'}{pair}"
        small = f"runs/{name}/small.pt"
        cut = self._step("prune", "fairseq-dsp-prune", self.dense, small, *choice, "--force", output=small)
        needs = (f"{self.base}-dense", f"{self.base}-scores")
        return self._run(name, arm, [*first, cut], small, tested, needs)

    def _drawn(self, name: str, scorer: str, *extra: Any) -> Step:
        """Scores that read no data, in a file of the run of that name."""
        scores = f"runs/{self.base}-{name}/{scorer}.json"
        return self._step("score", "fairseq-dsp-score", "--path", self.dense, "--scorer", scorer, *extra, "--output", scores, "--force", output=scores)  # fmt: skip

    def _run(self, name: str, arm: str, steps: Sequence[Step], deployed: str, tested: Sequence[str], needs: tuple[str, ...] = ()) -> Run:  # fmt: skip
        generating = [self._generate(deployed, pair) for pair in tested]
        preset = self.preset
        fewer = preset.most_kept if arm.startswith((THIRD, SPECIALIST)) else preset.kept
        kept = preset.total if arm in ("dense", WHOLE) else fewer
        return Run(name, arm, kept, self.seed, (*steps, *generating), needs, deployed)

    def _scores(self, name: str) -> str:
        """A ranking's file: of a pair, of all data, or merged."""
        folder = f"runs/{self.base}-scores"
        return f"{folder}/pairs/scores.{name}.json" if "-" in name else f"{folder}/{name}.json"

    def _languages(self) -> list[str]:
        token = "tgt" if self.direction == "o2m" else "src"
        return ["--langs", ",".join([self.study.hub, *self.study.others()]), "--encoder-langtok", token]

    def _training(self, name: str, pairs: Sequence[str], epochs: int, rate: float, *extra: Any, stock: bool = False, warmup: int | None = None) -> tuple[str, ...]:  # fmt: skip
        preset, learns = self.preset, "--unpruned-heads" in extra
        task, arch = (TASK, "transformer") if stock else (f"{TASK}_dsp", "dsp_transformer")
        words: list[Any] = ["fairseq-train", DATA, "--user-dir", PLUGIN, "--task", task, "--arch", arch]
        words += ["--lang-pairs", ",".join(pairs), *self._languages()]
        words += [
            "--criterion",
            "label_smoothed_cross_entropy" + ("_dsp" if learns else ""),
            "--label-smoothing",
            "0.1",
        ]
        words += ["--optimizer", "dsp_adam" if learns else "adam", "--adam-betas", "(0.9, 0.98)"]
        for side in ("encoder", "decoder"):
            shape = f"--{side}-layers {preset.layers} --{side}-attention-heads {preset.heads} --{side}-normalize-before"
            words += f"{shape} --{side}-embed-dim {preset.width} --{side}-ffn-embed-dim {preset.inner}".split()
        warm = preset.warmup if warmup is None else warmup
        words += f"--share-all-embeddings --dropout 0.1 --weight-decay 0.0001 --lr {rate:g}".split()
        words += f"--lr-scheduler inverse_sqrt --warmup-updates {warm} --max-tokens {preset.max_tokens}".split()
        words += (
            f"--max-epoch {epochs} --seed {self.seed} --sampling-method temperature --sampling-temperature 2".split()
        )
        words += "--required-batch-size-multiple 1 --no-epoch-checkpoints --no-progress-bar --log-interval 100".split()
        words += ["--save-dir", f"runs/{name}/checkpoints", "--num-workers", 0, *self._device(), *extra]
        words += [] if stock else ["--best-checkpoint-metric", "nll_loss_mean"]
        return tuple(map(str, words))

    def _generate(self, checkpoint: str, pair: str) -> Step:
        source, target = pair.split("-")
        words = [DATA, "--user-dir", PLUGIN, "--task", TASK, "--lang-pairs", ",".join(self.pairs)]
        words += [*self._languages(), "-s", source, "-t", target, "--path", checkpoint, "--beam", 4]
        words += ["--batch-size", 128, "--required-batch-size-multiple", 1, "--num-workers", 0, *self._device()]
        words += ["--remove-bpe", "sentencepiece"] if self.preset.words else []
        return self._step(f"generate.{pair}", "fairseq-generate", *words)

    def _device(self) -> list[str]:
        return [] if self.study.gpu else ["--cpu"]

    def _step(self, name: str, *words: Any, output: str | None = None) -> Step:
        return Step(name, tuple(map(str, words)), output)
