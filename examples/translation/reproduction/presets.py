"""How large the models are and how long they train. The schedule is a share of the training, whatever data and batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt

from fairseq_dsp.config import AUTO

from .sizes import Shape, weights

# in the order of the table; auto: hard-concrete's own number of heads
PAPER_METHODS = (
    "dense", "dsp", "pipelined", "ste", "hard-concrete", "gradient", "gradient-finetune", "gradient-iterative", "random",
    "random-finetune", "fixed",
)  # fmt: skip
# What goes on from a trained dense model without scores: heads drawn, or chosen by dsp with the importance options of this name.
FROM_DENSE = {
    "stratified-finetune": "", "shuffled-finetune": "", "dsp-finetune": "gentle", "dsp-paper-finetune": "paper",
    "dsp-projection-finetune": "projection", "dsp-auto-finetune": "auto", "dsp-auto-taught-finetune": "auto",
    "shuffled-dsp-auto-finetune": "",
}  # fmt: skip
# Controls that keep the counts of a choice by sublayer and draw the heads -> what chose.
SHUFFLES = {"shuffled-finetune": "joint-fisher-finetune", "shuffled-dsp-auto-finetune": "dsp-auto-finetune"}
STAGED = "joint-fisher-staged-finetune"  # scored, cut and rescaled in four stages
DENSE_SMALL = "dense-small"  # a narrower dense model, with as many parameters as K heads leave
CHOICES = (
    "joint-fisher-rescaled-finetune", "joint-fisher-finetune", "fisher-finetune", "gradient-finetune", "random-finetune",
    *FROM_DENSE, "fisher", "joint-fisher", "joint-fisher-rescaled", "stratified", "even", "dsp-paper", "dsp-projection",
    "dsp-auto", STAGED, DENSE_SMALL,
)  # fmt: skip
# What the claim rests on: the new default and the best chooser so far, against a rule, scores, chance and the paper's recipe.
_DECIDING = (
    "dense", STAGED, "stratified-finetune", "dsp-auto-finetune", "dsp-paper-finetune", "fisher-finetune", "gradient-finetune",
    "random-finetune",
)  # fmt: skip
METHODS = tuple(dict.fromkeys((*PAPER_METHODS, *CHOICES)))
LEARNED = ("dsp", "dsp-paper", "dsp-projection", "dsp-auto", "pipelined", "ste", "hard-concrete")
# the paper's joint training: 15,000 updates of cooldown and 4,000 of warm-up, of about 60,000 as we estimate its 60 epochs
COOLDOWN_SHARE, WARMUP_SHARE = 15 / 60, 4 / 60
PIPELINED_COOLDOWN = 250  # updates, the paper's; afterwards the heads are fixed, and a longer one validated no better
PIPELINED_COOLDOWN_SHARE = 3 / 4  # of the training, at most: the heads must be fixed before its end
GENTLE_BELOW = 5000  # updates of cooldown: a shorter one takes the gentler settings of docs/design/0003
_PAPER_SHAPE = (6, 4, 512, 1024)  # of transformer_iwslt_de_en


@dataclass(frozen=True)
class Preset:
    """A model and a training.

    Attributes:
        architecture: of stock fairseq; ours has `dsp_` before it.
        shape: options that change it: (layers, heads, width, inner width); None for the architecture's own.
        cooldown: updates, at most; likewise warmup.
        pipelined: epochs that train the importance variables alone.
        finetune: epochs after pruning by scores; finetune_rate: their share of the learning rate.
        decays: the learning rate falls to zero in a straight line, instead of by the square root of the updates.
        l0_penalties: of hard-concrete, whose penalty decides how many heads stay open: (share of the heads, penalty for budgets
            up to it), in rising order up to 1; None for its default.
        select: what chooses the best checkpoint: bleu or loss, in validation.
        budgets: counts and shares of the heads.
        pre_norm: norms before the sublayers, which a short training needs to get anywhere.
        beam: of the test set's translation.
        deciding: methods that take all seeds; the others take the first two. None: all take all.
    """

    architecture: str
    shape: tuple[int, int, int, int] | None
    max_tokens: int
    epochs: int
    learning_rate: float
    dropout: float
    warmup: int
    cooldown: int
    pipelined: int
    finetune: int
    select: str
    methods: tuple[str, ...]
    budgets: tuple[str, ...]
    seeds: tuple[int, ...]
    l0_penalties: tuple[tuple[float, float | None], ...] = ((1.0, None),)
    pre_norm: bool = False
    beam: int = 5
    finetune_rate: float = 0.2
    decays: bool = False
    deciding: tuple[str, ...] | None = None

    @property
    def sizes(self) -> Shape:
        """The shape, also where it is the architecture's own."""
        return self.shape or _PAPER_SHAPE

    @property
    def heads_per_layer(self) -> int:
        return self.sizes[1]

    @property
    def layers(self) -> int:
        return self.sizes[0]

    @property
    def total_heads(self) -> int:
        """H: encoder self, decoder self and cross-attention."""
        return 3 * self.layers * self.heads_per_layer

    def l0_penalty(self, budget: int | str) -> float | None:
        """For K, or for hard-concrete's own number of heads (auto), which the lightest penalty leaves most of."""
        fitting = [
            penalty for share, penalty in self.l0_penalties if budget == AUTO or budget <= share * self.total_heads
        ]
        return fitting[-1 if budget == AUTO else 0]

    def parameters(self, source_words: int, target_words: int) -> int:
        """How many the dense model has; about, where the architecture has sizes of its own beside those."""
        return weights(self.sizes, (source_words, target_words), self.pre_norm)


