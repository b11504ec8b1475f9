"""Runs one arm: chooses heads by its family, cuts the model that it starts from, trains what is left, and tells what it was."""

from __future__ import annotations

import copy
import time
from typing import Any

from torch import Tensor

from fairseq_dsp.checkpoints.rescaling import cut_and_rescale
from fairseq_dsp.methods.stratified import counts_of_layout, draw_stratified
from fairseq_dsp.plugin.model import DspTransformerModel
from fairseq_dsp.units.groups import with_all_of
from fairseq_dsp.units.layout import Layout

from .data import Data
from .families import FAMILIES, RECONSTRUCTED, Choice, Lab, counts_text
from .models import cut_from, shrink
from .reconstruction import moments_of
from .setting import Job, Setting
from .training import Teacher, Training, drawn, nats
from .translating import bleu_of

_FOR_RESCALING = 998  # purpose of drawing batches
_SHUFFLED_SEED = 1000  # added to the arm's
_EARLY, _EARLY_BATCHES = (30, 60), 6  # updates after which the first batches of the validation set are measured


def run(job: Job, setting: Setting, data: Data, states: dict[int, dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Runs an arm.

    Options of every family: window (share of the updates for choosing, .25); shuffle (heads drawn anew with the choice's counts by sublayer,
    which are cut out of the dense model and have all updates, whatever the choice has used); rewind (the choice cuts the dense model,
    whatever was learned on the way); cutonly (likewise of a choice that is rescaled); recut (rescales the cut); kd (share of distillation).

    Args:
        states: of the dense models of the job's seeds.

    Returns:
        the line of the results, but for the job's own values; after those of further numbers of heads, which say K themselves.
    """
    begin, options = time.time(), job.options
    model = cut_from(states[job.seed], setting, data, job.seed)
    lab = Lab(job, setting, data, states, model, max(int(options.get("window", 0.25) * setting.updates), 1))
    choice = FAMILIES[job.family](lab)
    if options.get("shuffle"):  # a control has all updates, and no weights that adapted to the heads of the choice
        choice = Choice(draw_stratified(setting.grid, counts_of_layout(choice.layout), _SHUFFLED_SEED + job.seed))
    layout = choice.layout
    line: dict[str, Any] = {"counts": counts_text(layout), "layout": str(layout), "used": choice.used}
    if choice.race is not None:
        line["race"] = [(round(loss, 3), counts_text(Layout.parse(text))) for loss, text in choice.race]
    if choice.trained and not options.get("rewind"):
        shrink(model, layout)
        training = lab.training(start=choice.used)  # with fresh moments, for the shapes are new
        for _ in range(setting.updates - choice.used):
            training.step()
    elif not choice.is_trained:
        model = _cut(lab, choice)
        line["cut"] = round(nats(model, data.valid), 4)
        line |= _fine_tune(lab, model, setting.updates - choice.used)
    lines = []
    for each in (*reversed(choice.larger), layout) if choice.larger else ():
        cut = copy.deepcopy(model)
        shrink(cut, each)
        own = {"K": each.count, "counts": counts_text(each), "layout": str(each), "used": choice.used}
        lines.append(own | _measured(cut, data))
    if not lines:
        lines.append(line | _measured(model, data))
    seconds = {"seconds": round(time.time() - begin, 1)}
    return [each | seconds for each in lines]


def _measured(model: DspTransformerModel, data: Data) -> dict[str, Any]:
    """What a line says of a finished model, which cannot be trained any more."""
    found = {"nats": round(nats(model, data.valid), 4), "parameters": model.weight_count()}
    return found if data.test is None else found | bleu_of(model, data.task, data.test)


def _cut(lab: Lab, choice: Choice) -> DspTransformerModel:
    """What is fine-tuned."""
    job, options, layout = lab.job, lab.job.options, choice.layout
    if choice.cut and not options.get("cutonly"):
        return lab.model
    if not options.get("recut"):
        return cut_from(lab.dense, lab.setting, lab.data, job.seed, layout)
    model = cut_from(lab.dense, lab.setting, lab.data, job.seed)
    model.layout = with_all_of(model.layout, layout.grid)
    batches = drawn(lab.data.train, RECONSTRUCTED, job.seed, _FOR_RESCALING)
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
