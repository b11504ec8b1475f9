"""The families of arms: ways in which heads of a model are chosen, and what may be trained on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from reproduction.sizes import Shape, pruned_weights, shape_of_size
from torch import Tensor

from fairseq_dsp.methods.stratified import EVEN, counts_of, draw_stratified
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.layout import Layout, Site

from . import levels
from .by_another import scores_by_another
from .by_method import learn_by
from .by_range import learn_range
from .data import Data
from .learned import learn
from .models import build, cut_from
from .reconstruction import by_reconstruction, by_stages
from .removal import by_loss, by_scores, in_order, while_training
from .scores import in_order_of_passes, keep_top, keep_top_discounted, score
from .setting import Job, Setting
from .training import Training, drawn, nats, order

_SCORED, _LESSONS = 50, 30  # batches
RECONSTRUCTED = 25  # batches
_FOR_SCORES, _FOR_STAGES = 999, 997  # purposes of drawing batches


@dataclass
class Lab:
    """What every family is given.

    Attributes:
        states: of the dense models of the job's seeds.
        model: the dense model of its own seed, which it may change.
        window: updates in which it may choose.
    """

    job: Job
    setting: Setting
    data: Data
    states: dict[int, dict[str, Tensor]]
    model: DspTransformerModel
    window: int

    @property
    def dense(self) -> dict[str, Tensor]:
        return self.states[self.job.seed]

    def training(self, start: int = 0) -> Training:
        job = self.job
        return Training(
            self.model, self.data, job.seed, self.setting.updates, job.lr, job.warm, job.schedule, start
        )  # fmt: skip

    def scores(self, name: str) -> Tensor:
        """Of the dense model; see `scores.score`. `one-shot` is by what a network learned of the dense model of the seed `taught_by`."""
        batches = drawn(self.data.train, _SCORED, self.job.seed, _FOR_SCORES)
        if name == "one-shot":
            other = self.job.options["taught_by"]
            taught = cut_from(self.states[other], self.setting, self.data, other)
            lessons = drawn(self.data.train, _LESSONS, other, _FOR_SCORES)
            return scores_by_another(self.model, batches, taught, lessons, self.job.seed)
        return score(self.model, batches, self.job.seed, name)


@dataclass
class Choice:
    """What a family has chosen.

    Attributes:
        used: updates that it took.
        trained: the lab's model has all heads, gates or not, and weights that went on learning; they are kept unless the arm rewinds.
        cut: the lab's model is cut already, and rescaled.
        is_trained: the lab's model has had all updates.
        race: of `race`, the candidates with their losses.
        larger: further layouts, with more heads, that the trained model of all heads is cut to, each for a line of its own.
    """

    layout: Layout
    used: int = 0
    trained: bool = False
    cut: bool = False
    is_trained: bool = False
    race: list[tuple[float, str]] | None = None
    larger: Sequence[Layout] = ()


def _fixed(lab: Lab) -> Choice:
    """Options: draw (heads drawn at random, the first or another time); or cross and dec (the rest is encoder); or counts by site; or even."""
    job, grid, options = lab.job, lab.setting.grid, lab.job.options
    if "draw" in options:
        return Choice(Layout.full(grid).random_subset(job.kept, options["draw"] * 100 + job.seed))
    if "even" in options:
        counts = counts_of(grid, job.kept, EVEN)
    elif "counts" in options:
        counts = {Site(*site): min(number, grid.size(Site(*site))) for site, number in options["counts"]}
    else:
        cross, dec = options["cross"], options["dec"]
        by_stack = {"enc": job.kept - cross - dec, "dec": dec, "cross": cross}
        counts = {
            Site(stack, layer): number
            for stack, total in by_stack.items()
            for layer, number in enumerate(spread(total, lab.setting.layers))
        }
    return Choice(draw_stratified(grid, counts, job.seed))


def spread(count: int, layers: int) -> list[int]:
    """Heads by layer: as many in each, what is left in the middle layer, of two in the last ones of three."""
    rest = count % layers
    places = {0: [], 1: [layers // 2], 2: [1, 2] if layers == 3 else [0, layers - 1]}.get(rest, list(range(rest)))
    return [count // layers + (layer in places) for layer in range(layers)]


def _scored(lab: Lab) -> Choice:
    """Options: by (the score); taught_by (see `Lab.scores`); disc (discount of a sublayer's further heads); mislabelled (see `scores.in_order_of_passes`)."""
    scores, options = lab.scores(lab.job.options["by"]), lab.job.options
    if options.get("mislabelled"):
        scores = in_order_of_passes(lab.setting.grid, scores)
    if "disc" in options:
        return Choice(keep_top_discounted(lab.setting.grid, scores, lab.job.kept, options["disc"]))
    return Choice(keep_top(lab.setting.grid, scores, lab.job.kept))


def _removed(lab: Lab) -> Choice:
    """Options: by (`scores` or `loss`)."""
    job, batches = lab.job, drawn(lab.data.train, _SCORED, lab.job.seed, _FOR_SCORES)
    if job.options["by"] == "scores":
        return Choice(by_scores(lab.model, batches, job.seed, job.kept))
    return Choice(by_loss(lab.model, lab.data, batches, job.seed, job.kept))


def _learned(lab: Lab) -> Choice:
    """Options: those of `learned.learn`; init (`fisher`: begins with the logarithm of the Fisher scores, deviation 2)."""
    job, start = lab.job, None
    if job.options.get("init") == "fisher":
        logs = lab.scores("log")
        start = ((logs - logs.mean()) / logs.std() * 2).float().to(lab.data.device)
    layout = learn(
        lab.model, lab.data, lab.training(), job.seed, job.kept, lab.window, job.options, start
    )  # fmt: skip
    return Choice(layout, lab.window, trained=True)


def _by_method(lab: Lab) -> Choice:
    """Options: method (of `--head-selection`); own (its options)."""
    job, options = lab.job, lab.job.options
    layout = learn_by(
        lab.model, lab.training(), job.seed, job.kept, lab.window, options["method"], dict(options.get("own", {}))
    )
    return Choice(layout, lab.window, trained=True)


def _ranged(lab: Lab) -> Choice:
    """Options: judged (numbers of heads above the job's own, at which the model is judged too); own (options of ranges); by (a score of the
    dense model, whose order stays)."""
    job, options = lab.job, lab.job.options
    judged = [job.kept, *options["judged"]]
    scores, window = (lab.scores(options["by"]), 1) if "by" in options else (None, lab.window)
    layout, *larger = learn_range(
        lab.model, lab.training(), job.seed, judged, window, dict(options.get("own", {})), scores
    )
    return Choice(layout, lab.setting.updates, is_trained=True, larger=larger)


def _eliminated(lab: Lab) -> Choice:
    """Options: those of `removal.while_training`."""
    job = lab.job
    layout = while_training(lab.model, lab.data, lab.training(), job.seed, job.kept, lab.window, job.options)
    return Choice(layout, lab.window, trained=True)


def _gradual(lab: Lab) -> Choice:
    """Options: by (the score that orders the heads)."""
    scores = lab.scores(lab.job.options["by"])
    layout = in_order(lab.model, lab.data, lab.training(), scores, lab.job.kept, lab.window)
    return Choice(layout, is_trained=True)


def _reconstructed(lab: Lab) -> Choice:
    """Options: those of `reconstruction.by_reconstruction`."""
    job = lab.job
    batches = drawn(lab.data.train, RECONSTRUCTED, job.seed, _FOR_SCORES)
    used = by_reconstruction(lab.model, lab.data, batches, job.seed, job.kept, job.options, job.lr)
    return Choice(lab.model.layout, used, cut=True)


def _staged(lab: Lab) -> Choice:
    """Options: stages; by (the score)."""
    job = lab.job
    batches = drawn(lab.data.train, RECONSTRUCTED, job.seed, _FOR_STAGES)
    by_stages(lab.model, batches, job.seed, job.kept, job.options["stages"], job.options["by"])
    return Choice(lab.model.layout, cut=True)


def _raced(lab: Lab) -> Choice:
    """Trains every candidate for some updates and takes the one of the lowest loss on held-out training batches.

    The candidates are the choices by Fisher (whole, diagonal, diagonal with discounts .8 and .6) and by reconstruction.

    Options: race (updates a candidate, all of which count as used).
    """
    job, grid, data = lab.job, lab.setting.grid, lab.data
    fisher = lab.scores("fisher")
    found = [keep_top(grid, scores, job.kept) for scores in (fisher, lab.scores("fisher-full"))]
    found += [keep_top_discounted(grid, fisher, job.kept, discount) for discount in (0.8, 0.6)]
    found.append(_reconstructed(lab).layout)
    held = [data.train[index] for index in order(len(data.train), job.seed + 77, 0)[-8:]]
    race = []
    candidates, updates = list(dict.fromkeys(found)), job.options["race"]
    for layout in candidates:
        model = cut_from(lab.dense, lab.setting, data, job.seed, layout)
        training = Training(model, data, job.seed + 77, 10**9, job.lr / 2, warm=10)
        for _ in range(updates):
            training.step()
        race.append((nats(model, held), str(layout)))
    race.sort()
    return Choice(Layout.parse(race[0][1]), updates * len(candidates), race=race)


def _leveled(lab: Lab) -> Choice:
    """Options: level (see `levels.choose`)."""
    batches = drawn(lab.data.train, _SCORED, lab.job.seed, _FOR_SCORES)
    return Choice(levels.choose(lab.model, batches, lab.job.seed, lab.job.share, lab.job.options["level"]))


def _small(lab: Lab) -> Choice:
    """Options: layers (of a smaller dense model, which takes the place of the lab's; else a narrower one, as large as the job's share leaves)."""
    layers = lab.job.options.get("layers")
    if layers is None:
        small = _narrowed(lab, levels.parameters_of_share(lab.model, lab.job.share))
    else:
        small = replace(lab.setting, layers=layers)
    lab.model = levels.train_small(small, lab.data, lab.job.seed)
    return Choice(lab.model.layout, cut=True)


def _narrow(lab: Lab) -> Choice:
    """A dense model before its first update that is as large as what K heads leave of the lab's, whose place it takes."""
    size = pruned_weights(*_shape(lab), lab.job.kept)
    lab.model = build(_narrowed(lab, size), lab.data, lab.job.seed)
    return Choice(lab.model.layout, cut=True)


def _narrowed(lab: Lab, size: int) -> Setting:
    """The setting of a dense model of so many weights."""
    layers, heads, width, ffn = shape_of_size(*_shape(lab), size)
    return replace(lab.setting, layers=layers, heads=heads, width=width, ffn=ffn)


def _shape(lab: Lab) -> tuple[Shape, tuple[int, int], bool]:
    setting, task = lab.setting, lab.data.task
    words = len(task.source_dictionary), len(task.target_dictionary)
    return (setting.layers, setting.heads, setting.width, setting.ffn), words, True


FAMILIES: dict[str, Callable[[Lab], Choice]] = {
    "fixed": _fixed, "scored": _scored, "removed": _removed, "learned": _learned, "elim": _eliminated, "gradual": _gradual,
    "obs": _reconstructed, "staged": _staged, "race": _raced,
    "method": _by_method, "range": _ranged, "levels": _leveled, "small": _small, "narrow": _narrow,
}  # fmt: skip


def counts_text(layout: Layout) -> str:
    """`enc:0.1.0/dec:1.0.1/cross:1.0.2`: units kept, by sublayer."""
    by_stack = {
        stack: ".".join(str(len(layout.units(site))) for site in layout.grid.sites if site.stack == stack)
        for stack in layout.grid.named_stacks
    }
    return "/".join(f"{stack}:{numbers}" for stack, numbers in by_stack.items())
