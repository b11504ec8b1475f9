"""The runs, each a list of commands, and which runs need which: pure functions of preset, data and options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from fairseq_dsp.config import AUTO
from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.layout import Grid, Layout

from .commands import Commands, Setup
from .presets import DENSE_SMALL, FROM_DENSE, LEARNED, METHODS, SHUFFLES, STAGED, importance_options
from .sizes import Shape, small_shape
from .steps import DATA, Run

# The scores that methods cut a finished model by: name -> options of fairseq-dsp-score. Iteratively as the paper's authors do.
SCORES = {
    "gradient": ("--scorer", "gradient"),
    "gradient-iterative": ("--scorer", "gradient", "--iterative", "4"),
    "random": ("--scorer", "random"),
    "fisher": ("--scorer", "fisher"),
    "joint-fisher": ("--scorer", "joint-fisher"),
}
RESCALED = "-rescaled"


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


def plan(setup: Setup, methods: Sequence[str], budgets: Sequence[int | str], seeds: Sequence[int]) -> list[Run]:
    """Every run, those first that others need, and all of a seed before those of the next.

    Raises:
        Refusal: an unknown method.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise Refusal(f"`--methods` must be among {', '.join(METHODS)}, but {', '.join(unknown)} is not.")
    maker = _Maker(setup)
    runs: dict[str, Run] = {}

    def add(run: Run) -> None:
        runs.setdefault(run.name, run)

    pruned = [method for method in methods if method != "dense"]
    if set(budgets) == {AUTO} and "hard-concrete" not in methods:
        raise Refusal("`--budgets` must be counts or shares where `--methods` has no hard-concrete, but is auto.")
    starts = ("dense", "pipelined", *FROM_DENSE, STAGED)
    for seed in seeds:
        if any(method in starts or scores_of(method) for method in methods):
            add(maker.dense(seed))
        for name in dict.fromkeys(scores for method in pruned if (scores := scores_of(method))):
            add(maker.scores(name, seed))
        for budget in budgets:
            for method in pruned:
                if (chosen := SHUFFLES.get(method)) is not None and budget != AUTO:
                    if (scores := scores_of(chosen)) is not None:
                        add(maker.scores(scores, seed))
                    add(maker.pruned(chosen, budget, seed))
                if method == "hard-concrete":
                    add(maker.hard_concrete(budget, seed))
                if budget != AUTO or method == "hard-concrete":
                    add(maker.pruned(method, budget, seed))
    return list(runs.values())


def plan_preset(setup: Setup, budgets: Sequence[int | str]) -> list[Run]:
    """The preset's own methods and seeds: those that decide with all seeds, after two seeds of all methods."""
    preset = setup.preset
    if preset.deciding is None:
        return plan(setup, preset.methods, budgets, preset.seeds)
    return plan(setup, preset.methods, budgets, preset.seeds[:2]) + plan(
        setup, preset.deciding, budgets, preset.seeds[2:]
    )


def scores_of(method: str) -> str | None:
    """The scores that a method cuts a finished model by; None where it does not."""
    name = method.removesuffix("-finetune").removesuffix(RESCALED)
    return name if name in SCORES else None


