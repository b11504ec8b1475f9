"""`scores.json`: what `fairseq-dsp-score` writes and `fairseq-dsp-prune --scores` reads, strictly.

    {"format": 1, "version": "0.1.0", "scorer": "gradient", "layout": "enc:11/dec:11/cross:11", "scores": [0.9, …],
     "order": null, "iterative": null, "subset": "train", "batches": 100, "max_tokens": 4096, "sentences": 3214,
     "seed": 1, "checkpoint": "dense.pt", "weights": {"float32": "9c…", "float16": "07…", "bfloat16": "e1…"}}

`layout` gives the grid and which of its heads the model had; `scores` and `order` count those, in the grid's order. `weights` is
the model's `fingerprint`; earlier versions wrote none. Of a model of several language pairs, `pairs` names those
that were read.

Where neurons are units too the format is 2. It says of which kinds the scored units are, and whether scores of different kinds may be
compared; `scores` and `order` count the units of these kinds, and earlier versions refuse it:

    "units": ["heads", "ffn"], "comparable": true

Options of the scorer's own that were given stand at the end, in either format:

    "options": {"norm": "relative"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.json_values import Rules, broken, excerpt, is_finite, is_whole, or_none, read_json
from fairseq_dsp.units.chosen import Chosen
from fairseq_dsp.units.fingerprint import PRECISIONS, SIZE, agree
from fairseq_dsp.units.floors import Floors, top_k_above_floors
from fairseq_dsp.units.groups import has_neurons
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.kinds import KINDS
from fairseq_dsp.units.layout import Layout, is_layout
from fairseq_dsp.units.sublayers import SUBLAYERS

# Of heads alone, and of several kinds, with what the second adds.
FORMATS = (1, 2)
_ADDED = ("units", "comparable")
_OF_DATA = ("subset", "batches", "max_tokens", "sentences")  # null together, where no data was read
_LATER = ("weights", "pairs", "options")  # left out where there are none


@dataclass(frozen=True)
class ScoreFile:
    """Scores of a model's units and where they are from.

    Attributes:
        version: of this package.
        scorer: name of the scorer.
        layout: the units that the model has; its marks say which are scored.
        scores: one for each of them; larger matters more.
        order: all of them in the order of their removal, where they were scored again in between; otherwise None.
        iterative: number of heads removed between two scorings; None for one scoring.
        subset: `train` or `valid`; None where no data was read. Likewise:
        batches: number of batches.
        max_tokens: most tokens of a batch on either side, padding included.
        sentences: number of sentence pairs in all batches.
        seed: of the choice of batches, and of random scores.
        checkpoint: file name of the checkpoint.
        weights: the fingerprint of its weights; None where the file is of an earlier version.
        units: kinds of the units that are scored, in the order of a grid.
        comparable: whether scores of different kinds may be compared.
        pairs: language pairs of the sentences, as `en-de`; None where the model has but one.
        options: of the scorer's own, as given, of files their names alone; None where none is given.
    """

    version: str
    scorer: str
    layout: Layout
    scores: tuple[float, ...]
    order: tuple[int, ...] | None
    iterative: int | None
    subset: str | None
    batches: int | None
    max_tokens: int | None
    sentences: int | None
    seed: int
    checkpoint: str
    weights: dict[str, str] | None = None
    units: tuple[str, ...] = (HEADS.name,)
    comparable: bool = True
    pairs: tuple[str, ...] | None = None
    options: dict[str, str] | None = None

    @property
    def format(self) -> int:
        """1 where there are no units but heads."""
        return 2 if has_neurons(self.layout.grid) else 1

    @property
    def is_sum(self) -> bool:
        """Whether the scores of several units add up to what they are worth together; not where they are places in an order, merged or not."""
        return self.order is None and not {"joint-fisher", "worst"} & set(self.scorer.split(" of "))

    @property
    def chosen(self) -> Chosen:
        """What is scored: a score for each unit of its grid."""
        return Chosen(self.layout, self.units)

    @property
    def comparing(self) -> list[slice]:
        """Where the scores lie that may be compared with one another: all of them, or those of each kind."""
        if self.comparable or len(self.units) == 1:
            return [slice(0, len(self.scores))]
        return list(self.chosen.places().values())

    def keep_top(self, k: int, floors: Floors = ()) -> Layout:
        """The layout of the k scored units that matter most, or that are removed last. Units that are not scored stay.

        Args:
            floors: of the grid of `chosen`.

        Raises:
            ValueError: k is below the floors or above the number of units, or the units are of kinds that do not compare.
        """
        if objection := self.objection_to_one_budget("k", k):
            raise ValueError(objection)
        return self.chosen.keep(top_k_above_floors(self.ranking(), k, floors))

    def keep_top_of_kinds(self, budgets: Mapping[str, int], floors: Floors = ()) -> Layout:
        """The layout of so many units of each kind that matter most. Units of kinds that are not named stay.

        Args:
            budgets: how many to keep, by the name of the kind.
            floors: of the grid of `chosen`.

        Raises:
            ValueError: a kind that is not scored, or of which there are fewer, or a number below the floors of its units.
        """
        layout, values = self.layout, self.ranking()
        if strangers := [name for name in budgets if name not in self.units]:
            raise ValueError(f"the scores are of {' and '.join(self.units)}, but the budget is of {strangers[0]}.")
        for name, place in self.chosen.places().items():
            if name in budgets:
                start, end = place.start, place.stop
                own = [([unit - start for unit in units], least) for units, least in floors if start <= units[0] < end]
                best = top_k_above_floors(values[place], budgets[name], own)
                layout = layout.also_within(Chosen(self.layout, (name,)).keep(best))
        return layout

    def objection_to_one_budget(self, option: str, budget: object) -> str | None:
        """The sentence on one budget for units of several kinds whose scores cannot be compared; None if there is nothing against it.

        Args:
            option: what the user calls the budget.
        """
        if len(self.comparing) == 1:
            return None
        each = ",".join(f"{name}=K" for name in self.units)
        return (
            f"`{option}` must give each kind of unit its own budget ({each}), for scores of `--scorer {self.scorer}` cannot be "
            f"compared between kinds, but is {budget}."
        )

    def ranking(self) -> torch.Tensor:
        """What the scored units are ordered by, larger for those that matter more: [units] float64."""
        values = torch.tensor(self.scores, dtype=torch.float64)
        if self.order is not None:
            values[list(self.order)] = torch.arange(len(self.order), dtype=torch.float64)
        return values

    def objection_to_weights(self, found: dict[str, str], option: str, path: str = "the checkpoint") -> str | None:
        """The sentence on scores of other weights; None where they are of these, or do not say of which.

        Args:
            found: fingerprint of the weights that they should be of.
            option: that which named the scores, as the sentence says it.
            path: whose weights they should be.
        """
        if self.weights is None or agree(self.weights, found):
            return None
        theirs, ours = (next(iter(marks.items())) for marks in (self.weights, found))
        return (
            f"{option} must be of the checkpoint's own weights, but are of those of {self.checkpoint} ({theirs[0]} "
            f"{theirs[1][:8]}), and {path} has others ({ours[0]} {ours[1][:8]}): score it with fairseq-dsp-score."
        )

    def text(self) -> str:
        """The file's content."""
        content = {"format": self.format, **asdict(self), "layout": str(self.layout)}
        absent = [name for name in _LATER if content[name] is None]
        for name in [*absent, *(_ADDED if self.format == 1 else [])]:
            del content[name]
        return json.dumps(content, indent=1) + "\n"


