"""Scores of a finished model's units. Called by `fairseq-dsp-score`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fairseq_dsp.api.watching import Watch, unwatched
from fairseq_dsp.checkpoints.batches import draw_batches, loss_of, set_languages, words_of
from fairseq_dsp.checkpoints.building import ungated
from fairseq_dsp.config import flag, whole_number
from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.files.data_folder import refuse_no_folder
from fairseq_dsp.files.output import checked_file
from fairseq_dsp.plugin.widths import objections_to_neurons
from fairseq_dsp.scoring import SCORER_OPTIONS, SCORERS, Scorer, finite_scores, make_scorer, removal_order
from fairseq_dsp.scoring.subject import Subject
from fairseq_dsp.units.groups import group_of, has_neurons, part_of, with_all_of, with_groups
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import KINDS
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.neurons import NEURONS
from fairseq_dsp.units.score_file import ScoreFile
from fairseq_dsp.version import __version__

if TYPE_CHECKING:
    from fairseq_dsp.plugin.model import DspTransformerModel

SUBSETS = ("train", "valid")
READERS = [name for name, scorer in SCORERS.items() if scorer.reads_data]
_DEFAULTS: dict[str, Any] = {"subset": "train", "batches": 100, "max_tokens": 4096, "seed": 1}
_LEAST = {"batches": 1, "max_tokens": 1, "iterative": 1, "steps": 1, "seed": 0}


def score(
    checkpoint: str | os.PathLike[str],
    scorer: str,
    data: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    units: str | None = None,
    ffn_group: int | str | None = None,
    subset: str | None = None,
    batches: int | str | None = None,
    max_tokens: int | str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
    iterative: int | str | None = None,
    seed: int | str | None = None,
    statistic: str | None = None,
    norm: str | None = None,
    scorer_model: str | os.PathLike[str] | None = None,
    cpu: bool = False,
    force: bool = False,
    watch: Watch = unwatched,
) -> ScoreFile:
    """How much each unit of a finished model matters: `fairseq-dsp-score`.

    Args:
        checkpoint: the model, dense or with gates, which are off while it is scored.
        scorer: `gradient`, `fisher`, `joint-fisher`, `function-norm`, `attention-statistics`, `one-shot`, `magnitude` or `random`.
        data: the data folder; the last two read none.
        output: a file for the scores, JSON; None for none.
        units: kinds of units, with commas: `heads` (the default), `ffn`, groups of neurons of the feed-forward networks.
        ffn_group: how many neurons a group, by default 1, or as many as those in which neurons of the model were pruned.
        subset: `train` (the default) or `valid`; never the test set.
        batches: how many, drawn with the seed, or `all`; by default 100.
        max_tokens: tokens in a batch, by default 4096.
        source_lang: of `data`, where the checkpoint and the folder do not tell it. Likewise:
        target_lang: its target language.
        iterative: score again after every so many units removed.
        seed: of the choice of batches and of random scores, by default 1.
        statistic: of `attention-statistics`: `entropy`, `confidence`, `coverage` or `diagonal`.
        norm: of `function-norm`: `absolute` (the default) or `relative` to the stream.
        scorer_model: of `one-shot`: the file of `train_scorer`.
        cpu: use no GPU.
        force: overwrite `output`.
        watch: shows how far the work is: a context manager that is made with what is done and the number of its steps, and whose
            value is called after every step.

    Returns:
        the scores and where they are from, for `prune`.

    Raises:
        Refusal: the request cannot be honoured, with the sentences of the command; nothing has been written.
    """
    given = {"subset": subset, "batches": batches, "max_tokens": max_tokens, "iterative": iterative, "seed": seed}
    network = None if scorer_model is None else os.fspath(scorer_model)
    own = {"statistic": statistic, "norm": norm, "scorer_model": network}
    reasons = _ignored(scorer, given | {"source_lang": source_lang, "target_lang": target_lang} | own)
    with noted(reasons):
        chosen = make_scorer(scorer, own) if scorer in SCORERS else None
    options, wrong = read_options(given, _DEFAULTS)
    reasons += wrong
    kinds: list[str] = []
    with noted(reasons):
        kinds = _kinds(units)
        if kinds != [HEADS.name] and scorer in SCORERS and SCORERS[scorer].heads_alone:
            raise Refusal(f"`--units` must be heads for `--scorer {scorer}`, which reads attention, but is {units}.")
        if ffn_group is not None and NEURONS.name not in kinds:
            raise Refusal(f"`--ffn-group` must come with `--units {NEURONS.name}`, but is {ffn_group}.")
    group = None
    with noted(reasons):
        group = whole_number(ffn_group, "ffn_group", 1)
    if scorer not in SCORERS or SCORERS[scorer].reads_data:
        with noted(reasons):
            if data is None:
                raise Refusal(f"DATA-BIN must be given for `--scorer {scorer}`: a folder of fairseq-preprocess.")
            refuse_no_folder(os.fspath(data), "DATA-BIN")
    target = None
    with noted(reasons):
        target = None if output is None else checked_file(output, force)
    if reasons or chosen is None:
        raise Refusal(*reasons)
    model, task_options, weights = ungated(os.fspath(checkpoint))
    layout = _layout_with(model, kinds, group)
    drawn: list[dict[str, Any]] = []
    if SCORERS[scorer].reads_data:
        assert data is not None
        set_languages(task_options, source_lang, target_lang)
        which = (options[name] for name in ("subset", "batches", "max_tokens", "seed"))
        drawn = draw_batches(model, task_options, os.fspath(data), *which)
    model.to("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    scores, order = _scored(model, part_of(layout, kinds), chosen, drawn, options, watch)
    file = ScoreFile(
        version=__version__,
        scorer=scorer,
        layout=layout,
        scores=tuple(scores.tolist()),
        order=None if order is None else tuple(order),
        iterative=options["iterative"],
        subset=options["subset"] if drawn else None,
        batches=len(drawn) or None,
        max_tokens=options["max_tokens"] if drawn else None,
        sentences=sum(len(batch["target"]) for batch in drawn) or None,
        seed=options["seed"],
        checkpoint=os.path.basename(checkpoint),
        weights=weights,
        units=tuple(kinds),
        comparable=SCORERS[scorer].comparable,
        options={name: os.path.basename(value) for name, value in own.items() if value is not None} or None,
    )
    if target is not None:
        target.write(lambda handle: handle.write(file.text().encode()), "the score file")
    return file


def _kinds(text: str | None) -> list[str]:
    """`--units` as names of kinds, in the order of a grid.

    Raises:
        Refusal: it names others, or none.
    """
    known, named = [kind.name for kind in KINDS], HEADS.name if text is None else text
    given = named.split(",")
    if set(given) - set(known) or len(set(given)) < len(given):
        raise Refusal(f"`--units` must be one or more of {', '.join(known)}, with commas, but is {named}.")
    return [name for name in known if name in given]


def _layout_with(model: DspTransformerModel, kinds: list[str], group: int | None) -> Layout:
    """The model's layout with the units of these kinds.

    Raises:
        Refusal: neurons cannot be units of it, or not in these groups.
    """
    if NEURONS.name not in kinds:
        return model.layout
    if reasons := objections_to_neurons(model.args):
        raise Refusal(*reasons)
    if has_neurons(model.layout.grid):
        own = group_of(model.layout.grid, model.neurons, "--path")
        if group not in (None, own):
            raise Refusal(f"`--ffn-group` must be {own}, as the checkpoint's neurons were pruned, but is {group}.")
        return model.layout
    return with_all_of(model.layout, with_groups(model.layout.grid, model.neurons, group or 1))


def _scored(
    model: Any, layout: Layout, scorer: Scorer, batches: list[dict[str, Any]], options: dict[str, Any], watch: Watch
) -> tuple[torch.Tensor, list[int] | None]:
    """Scores of the layout's units, [n], and the order of their removal where they are scored again in between."""
    grid, step = layout.surviving, options["iterative"]
    rounds = 1 if step is None else max(-(-grid.total // step), 1)
    with watch(f"{scorer.name}, batches", rounds * len(batches)) as done:
        subject = subject_of(model, _Watched(batches, done), options["seed"], grid)
        if step is None:
            return finite_scores(scorer, subject, torch.ones(grid.total)), None
        return removal_order(scorer, subject, step)


def subject_of(model: Any, batches: Iterable[Any], seed: int, grid: Grid | None = None) -> Subject:
    """A model without gates, as it is now and in evaluation mode, for a scorer.

    Args:
        batches: of fairseq.
        seed: of what is drawn.
        grid: units to score, of those that the model has; all of its layout if None.
    """
    model.eval()
    return Subject.of(model, batches, partial(loss_of, model), partial(words_of, model), seed, grid)


class _Watched:
    """Batches that tell when one of them is done."""

    def __init__(self, batches: list[Any], done: Callable[[], Any]) -> None:
        self.batches, self.done = batches, done

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch
            self.done()


def read_options(options: dict[str, Any], defaults: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options with their defaults and as numbers, and why some cannot be honoured. Of all batches None are named."""
    found = {name: defaults.get(name) if value is None else value for name, value in options.items()}
    reasons: list[str] = []
    if found["subset"] not in SUBSETS:
        why = ": heads chosen on a test set make its scores worthless" if "test" in str(found["subset"]) else ""
        reasons.append(f"`--subset` must be {' or '.join(SUBSETS)}, but is {found['subset']}{why}.")
    for name in [name for name in _LEAST if name in found]:
        with noted(reasons):
            every = name == "batches" and found[name] == "all"
            found[name] = None if every else whole_number(found[name], name, _LEAST[name])
    return found, reasons


def _ignored(name: str, options: dict[str, Any]) -> list[str]:
    """Sentences on options that the scorer has no use for, or on a scorer that there is none of. A folder not read does no harm."""
    if name not in SCORERS:
        return [f"`--scorer` must be one of {', '.join(SCORERS)}, but is {name}."]
    scorer = SCORERS[name]
    aliens = [] if scorer.reads_data else ["iterative", "subset", "batches", "max_tokens", "source_lang", "target_lang"]
    found = [
        f"{flag(alien)} belongs to {' and '.join(READERS)}: `--scorer {name}` reads no sentences, but it is {options[alien]}."
        for alien in aliens
        if options[alien] is not None
    ]
    if not scorer.takes_seed and options["seed"] is not None:
        found.append(
            f"`--seed` must not be given for `--scorer {name}`, which draws nothing, but is {options['seed']}."
        )
    found += [
        f"{flag(option)} belongs to {', '.join(of)}, but is {options[option]} for `--scorer {name}`."
        for option in SCORER_OPTIONS
        if option not in scorer.options and options.get(option) is not None
        for of in [[f"`--scorer {each.name}`" for each in SCORERS.values() if option in each.options]]
    ]
    return found
