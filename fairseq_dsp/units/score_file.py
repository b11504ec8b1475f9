"""`scores.json`: what `fairseq-dsp-score` writes and `fairseq-dsp-prune --scores` reads, strictly.

    {"format": 1, "version": "0.1.0", "scorer": "gradient", "layout": "enc:11/dec:11/cross:11", "scores": [0.9, …],
     "order": null, "iterative": null, "subset": "train", "batches": 100, "max_tokens": 4096, "sentences": 3214,
     "seed": 1, "checkpoint": "dense.pt", "weights": {"float32": "9c…", "float16": "07…", "bfloat16": "e1…"}}

`layout` gives the grid and which of its heads the model had; `scores` and `order` count those, in the grid's order. `weights` is
the model's `fingerprint`; earlier versions wrote none. Of a model of several language pairs, `pairs` names those that were read.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.json_values import excerpt, is_finite, is_whole
from fairseq_dsp.units.fingerprint import PRECISIONS, SIZE
from fairseq_dsp.units.floors import Floors, top_k_above_floors
from fairseq_dsp.units.layout import Layout

FORMAT = 1
_OF_DATA = ("subset", "batches", "max_tokens", "sentences")  # null together, where no data was read

_LATER = ("weights", "pairs")  # left out where there are none


@dataclass(frozen=True)
class ScoreFile:
    """Scores of a model's heads and where they are from.

    Attributes:
        version: of this package.
        scorer: name of the scorer.
        layout: the heads that the model has; its marks say which are scored.
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
        pairs: language pairs of the sentences, as `en-de`; None where the model has but one.
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
    pairs: tuple[str, ...] | None = None

    def keep_top(self, k: int, floors: Floors = ()) -> Layout:
        """The layout of the k heads that matter most, or that are removed last.

        Args:
            floors: of the layout's surviving grid.

        Raises:
            ValueError: k is below the floors or above the number of heads.
        """
        values = torch.tensor(self.scores, dtype=torch.float64)
        if self.order is not None:
            values[list(self.order)] = torch.arange(len(self.order), dtype=torch.float64)
        return self.layout.narrow(top_k_above_floors(values, k, floors))

    def text(self) -> str:
        """The file's content."""
        content = {"format": FORMAT, **asdict(self), "layout": str(self.layout)}
        for name in _LATER:
            if content[name] is None:
                del content[name]
        return json.dumps(content, indent=1) + "\n"


def read_scores(path: str) -> ScoreFile:
    """Reads a score file.

    Raises:
        Refusal: it cannot be read, or is not exactly what `text` writes; every reason at once.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, parse_constant=_refuse_constant)
    except OSError as error:
        raise Refusal(f"`--scores` must be a file, but {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # JSON, UTF-8, numbers and nesting without end
        raise Refusal(f"`--scores` must be whole JSON, but {path} is not: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content["format"] is True:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise Refusal(f"`--scores` must be a score file of format {FORMAT}, but {path} is of {found!r}.")
    names = ScoreFile.__dataclass_fields__.keys()
    wrong = [f"`{name}` is missing" for name in names if name not in content and name not in _LATER]
    wrong += [f"`{name}` is not known" for name in content if name not in {*names, "format"}]
    wrong += [problem for name in names if name in content for problem in _problem(name, content[name])]
    if not wrong:
        content["layout"] = Layout.parse(content["layout"])
        wrong = _disagreements(content)
    if wrong:
        raise Refusal(*(f"`--scores` must be as fairseq-dsp-score writes it, but in {path} {each}." for each in wrong))
    lists = {name: tuple(content[name]) for name in ("scores", "order", "pairs") if content.get(name) is not None}
    return ScoreFile(**{name: content[name] for name in names if name in content} | lists)


def _problem(name: str, value: Any) -> list[str]:
    """What is wrong with a value by itself."""
    if value is None and name in ("order", "iterative", *_OF_DATA):
        return []
    if name in ("version", "scorer", "checkpoint"):
        return [] if isinstance(value, str) and value else [f"`{name}` is no text but {excerpt(value)}"]
    if name == "subset":
        return [] if value in ("train", "valid") else [f"`subset` is neither train nor valid but {excerpt(value)}"]
    if name == "layout":
        try:
            Layout.parse(value)
        except (ValueError, AttributeError):
            return [f"`layout` is no layout but {excerpt(value)}"]
        return []
    if name == "weights":
        return [] if _is_fingerprint(value) else [f"`weights` is no fingerprint but {excerpt(value)}"]
    if name == "seed":
        return [] if is_whole(value) else [f"`seed` is no whole number but {excerpt(value)}"]
    if name in ("iterative", *_OF_DATA):
        return [] if is_whole(value, 1) else [f"`{name}` is no whole number above 0 but {excerpt(value)}"]
    if name == "pairs":
        right = (
            isinstance(value, list) and value and all(isinstance(each, str) and each.count("-") == 1 for each in value)
        )
        return [] if right else [f"`pairs` is no list of language pairs but {excerpt(value)}"]
    if not isinstance(value, list):
        return [f"`{name}` is no list but {excerpt(value)}"]
    fits, item = (is_whole, "head") if name == "order" else (is_finite, "number")
    return [f"`{name}` holds {excerpt(strange)}, which is no {item}" for strange in value if not fits(strange)][:1]


def _is_fingerprint(value: Any) -> bool:
    if not isinstance(value, dict) or not value or not value.keys() <= PRECISIONS.keys():
        return False
    return all(isinstance(each, str) and re.fullmatch(rf"[0-9a-f]{{{2 * SIZE}}}", each) for each in value.values())


def _disagreements(content: dict[str, Any]) -> list[str]:
    """What is wrong between values that are right by themselves."""
    wrong = []
    count, order = content["layout"].count, content["order"]
    if len(content["scores"]) != count:
        wrong.append(f"`scores` are {len(content['scores'])} for the {count} heads of the layout")
    if order is not None and sorted(order) != list(range(count)):
        wrong.append(f"`order` does not name each of the {count} heads once")
    if (order is None) != (content["iterative"] is None):
        wrong.append("`order` and `iterative` do not go together")
    data = [name for name in _OF_DATA if content[name] is None]
    if len(data) not in (0, len(_OF_DATA)):
        wrong.append(f"{' and '.join(f'`{name}`' for name in data)} must not be missing where data was read")
    return wrong


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