def read_scores(path: str, option: str = "`--scores`") -> ScoreFile:
    """Reads a score file.

    Args:
        option: that which named it, as sentences say it.

    Raises:
        Refusal: it cannot be read, or is not exactly what `text` writes; every reason at once.
    """
    content = read_json(path, option)
    if not isinstance(content, dict) or content.get("format") not in FORMATS or content["format"] is True:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        known = " or ".join(map(str, FORMATS))
        raise Refusal(f"{option} must be a score file of format {known}, but {path} is of {found!r}.")
    names = [name for name in ScoreFile.__dataclass_fields__ if name not in _ADDED or content["format"] > 1]
    wrong = [f"`{name}` is missing" for name in names if name not in content and name not in _LATER]
    wrong += [f"`{name}` is not known" for name in content if name not in {*names, "format"}]
    wrong += broken({name: content[name] for name in names if name in content}, _RULES) + _strange_items(content)
    if not wrong:
        content["layout"] = Layout.parse(content["layout"])
        wrong = _disagreements(content)
    if wrong:
        raise Refusal(*(f"{option} must be as fairseq-dsp-score writes it: in {path} {each}." for each in wrong))
    lists = {
        name: tuple(content[name]) for name in ("scores", "order", "units", "pairs") if content.get(name) is not None
    }
    return ScoreFile(**{name: content[name] for name in names if name in content} | lists)


