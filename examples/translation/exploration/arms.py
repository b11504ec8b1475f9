"""Runs one arm: chooses heads by its family, cuts the dense model, trains what is left, and tells what it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairseq_dsp.checkpoints.rescaling import cut_and_rescale
from fairseq_dsp.methods.stratified import counts_of_layout, draw_stratified
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.groups import with_all_of
from fairseq_dsp.units.layout import Layout, Site

from . import levels
from .by_another import scores_by_another
from .by_method import learn_by
from .data import Data
from .learned import learn
from .models import cut_from, shrink
from .reconstruction import by_reconstruction, by_stages, moments_of
from .removal import by_loss, by_scores, in_order, while_training
from .scores import in_order_of_passes, keep_top, keep_top_discounted, score
from .setting import Job, Setting
from .training import Teacher, Training, drawn, nats, order
from .translating import bleu_of

_SCORED, _RECONSTRUCTED, _LESSONS = 50, 25, 30  # batches
_FOR_SCORES, _FOR_RESCALING, _FOR_STAGES = 999, 998, 997  # purposes of drawing batches
_SHUFFLED_SEED = 1000  # added to the arm's
_EARLY, _EARLY_BATCHES = (30, 60), 6  # updates after which the first batches of the validation set are measured


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
    """

    layout: Layout
    used: int = 0
    trained: bool = False
    cut: bool = False
    is_trained: bool = False
    race: list[tuple[float, str]] | None = None


def _fixed(lab: Lab) -> Choice:
    """Options: draw (heads drawn at random, the first or another time); or cross and dec (the rest is encoder); or counts by site."""
    job, grid, options = lab.job, lab.setting.grid, lab.job.options
    if "draw" in options:
        return Choice(Layout.full(grid).random_subset(job.kept, options["draw"] * 100 + job.seed))
    if "counts" in options:
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
    batches = drawn(lab.data.train, _RECONSTRUCTED, job.seed, _FOR_SCORES)
    used = by_reconstruction(lab.model, lab.data, batches, job.seed, job.kept, job.options, job.lr)
    return Choice(lab.model.layout, used, cut=True)


def _staged(lab: Lab) -> Choice:
    """Options: stages; by (the score)."""
    job = lab.job
    batches = drawn(lab.data.train, _RECONSTRUCTED, job.seed, _FOR_STAGES)
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
    """Options: layers (of a smaller dense model, which takes the place of the lab's)."""
    lab.model = levels.train_small(lab.setting, lab.data, lab.job.seed, lab.job.options["layers"])
    return Choice(lab.model.layout, cut=True)


FAMILIES: dict[str, Callable[[Lab], Choice]] = {
    "fixed": _fixed, "scored": _scored, "removed": _removed, "learned": _learned, "elim": _eliminated, "gradual": _gradual,
    "obs": _reconstructed, "staged": _staged, "race": _raced,
    "method": _by_method, "levels": _leveled, "small": _small,
}  # fmt: skip


def run(job: Job, setting: Setting, data: Data, states: dict[int, dict[str, Tensor]]) -> dict[str, Any]:
    """Runs an arm.

    Options of every family: window (share of the updates for choosing, .25); shuffle (heads drawn anew with the choice's counts by sublayer);
    rewind (the choice cuts the dense model, whatever was learned on the way); cutonly (likewise of a choice that is rescaled); recut
    (rescales the cut); kd (share of distillation).

    Args:
        states: of the dense models of the job's seeds.

    Returns:
        the line of the results, but for the job's own values.
    """
    begin, options = time.time(), job.options
    model = cut_from(states[job.seed], setting, data, job.seed)
    lab = Lab(job, setting, data, states, model, max(int(options.get("window", 0.25) * setting.updates), 1))
    choice = FAMILIES[job.family](lab)
    layout = choice.layout
    if options.get("shuffle"):
        layout = draw_stratified(setting.grid, counts_of_layout(layout), _SHUFFLED_SEED + job.seed)
    line: dict[str, Any] = {"counts": counts_text(layout), "layout": str(layout), "used": choice.used}
    if choice.race is not None:
        line["race"] = [(round(loss, 3), counts_text(Layout.parse(text))) for loss, text in choice.race]
    if choice.trained and not options.get("rewind"):
        shrink(model, layout)
        training = lab.training(start=choice.used)  # with fresh moments, for the shapes are new
        for _ in range(setting.updates - choice.used):
            training.step()
    elif not choice.is_trained:
        model = _cut(lab, choice, layout)
        line["cut"] = round(nats(model, data.valid), 4)
        line |= _fine_tune(lab, model, setting.updates - choice.used)
    line["nats"] = round(nats(model, data.valid), 4)
    line["parameters"] = model.weight_count()
    if data.test is not None:
        line |= bleu_of(model, data.task, data.test)
    line["seconds"] = round(time.time() - begin, 1)
    return line


def _cut(lab: Lab, choice: Choice, layout: Layout) -> DspTransformerModel:
    """What is fine-tuned."""
    job, options = lab.job, lab.job.options
    if choice.cut and layout == choice.layout and not options.get("cutonly"):
        return lab.model
    if not options.get("recut"):
        return cut_from(lab.dense, lab.setting, lab.data, job.seed, layout)
    model = cut_from(lab.dense, lab.setting, lab.data, job.seed)
    model.layout = with_all_of(model.layout, layout.grid)
    batches = drawn(lab.data.train, _RECONSTRUCTED, job.seed, _FOR_RESCALING)
    cut_and_rescale(model, layout, moments_of(model, batches))
    return model


def _fine_tune(lab: Lab, model: DspTransformerModel, updates: int) -> dict[str, float]:
    """Trains the model, in place; the early losses."""
    job, data, found = lab.job, lab.data, {}
    alpha = job.options.get("kd")
    teacher = None if alpha is None else Teacher(cut_from(lab.dense, lab.setting, data, job.seed), alpha)
    training = Training(model, data, job.seed + 50, updates, job.lr, job.warm, job.schedule)
    for update in range(updates):
        if update in _EARLY:
            found[f"at{update}"] = round(nats(model, data.valid[:_EARLY_BATCHES]), 4)
        training.step(teacher=teacher)
    return found


def counts_text(layout: Layout) -> str:
    """`enc:0.1.0/dec:1.0.1/cross:1.0.2`: units kept, by sublayer."""
    by_stack = {
        stack: ".".join(str(len(layout.units(site))) for site in layout.grid.sites if site.stack == stack)
        for stack in layout.grid.named_stacks
    }
    return "/".join(f"{stack}:{numbers}" for stack, numbers in by_stack.items())
