"""What `score` and `score_pairs` do alike: reads options, the model and its batches, and scores its units."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fairseq_dsp.api.watching import Watch
from fairseq_dsp.checkpoints.batches import draw_batches, loss_of, words_of
from fairseq_dsp.checkpoints.pair_batches import pairs_of_batches, set_languages
from fairseq_dsp.config import flag, whole_number
from fairseq_dsp.errors import Refusal, noted
from fairseq_dsp.files.data_folder import refuse_no_folder
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.options.languages import language_pairs
from fairseq_dsp.options.widths import objections_to_neurons
from fairseq_dsp.plugin.building import ungated
from fairseq_dsp.scoring import SCORER_OPTIONS, SCORERS, Scorer, finite_scores, make_scorer, removal_order
from fairseq_dsp.scoring.subject import Subject
from fairseq_dsp.units.chosen import Chosen, default_group, parse_kinds
from fairseq_dsp.units.groups import group_of, has_neurons, with_all_of, with_groups
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.score_file import ScoreFile
from fairseq_dsp.units.sublayers import SUBLAYERS
from fairseq_dsp.version import __version__

if TYPE_CHECKING:
    from fairseq_dsp.plugin.model import DspTransformerModel

SUBSETS = ("train", "valid")
READERS = [name for name, scorer in SCORERS.items() if scorer.reads_data]
_DEFAULTS: dict[str, Any] = {"subset": "train", "batches": 100, "max_tokens": 4096, "seed": 1}
_LEAST = {"batches": 1, "max_tokens": 1, "iterative": 1, "steps": 1, "seed": 0}


@dataclass(frozen=True)
class Drawn:
    """Batches, and the language pairs that they are of; None where the model has but one."""

    batches: list[dict[str, Any]]
    pairs: tuple[str, ...] | None


@dataclass(frozen=True)
class Work:
    """A model that is scored, and what is asked for."""

    model: DspTransformerModel
    layout: Layout
    scorer: str
    data: str | None
    options: dict[str, Any]
    task_options: Any
    weights: dict[str, str]
    checkpoint: str

    @classmethod
    def of(cls, checkpoint: Any, scorer: str, data: Any, options: dict[str, Any], cpu: bool) -> Work:
        model, task_options, weights = ungated(os.fspath(checkpoint))
        model.to("cuda" if torch.cuda.is_available() and not cpu else "cpu")
        layout = _layout_with(model, options["kinds"], options["group"])
        if SCORERS[scorer].reads_data:
            set_languages(task_options, options.get("source_lang"), options.get("target_lang"))
        path = None if data is None else os.fspath(data)
        return cls(model, layout, scorer, path, options, task_options, weights, os.path.basename(checkpoint))

    def draw(self, pairs: Sequence[str] | None) -> Drawn:
        """Batches of the data, of the given pairs or of all."""
        if not SCORERS[self.scorer].reads_data:
            return Drawn([], None)
        assert self.data is not None
        subset, batches, max_tokens, seed = (self.options[name] for name in ("subset", "batches", "max_tokens", "seed"))
        found = draw_batches(self.model, self.task_options, self.data, subset, batches, max_tokens, seed, pairs)
        return Drawn(found, pairs_of_batches(self.task_options, pairs))

    def score(self, drawn: Drawn | None, watch: Watch) -> ScoreFile:
        drawn = self.draw(None) if drawn is None else drawn
        found, options = drawn.batches, self.options
        chosen = Chosen(self.layout, tuple(options["kinds"]))
        scorer = make_scorer(self.scorer, options["own"])
        scores, order = _scored(self.model, chosen, scorer, found, options, watch)
        return ScoreFile(
            version=__version__,
            scorer=self.scorer,
            layout=self.layout,
            scores=tuple(scores.tolist()),
            order=None if order is None else tuple(order),
            iterative=options["iterative"],
            subset=options["subset"] if found else None,
            batches=len(found) or None,
            max_tokens=options["max_tokens"] if found else None,
            sentences=sum(len(batch["target"]) for batch in found) or None,
            seed=options["seed"],
            checkpoint=self.checkpoint,
            weights=self.weights,
            units=tuple(options["kinds"]),
            comparable=SCORERS[self.scorer].comparable,
            pairs=drawn.pairs,
            options={name: os.path.basename(text) for name, text in options["own"].items() if text is not None} or None,
        )


def checked_options(
    scorer: str,
    data: Any,
    given: dict[str, Any],
    own: dict[str, str | os.PathLike[str] | None],
    of_units: tuple[str | None, int | str | None],
    check: Callable[[], Any] | None,
) -> tuple[Any, dict[str, Any]]:
    """The output, checked, and the options with their defaults; `kinds` of units, `group`, neurons a unit, and `own`.

    Args:
        own: of scorers: those that only some take.
        of_units: `--units` and `--ffn-group`.
        check: makes the output, or refuses it.

    Raises:
        Refusal: options that cannot be honoured, all at once.
    """
    texts = {name: None if value is None else os.fspath(value) for name, value in own.items()}
    reasons = _ignored(scorer, given | texts)
    if scorer in SCORERS:
        with noted(reasons):
            make_scorer(scorer, texts)
    options, wrong = read_options(given, _DEFAULTS)
    reasons += wrong
    (units, ffn_group), kinds = of_units, list[str]()
    with noted(reasons):
        kinds = list(parse_kinds(HEADS.name if units is None else units, "--units"))
        if kinds != [HEADS.name] and scorer in SCORERS and SCORERS[scorer].heads_alone:
            raise Refusal(f"`--units` must be heads for `--scorer {scorer}`, which reads attention, but is {units}.")
        if len(kinds) > 1 and options["iterative"] is not None and scorer in SCORERS and not SCORERS[scorer].comparable:
            raise Refusal(
                f"`--iterative` must not be given for several kinds of units by `--scorer {scorer}`, whose scores cannot be compared between "
                f"kinds, but is {options['iterative']} for {units}: which kind goes first would say how many units there are; score each alone."
            )
        if ffn_group is not None and kinds == [HEADS.name]:
            raise Refusal(f"`--ffn-group` must come with `--units ffn`, but is {ffn_group}.")
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
        target = None if check is None else check()
    if reasons:
        raise Refusal(*reasons)
    return target, options | {"kinds": kinds, "group": group, "own": texts}


def _layout_with(model: DspTransformerModel, kinds: list[str], group: int | None) -> Layout:
    """The model's layout with the units of these kinds.

    Raises:
        Refusal: neurons cannot be units of it, or not in these groups.
    """
    if kinds == [HEADS.name]:
        return model.layout
    if reasons := objections_to_neurons(model.args):
        raise Refusal(*reasons)
    if has_neurons(model.layout.grid):
        own = group_of(model.layout.grid, model.neurons, "--path")
        if group not in (None, own):
            raise Refusal(f"`--ffn-group` must be {own}, as the checkpoint's neurons were pruned, but is {group}.")
        return model.layout
    if group is None:
        sizes = {attention.head_dim for _, attention in attentions(model, model.layout.grid)}
        numbers = {number for layers in model.neurons.values() for number in layers}
        group = default_group(sizes, numbers, tuple(kinds)) if kinds == [SUBLAYERS.name] else 1
    return with_all_of(model.layout, with_groups(model.layout.grid, model.neurons, group))


def _scored(
    model: Any, chosen: Chosen, scorer: Scorer, batches: list[dict[str, Any]], options: dict[str, Any], watch: Watch
) -> tuple[torch.Tensor, list[int] | None]:
    """Scores of what is chosen among, [n], and the order of its removal where it is scored again in between."""
    grid, step = chosen.grid, options["iterative"]
    rounds = 1 if step is None else max(-(-grid.total // step), 1)
    with watch(f"{scorer.name}, batches", rounds * len(batches)) as done:
        subject = subject_of(model, _Watched(batches, done), options["seed"], grid, chosen.whole)
        if step is None:
            return finite_scores(scorer, subject, torch.ones(grid.total)), None
        return removal_order(scorer, subject, step)


def subject_of(
    model: Any, batches: Iterable[Any], seed: int, grid: Grid | None = None, sublayers: bool = False
) -> Subject:
    """A model without gates, as it is now and in evaluation mode, for a scorer.

    Args:
        batches: of fairseq.
        seed: of what is drawn.
        grid: units to score, of those that the model has; all of its layout if None.
        sublayers: whether these are whole sublayers, one a site.
    """
    model.eval()
    return Subject.of(model, batches, partial(loss_of, model), partial(words_of, model), seed, grid, sublayers)


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
    if "lang_pairs" in found:
        with noted(reasons):
            found["lang_pairs"] = language_pairs(found["lang_pairs"])
    return found, reasons


def _ignored(name: str, options: dict[str, Any]) -> list[str]:
    """Sentences on options that the scorer has no use for, or on a scorer that there is none of. A folder not read does no harm."""
    if name not in SCORERS:
        return [f"`--scorer` must be one of {', '.join(SCORERS)}, but is {name}."]
    scorer = SCORERS[name]
    aliens = ["iterative", "subset", "batches", "max_tokens", "source_lang", "target_lang", "lang_pairs"]
    aliens = [] if scorer.reads_data else [alien for alien in aliens if alien in options]
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
        if option not in scorer.options and options[option] is not None
        for of in [[f"`--scorer {each.name}`" for each in SCORERS.values() if option in each.options]]
    ]
    return found
