"""A trained scorer in a file: what `fairseq-dsp-train-scorer` writes and `fairseq-dsp-score --scorer-model` reads, strictly.

    {"format": 1, "kind": "one-shot", "version": "0.1.0", "features": ["entropy", …], "means": […], "scales": […],
     "hidden": [[…], …], "biases": […], "output": […], "models": ["dense.pt"], "steps": 500, "seed": 1, "sum": "9c…"}

JSON, because it holds some hundred numbers and no code. `sum` is a checksum of all the rest: a changed number is a wrong score
that nobody sees.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.json_values import Rules, broken, is_finite, is_whole, read_json

FORMAT, KIND = 1, "one-shot"

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class ScorerModel:
    """A network of one hidden layer over F features of a head, and where it is from.

    Attributes:
        version: of this package.
        features: their names, F.
        means: of the features over the heads that it was trained on, [F]. Likewise:
        scales: their standard deviations, [F], above 0.
        hidden: weights [N, F] of the hidden layer.
        biases: [N].
        output: weights [N] of the score.
        models: file names of the checkpoints that it was trained on.
        steps: of its training.
        seed: of its training.
    """

    version: str
    features: tuple[str, ...]
    means: Numbers
    scales: Numbers
    hidden: tuple[Numbers, ...]
    biases: Numbers
    output: Numbers
    models: tuple[str, ...]
    steps: int
    seed: int

    def text(self) -> str:
        """The file's content."""
        content = {"format": FORMAT, "kind": KIND, **asdict(self)}
        return json.dumps({**content, "sum": _sum_of(content)}, indent=1) + "\n"


def read_scorer_model(path: str) -> ScorerModel:
    """Reads a trained scorer.

    Raises:
        Refusal: it cannot be read, is of another kind, or is damaged.
    """
    content = read_json(path, "`--scorer-model`", any_number=True)  # the rules name the entry
    found = tuple(content.get(name) for name in ("kind", "format")) if isinstance(content, dict) else (None, None)
    if found != (KIND, FORMAT) or found[1] is True:
        raise Refusal(
            f"`--scorer-model` must be of fairseq-dsp-train-scorer, kind {KIND}, format {FORMAT}, but {path} is of kind "
            f"{found[0]}, format {found[1]}."
        )
    names = ScorerModel.__dataclass_fields__.keys()
    wrong = [f"`{name}` is missing" for name in (*names, "sum") if name not in content]
    wrong += [f"`{name}` is not known" for name in content if name not in {*names, "format", "kind", "sum"}]
    wrong += broken(content, _RULES)
    if not wrong:
        wrong = _disagreements(content)
    if not wrong and content.pop("sum") != _sum_of(content):
        wrong = ["the checksum is not that of the rest"]
    if wrong:
        raise Refusal(f"`--scorer-model` must be undamaged, but in {path} {'; '.join(wrong)}.")
    return ScorerModel(**{name: _frozen(content[name]) for name in names})


def _sum_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value


def _disagreements(content: dict[str, Any]) -> list[str]:
    """What is wrong between values that are right by themselves."""
    features, units = len(content["features"]), len(content["output"])
    wrong = [f"`{name}` are not one a feature" for name in ("means", "scales") if len(content[name]) != features]
    if len(content["hidden"]) != units or any(len(row) != features for row in content["hidden"]):
        wrong.append("`hidden` has not a row for every number of `output`, of a number for every feature")
    if len(content["biases"]) != units:
        wrong.append("`biases` are not one for every number of `output`")
    return wrong


def _is_list_of(fits: Any) -> Any:
    return lambda value: isinstance(value, list) and bool(value) and all(fits(each) for each in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


_TEXTS = ("a list of texts", _is_list_of(_is_text))
_NUMBERS = ("a list of numbers", _is_list_of(is_finite))
_RULES: Rules = {
    "version": ("a text", _is_text),
    "features": _TEXTS,
    "means": _NUMBERS,
    "scales": ("a list of numbers above 0", _is_list_of(lambda value: is_finite(value) and value > 0)),
    "hidden": ("a list of lists of numbers", _is_list_of(_is_list_of(is_finite))),
    "biases": _NUMBERS,
    "output": _NUMBERS,
    "models": _TEXTS,
    "steps": ("a whole number above 0", lambda value: is_whole(value, 1)),
    "seed": ("a whole number", is_whole),
    "sum": ("a text", _is_text),
}