class _Maker:
    def __init__(self, setup: Setup) -> None:
        self.setup, self.preset, self.schedule = setup, setup.preset, setup.schedule
        self.commands = Commands(setup)
        self.full = Layout.full(Grid.even(self.preset.layers, self.preset.heads_per_layer))

    def dense(self, seed: int) -> Run:
        return self._dense(f"dense-s{seed}", "dense", self.preset.total_heads, seed)

    def _dense(self, name: str, method: str, budget: int, seed: int, shape: Shape | None = None) -> Run:
        folder = f"runs/{name}/checkpoints"
        # stock fairseq's command line takes --bf16 for TPUs; our architecture does not
        ours = ["--head-layout", str(self.full)] if self.setup.precision == "bf16" else None
        parts = [*self.commands.stock(), *self.commands.architecture(ours is not None, shape), *(ours or [])]
        train = self.commands.train(name, parts, seed, self.preset.epochs, self.schedule.warmup)
        best = f"{folder}/checkpoint_best.pt"
        return Run(name, method, budget, seed, (train, self.commands.generate(name, best)), deployed=best)

    def scores(self, scores: str, seed: int) -> Run:
        name, needed = f"{scores}-scores-s{seed}", f"dense-s{seed}"
        output = f"runs/{name}/scores.json"
        step = self.commands.score(f"runs/{needed}/checkpoints/checkpoint_best.pt", output, SCORES[scores], seed)
        return Run(name, scores, None, seed, (step,), (needed,))

    def hard_concrete(self, budget: int | str, seed: int) -> Run:
        """The one training for all budgets of a penalty and a seed: no gate depends on K."""
        penalty = self.preset.l0_penalty(budget)
        name = f"hard-concrete-s{seed}" if penalty is None else f"hard-concrete-l{penalty:g}-s{seed}"
        parts = [*self.commands.ours("hard-concrete", AUTO), *self.schedule.importance[:2]]
        parts += ["--l0-penalty", penalty] if penalty is not None else []
        train = self.commands.train(name, parts, seed, self.preset.epochs, self.schedule.warmup)
        return Run(name, "hard-concrete", None, seed, (train,))

    def pruned(self, method: str, budget: int | str, seed: int) -> Run:
        name = f"{method}-k{budget}-s{seed}"
        if method == "hard-concrete":
            return self._cut(name, budget, seed)
        if method == DENSE_SMALL:
            assert isinstance(budget, int)
            shape = small_shape(self.preset.sizes, self.setup.words, self.preset.pre_norm, budget)
            return self._dense(name, method, budget, seed, shape)
        if method in FROM_DENSE:
            return self._from_dense(name, method, budget, seed)
        if method in (*LEARNED, "fixed", "stratified", "even"):
            return self._trained(name, method, budget, seed)
        small = f"runs/{name}/pruned.pt"
        needs = [f"dense-s{seed}"]
        rescale = ["--rescale", DATA] if method == STAGED or method.removesuffix("-finetune").endswith(RESCALED) else []
        if method == STAGED:
            choice = ["--scorer", "joint-fisher", "--stages", 4]
        else:
            needs.append(f"{scores_of(method)}-scores-s{seed}")
            choice = ["--scores", f"runs/{needs[1]}/scores.json"]
        cut = self.commands.prune(
            f"runs/{needs[0]}/checkpoints/checkpoint_best.pt", small, *choice, "--unpruned-heads", budget, *rescale
        )
        steps, deployed = [cut], small
        if method.endswith("-finetune"):
            parts = [*self.commands.stock(), *self.commands.architecture(True), "--head-layout", small]
            steps.append(self.commands.finetune(name, [*parts, "--finetune-from-model", small], seed))
            deployed = f"runs/{name}/checkpoints/checkpoint_best.pt"
        steps.append(self.commands.generate(name, deployed))
        return Run(name, method, budget, seed, tuple(steps), tuple(needs), deployed)

    def _from_dense(self, name: str, method: str, budget: int | str, seed: int) -> Run:
        """Goes on from the dense model: heads drawn at its start, or chosen in the first quarter of its updates, or as the recipe says."""
        dense = f"dense-s{seed}"
        needs, start = [dense], f"runs/{dense}/checkpoints/checkpoint_best.pt"
        trained, small = f"runs/{name}/checkpoints/checkpoint_best.pt", f"runs/{name}/pruned.pt"
        drawn = method == "stratified-finetune" or method in SHUFFLES
        parts = [*self.commands.ours("stratified" if drawn else "dsp", budget), "--finetune-from-model", start]
        if method in SHUFFLES:
            chosen = f"{SHUFFLES[method]}-k{budget}-s{seed}"
            needs.append(chosen)
            parts += ["--head-counts", f"runs/{chosen}/pruned.pt"]
        if drawn:
            train = self.commands.finetune(name, parts, seed)
            return Run(
                name, method, budget, seed, (train, self.commands.generate(name, trained)), tuple(needs), trained
            )
        window = max(self.preset.finetune * self.schedule.updates_an_epoch // 4, 1)
        parts += importance_options(FROM_DENSE[method], window)
        if FROM_DENSE[method] != "auto":
            parts += ["--cooldown-updates", window]
        if method == "dsp-auto-taught-finetune":
            parts += ["--teacher", start, "--distillation", 0.5]
        train = self.commands.finetune(name, parts, seed)
        steps = (train, self.commands.prune(trained, small), self.commands.generate(name, small))
        return Run(name, method, budget, seed, steps, tuple(needs), small)

    def _cut(self, name: str, budget: int | str, seed: int) -> Run:
        needed, small = self.hard_concrete(budget, seed).name, f"runs/{name}/pruned.pt"
        # the number of heads falls throughout the training: the best checkpoint is an early one with most of them
        trained = f"runs/{needed}/checkpoints/checkpoint_last.pt"
        choice = [] if budget == AUTO else ["--unpruned-heads", budget]
        steps = (self.commands.prune(trained, small, *choice), self.commands.generate(name, small))
        method = "hard-concrete" if budget != AUTO else "hard-concrete-auto"
        return Run(name, method, budget, seed, steps, (needed,), small, needed)

    def _trained(self, name: str, method: str, budget: int | str, seed: int) -> Run:
        kind = {"pipelined": "dsp", "even": "stratified"}.get(method, method.partition("-")[0])
        parts = self.commands.ours(kind, budget) + (["--head-counts", "even"] if method == "even" else [])
        importance, schedule, needs, epochs = self.schedule.importance, self.schedule, (), self.preset.epochs
        cooldown, warmup = schedule.cooldown, schedule.warmup
        if method == "pipelined":
            needs = (f"dense-s{seed}",)
            dense = f"runs/{needs[0]}/checkpoints/checkpoint_best.pt"
            parts += ["--pipelined", "--finetune-from-model", dense]
            parts += ["--head-layout", dense] if self.setup.precision == "bf16" else []
            epochs, cooldown, warmup = self.preset.pipelined, schedule.pipelined_cooldown, 1
        if method == "dsp-auto":
            parts += importance_options("auto", cooldown)
        elif method in ("dsp-paper", "dsp-projection"):
            parts += [*importance_options(method.partition("-")[2], cooldown), "--cooldown-updates", cooldown]
        elif method in ("dsp", "pipelined"):
            parts += [*importance, "--cooldown-updates", cooldown]
        elif method == "ste":
            parts += [*importance[:2], "--cooldown-updates", cooldown]
        small = f"runs/{name}/pruned.pt"
        train = self.commands.train(name, parts, seed, epochs, warmup)
        trained = f"runs/{name}/checkpoints/checkpoint_best.pt"
        if method in ("fixed", "stratified", "even"):  # has no other heads to remove
            return Run(name, method, budget, seed, (train, self.commands.generate(name, trained)), needs, trained)
        steps = (train, self.commands.prune(trained, small), self.commands.generate(name, small))
        return Run(name, method, budget, seed, steps, needs, small)