def _is_fingerprint(value: Any) -> bool:
    if not isinstance(value, dict) or not value or not value.keys() <= PRECISIONS.keys():
        return False
    return all(isinstance(each, str) and re.fullmatch(rf"[0-9a-f]{{{2 * SIZE}}}", each) for each in value.values())


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, str) for each in value.values())


def _are_kinds(value: Any) -> bool:
    known, whole = [kind.name for kind in KINDS], [SUBLAYERS.name]
    return (
        value == whole or isinstance(value, list) and value != [] and [name for name in known if name in value] == value
    )


def _strange_items(content: dict[str, Any]) -> list[str]:
    """The first of each list that is not what the list is of."""
    return [
        f"`{name}` holds {excerpt(strange)}, which is no {item}"
        for name, item, fits in (("scores", "number", is_finite), ("order", "head", is_whole))
        if isinstance(content.get(name), list)
        for strange in [each for each in content[name] if not fits(each)][:1]
    ]


def _disagreements(content: dict[str, Any]) -> list[str]:
    """What is wrong between values that are right by themselves."""
    wrong = []
    layout, order = content["layout"], content["order"]
    if has_neurons(layout.grid) != (content["format"] > 1):
        wrong.append(f"`layout` is of {layout.grid.noun}, and the format {content['format']}")
    count, noun = Chosen(layout, tuple(content.get("units", [HEADS.name]))).grid.total, layout.grid.noun
    if len(content["scores"]) != count:
        wrong.append(f"`scores` are {len(content['scores'])} for the {count} {noun} of the layout")
    if order is not None and sorted(order) != list(range(count)):
        wrong.append(f"`order` does not name each of the {count} {noun} once")
    if (order is None) != (content["iterative"] is None):
        wrong.append("`order` and `iterative` do not go together")
    data = [name for name in _OF_DATA if content[name] is None]
    if len(data) not in (0, len(_OF_DATA)):
        wrong.append(f"{' and '.join(f'`{name}`' for name in data)} must not be missing where data was read")
    return wrong


def _are_pairs(value: Any) -> bool:
    right = isinstance(value, list) and value != []
    return right and all(isinstance(each, str) and each.count("-") == 1 for each in value)


_TEXT = ("a text", lambda value: isinstance(value, str) and value != "")
_COUNT = ("a whole number above 0, or null", or_none(lambda value: is_whole(value, 1)))
_RULES: Rules = {
    "version": _TEXT,
    "scorer": _TEXT,
    "layout": ("a layout, enc:…/dec:…/cross:…", is_layout),
    "scores": ("a list of numbers", lambda value: isinstance(value, list)),
    "order": ("a list of heads, or null", or_none(lambda value: isinstance(value, list))),
    "iterative": _COUNT,
    "subset": ("train, valid or null", lambda value: value in ("train", "valid", None)),
    "batches": _COUNT,
    "max_tokens": _COUNT,
    "sentences": _COUNT,
    "seed": ("a whole number", is_whole),
    "checkpoint": _TEXT,
    "weights": ("a fingerprint", _is_fingerprint),
    "units": (f"a list of {', '.join(kind.name for kind in KINDS)}, in this order, or of {SUBLAYERS.name}", _are_kinds),
    "comparable": ("true or false", lambda value: isinstance(value, bool)),
    "pairs": ("a list of language pairs", _are_pairs),
    "options": ("texts by name", _is_texts),
}
