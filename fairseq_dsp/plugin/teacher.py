"""A trained model whose distribution over words a student learns beside the target (`--teacher`, `--distillation`). Held by `criterion`.

It is no module of the criterion: fairseq would train it, average it over processes and write it into every checkpoint.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairseq_dsp.config import flag
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.options.languages import languages_of, objections_to_other_languages, pair_of
from fairseq_dsp.options.records import CriterionOptions, Options, TrainingOptions, saved_options
from fairseq_dsp.options.starting import start_to_go_on_from
from fairseq_dsp.plugin.building import deployed

if TYPE_CHECKING:
    from fairseq_dsp.plugin.model import DspTransformerModel

logger = logging.getLogger(__name__)

DISTILLATION = 0.5  # share, where a teacher is given and nothing else is said


class Teacher:
    """A trained model, frozen, in evaluation mode.

    Args:
        model: without gates.
    """

    def __init__(self, model: DspTransformerModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def of(cls, path: str) -> Teacher:
        """The model of a checkpoint of any transformer, ours or stock fairseq's, with the heads that it deploys.

        Raises:
            Refusal: it cannot be read, or is no such model.
        """
        return cls(deployed(path, "--teacher"))

    @torch.no_grad()
    def logits(self, student: Any, net_input: dict[str, Any]) -> Tensor:
        """What the teacher says of a batch, [B, T, V], on the student's device and in its precision."""
        like = student.decoder.embed_tokens.weight
        own = self.model.decoder.embed_tokens.weight
        if own.device != like.device or own.dtype != like.dtype:
            self.model.to(like.device, like.dtype)
        return self.model(**net_input)[0]


class Said:
    """What a model has said itself, with all of its heads, teaches it with fewer."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def logits(self, student: Any, net_input: dict[str, Any]) -> Tensor:
        """[B, T, V], of the batch that it was said of."""
        return self._logits


def objections_to_distillation(cfg: Options) -> list[str]:
    """Sentences on the criterion's options; empty if they may be honoured.

    Args:
        cfg: of the criterion, with fairseq's `save_dir` and others that `starting` asks for.
    """
    options, save_dir = CriterionOptions.of(cfg), TrainingOptions.of(cfg).save_dir
    path, share = options.teacher, options.distillation
    found = []
    if share is not None and not 0 < share <= 1:
        found.append(f"{flag('distillation')} must be above 0 and at most 1, but is {share}.")
    if share is not None and path is None:
        found.append(f"{flag('distillation')} needs a trained model (`--teacher dense.pt`), but none is given.")
    if path is not None and int(options.ignore_prefix_size or 0):
        found.append(f"`--ignore-prefix-size` must be 0 with `--teacher`, but is {options.ignore_prefix_size}.")
    folder = os.path.realpath("checkpoints" if save_dir is None else save_dir)
    if path is not None and os.path.dirname(os.path.realpath(path)) == folder:
        found.append(
            f"`--teacher` must not lie in `--save-dir`, where the checkpoints of this training go, but is {path}."
        )
    return found + _objections_to_going_on(cfg, path, share)


def objections_to_vocabulary(path: str, teacher: Teacher, words: dict[str, int]) -> list[str]:
    """Sentences on a teacher that says nothing of every word of the model, or of others.

    Args:
        path: of its checkpoint.
        words: size of the student's, by side (`encoder`, `decoder`).
    """
    found = []
    if teacher.model.decoder.adaptive_softmax is not None:
        found.append(f"`--teacher` must have a plain softmax, but that of {path} is adaptive.")
    for side, language in (("encoder", "source"), ("decoder", "target")):
        theirs = len(getattr(teacher.model, side).embed_tokens.weight)
        if theirs != words[side]:
            found.append(
                f"`--teacher` must have the vocabularies of the model, but {path} has {theirs} {language} words, and the model "
                f"{words[side]}."
            )
    return found


def objections_to_languages(path: str, task: Any) -> list[str]:
    """Sentences on a teacher that translates another way, or to whom the words before a sentence mean something else than to the student.

    Of one pair each, other names may be other text in the same languages, which is logged; the same names turned round are not.

    Args:
        path: of its checkpoint.
        task: the options of the student's task.
    """
    taught = saved_options(read_checkpoint(path), "task")
    theirs, ours = languages_of(taught), languages_of(task)
    if theirs is not None and ours is not None:
        return objections_to_other_languages(theirs, ours, f"`--teacher` {path}")
    pair, own = pair_of(taught), pair_of(task)
    if pair is None or own is None or pair == own:
        return []
    said, now = "-".join(pair), "-".join(own)
    if pair == own[::-1]:
        return [f"`--teacher` must translate {now}, as this training does, but {path} translates {said}."]
    logger.warning("`--teacher` %s was trained on %s, and this training is on %s.", path, said, now)
    return []


def _objections_to_going_on(cfg: Options, path: str | None, share: float | None) -> list[str]:
    """What was begun with a teacher goes on with one, and with the same share."""
    start = start_to_go_on_from(TrainingOptions.of(cfg))
    if start is None or start.option != "save_dir":
        return []
    criterion = CriterionOptions.of(saved_options(start.state, "criterion"))
    before, before_share = criterion.teacher, criterion.distillation
    if before is None and path is None:
        return []
    if before is None or path is None:
        rule = "must not be given" if before is None else "must be given"
        what = "without one, but is " + str(path) if before is None else f"with {before}, but is not given"
        return [
            f"`--teacher` {rule} to go on from {start.path}, which was trained {what}: another `--save-dir` starts anew."
        ]
    if (before_share or DISTILLATION) != (share or DISTILLATION):
        return [
            f"{flag('distillation')} must stay {before_share or DISTILLATION}, for which {start.path} was trained, but is "
            f"{share or DISTILLATION}: another `--save-dir` starts anew."
        ]
    if os.path.realpath(before) != os.path.realpath(path):
        logger.warning("%s was trained with `--teacher` %s and goes on with %s.", start.path, before, path)
    return []