PRESETS: Mapping[str, Preset] = {
    "paper": Preset(
        architecture="transformer_iwslt_de_en", shape=None, max_tokens=4096, epochs=60, learning_rate=5e-4, dropout=0.3,
        warmup=4000, cooldown=15000, pipelined=1, finetune=5, select="bleu", methods=PAPER_METHODS,
        budgets=("72", "60", "48", "36", "24", "18", "12", "8", "4", "0"), seeds=(1, 2, 3),
    ),
    "small": Preset(
        architecture="transformer", shape=(3, 4, 64, 128), max_tokens=1024, epochs=2, learning_rate=7e-3, dropout=0.0,
        warmup=400, cooldown=1200, pipelined=1, finetune=1, select="loss", methods=PAPER_METHODS,
        budgets=("24", "18", "12", "6", "3"), seeds=(1, 2), l0_penalties=((0.1, 5e-3), (0.25, 3e-3), (1.0, 3e-4)), pre_norm=True, beam=1,
        finetune_rate=1.0,
    ),
    # Trained until validation has flattened, so that pruning costs something and choosing can show.
    "converged": Preset(
        architecture="transformer", shape=(3, 8, 128, 256), max_tokens=4096, epochs=12, learning_rate=4e-3, dropout=0.2,
        warmup=400, cooldown=1200, pipelined=1, finetune=2, select="loss", budgets=("6", "12", "24"), seeds=(1, 2, 3, 4, 5, 6),
        methods=(
            *_DECIDING, "dsp-auto-taught-finetune", "shuffled-dsp-auto-finetune", "dsp-finetune", "joint-fisher-rescaled-finetune",
            "joint-fisher-finetune", "shuffled-finetune", "dsp-auto", "stratified", "even", DENSE_SMALL, "dsp-paper", "dsp",
        ),
        pre_norm=True, finetune_rate=1.0, decays=True, deciding=_DECIDING,
    ),
    "smoke": Preset(
        architecture="transformer_tiny", shape=(2, 2, 64, 64), max_tokens=2000, epochs=4, learning_rate=5e-3, dropout=0.1,
        warmup=100, cooldown=100, pipelined=1, finetune=1, select="loss",
        methods=("dense", "dsp", "gradient", "gradient-finetune", "random", "random-finetune", "fixed"),
        budgets=("1/2", "1/6"), seeds=(1,),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """A preset's numbers of updates for the data at hand."""

    updates_an_epoch: int
    warmup: int
    cooldown: int
    pipelined_cooldown: int
    finetune_warmup: int

    @property
    def gentle(self) -> bool:
        """Whether the cooldown is too short for the paper's temperatures and learning rate of the importance."""
        return self.cooldown < GENTLE_BELOW

    @property
    def importance(self) -> list[str]:
        """Options of the importance variables."""
        return importance_options("gentle" if self.gentle else "paper", self.cooldown)


def importance_options(name: str, window: int) -> list[str]:
    """Options of the importance variables: `paper`, `gentle` (docs/design/0003), `projection`, whose steps add up to 25, or `auto`,
    which derives all from the length of the training.

    Args:
        window: updates in which the heads are chosen.
    """
    if name == "auto":
        return ["--recipe", "auto"]
    lr, initial, final = {
        "paper": ("0.2", "0.1", "1e-8"),
        "gentle": ("0.05", "0.5", "0.01"),
        "projection": (f"{25 / window:.3g}", "1", "0.1"),
    }[name]
    words = ["--importance-lr", lr, "--initial-temperature", initial, "--final-temperature", final]
    return [*words, "--relaxation", "projection"] if name == "projection" else words


def scale_batch(preset: Preset, max_tokens: int) -> Preset:
    """The preset with other batches: the learning rate follows the square root of their size, as suits Adam."""
    rate = preset.learning_rate * sqrt(max_tokens / preset.max_tokens)
    return replace(preset, max_tokens=max_tokens, learning_rate=float(f"{rate:.3g}"))


def schedule(preset: Preset, updates_an_epoch: int) -> Schedule:
    """Warm-up and cooldown: the preset's, or their share of a shorter training."""
    updates = updates_an_epoch * preset.epochs
    pipelined = updates_an_epoch * preset.pipelined
    return Schedule(
        updates_an_epoch=updates_an_epoch,
        warmup=max(min(preset.warmup, round(WARMUP_SHARE * updates)), 1),
        cooldown=max(min(preset.cooldown, round(COOLDOWN_SHARE * updates)), 1),
        pipelined_cooldown=max(min(PIPELINED_COOLDOWN, round(PIPELINED_COOLDOWN_SHARE * pipelined)), 1),
        finetune_warmup=max(round(WARMUP_SHARE * updates_an_epoch * preset.finetune), 1),
    )
