"""`results.jsonl`: one finished run a line, read strictly. Written by the reproduction, read by `fairseq-dsp-report`.

    {"method": "dsp", "kept": 4, "total": 24, "seed": 1, "layout": "enc:…/dec:…/cross:…", "bleu_tok": 33.1,
     "sacrebleu": 32.5, "chrf": 54.2, "signatures": {"bleu_tok": "nrefs:1|…", "sacrebleu": "…", "chrf": "…"},
     "updates": 20000, "seconds": 3600.5, "words_per_second": 51000.0, "parameters": 1234567, "hardware": "…",
     "versions": {"fairseq_dsp": "0.1.0", "torch": "…"}, "data": "…", "command": "fairseq-train …"}

Units are heads, or heads and groups of neurons (`/ffn-enc:…/ffn-dec:…`); `kept` and `total` count them. `budget` is what
`fairseq-dsp-prune --budget` was given, where it was no number of units. `macs` are multiply-adds a sentence, `latency` is seconds a sentence.
`updates`, `seconds` and `words_per_second` are null where nothing was trained. `hypotheses` and `log` may name files, as seen
from the results file's folder: detokenised translations, a line a sentence, and the training log. Further keys are left alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fairseq_dsp.errors import Refusal, summed_up
from fairseq_dsp.files.json_values import Rules, broken, excerpt, is_finite, is_whole, or_none
from fairseq_dsp.units.groups import has_neurons, part_of
from fairseq_dsp.units.heads import HEADS
from fairseq_dsp.units.layout import Layout, is_layout

DENSE = "dense"
# the figures that are scores of translations, and what readers call them
NATS = "valid_nats"
SCORES = {"bleu_tok": "BLEU (tokenised, lower-cased)", "sacrebleu": "sacreBLEU", "chrf": "chrF"}
# what a deployed model costs, what readers call it, and what one of its numbers is in that unit
COSTS = {
    "parameters": ("M parameters", 1e-6),
    "macs": ("M multiply-adds a sentence", 1e-6),
    "latency": ("ms a sentence", 1e3),
}
REFERENCES = os.path.join("hypotheses", "references.detok.txt")  # where a reproduction leaves them, beside its results
_MOST_REASONS = 20


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        method: name of the method; `dense` for the model with all heads.
        kept: K, the number of units kept.
        total: H, the number of units that the model began with.
        seed: of training.
        layout: the units kept.
        bleu_tok: lower-cased BLEU on tokens, 0 to 100. Likewise, on detokenised text:
        sacrebleu: BLEU.
        chrf: chrF.
        signatures: sacreBLEU's signature of each score, by the score's name.
        updates: number of updates trained; None where nothing was. Likewise:
        seconds: in training steps, without validation and start.
        words_per_second: target tokens a second of these, after segmentation, ends of sentences included.
        parameters: number of parameters that are deployed.
        hardware: a text, or an object of texts and numbers, as are `versions` and `data`.
        versions: of packages.
        data: what was trained and tested on.
        command: what ran, one command or several.
        hypotheses: path of the translations, or None.
        log: path of the training log, or None.
        valid_nats: loss of the deployed model on the validation set, in nats a target token, without label smoothing; None
            where it was not validated.
        shuffled_of: the method whose counts of heads by sublayer this run has, with heads drawn within; None for other runs.
        size_of: K, where the run is a narrower dense model with as many parameters as K heads leave: `kept` says that K too, while the
            layout has all of its heads; None for other runs.
        macs: multiply-adds of the deployed model for a sentence of the test set's mean lengths, or None.
        latency: seconds a sentence in which it translated the test set, on the hardware that the run names, or None.
        budget: what bought the units, where units were not counted, such as `parameters=0.5`; None where they were.
        line: number of the line in its file.
    """

    method: str
    kept: int
    total: int
    seed: int
    layout: Layout
    bleu_tok: float
    sacrebleu: float
    chrf: float
    signatures: dict[str, str]
    updates: int | None
    seconds: float | None
    words_per_second: float | None
    parameters: int
    hardware: str | dict[str, Any]
    versions: str | dict[str, Any]
    data: str | dict[str, Any]
    command: str | list[str]
    hypotheses: str | None = None
    log: str | None = None
    valid_nats: float | None = None
    shuffled_of: str | None = None
    size_of: int | None = None
    macs: int | None = None
    latency: float | None = None
    budget: str | None = None
    line: int = 0

    @property
    def is_dense(self) -> bool:
        return self.method == DENSE

    @property
    def is_counted(self) -> bool:
        """Whether it is one of K heads: neurons are no units, and the budget is a number."""
        return self.budget is None and not has_neurons(self.layout.grid)

    @property
    def heads(self) -> Layout:
        """The attention heads kept."""
        return part_of(self.layout, [HEADS.name])

    @property
    def size(self) -> str:
        """What it was cut to, in a table: K heads, so many units, or its budget."""
        return self.budget or (str(self.kept) if self.is_counted else f"{self.kept} units")

    @property
    def has_all_heads(self) -> bool:
        """Whether no head of its architecture was ever cut, so that there is nothing to say of a choice."""
        return self.is_dense or self.size_of is not None

    @property
    def name(self) -> str:
        """What a message calls the run."""
        return f"{self.method}, {self.size}{' heads' if self.is_counted else ''}, seed {self.seed}"


def read_records(path: str, warn: Callable[[str], Any]) -> list[Record]:
    """Reads a results file.

    Args:
        path: the file.
        warn: is given a sentence on a last line that is no whole JSON (its writer was killed) and on a run that is there
            twice; of those the last counts.

    Raises:
        Refusal: it cannot be read, holds no run, or a line is not as above; every reason, with its line.
    """
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise Refusal(f"the results must be a file, but {path} cannot be read: {error.strerror}.") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    records: dict[tuple[Any, ...], Record] = {}
    reasons: list[str] = []
    twice: list[str] = []
    for number, line in numbered:
        try:
            content = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if number == numbered[-1][0]:
                warn(f"{path}, line {number}, the last, is no whole JSON and was left out: its writer was stopped.")
            else:
                reasons.append(f"{path}, line {number} must be whole JSON, but is {excerpt(line)}: {error}.")
            continue
        wrong = _problems(content)
        reasons += [f"{path}, line {number}: {problem}." for problem in wrong]
        if wrong:
            continue
        record = _record(content, number)
        key = (record.method, record.budget or record.kept, record.seed, record.layout.grid, describe(record.data))
        if key in records:
            twice.append(
                f"{path}: lines {records[key].line} and {number} are both {record.name}; line {number} counts."
            )
        records[key] = record
    for sentence in summed_up("runs", twice):
        warn(sentence)
    if len(reasons) > _MOST_REASONS:
        reasons[_MOST_REASONS:] = [f"{path}: there are {len(reasons) - _MOST_REASONS} more of these."]
    if not reasons and not records:
        reasons.append(f"the results must hold a finished run at least, but {path} holds none.")
    if reasons:
        raise Refusal(*reasons)
    return list(records.values())


def resolve(path: str, results: str) -> str:
    """A path in a results file, as seen from the working directory."""
    return os.path.join(os.path.dirname(results), path)


def describe(value: str | dict[str, Any] | list[str]) -> str:
    """Hardware, versions, data or command as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items() if item not in ("", None))
    return value if isinstance(value, str) else " && ".join(value)


def name_of(data: str | dict[str, Any]) -> str:
    """What the data is called: its `label` and `pair`, where it has them."""
    if isinstance(data, dict):
        return " ".join(str(data[name]) for name in ("label", "pair") if data.get(name)) or describe(data)
    return data


def _record(content: dict[str, Any], line: int) -> Record:
    known = {name: content[name] for name in Record.__dataclass_fields__ if name in content}
    return Record(**known | {"layout": Layout.parse(content["layout"]), "line": line})


def _problems(content: Any) -> list[str]:
    """What is wrong with a line's content; empty for a record."""
    if not isinstance(content, dict):
        return [f"a run must be an object, but is {excerpt(content)}"]
    found = [f"`{name}` must be there, but is missing" for name in _RULES if name not in content]
    found += broken(content, _RULES | _OPTIONAL_RULES)
    return found or _disagreements(content)


def _disagreements(content: dict[str, Any]) -> list[str]:
    """What is wrong between values that are right by themselves."""
    found = []
    layout, size = Layout.parse(content["layout"]), content.get("size_of")
    for name, count, what in (("kept", layout.count, "keeps"), ("total", layout.grid.total, "has")):
        if content[name] != count and (size is None or name == "total"):
            found.append(
                f"`{name}` must be the {count} {layout.grid.noun} that the layout {what}, but is {content[name]}"
            )
    if size is not None and (content["kept"], layout.count) != (size, layout.grid.total):
        found.append(
            f"`size_of` must be what `kept` is, of a layout with all its heads, but they are {size}, {content['kept']} and "
            f"{layout.count} of {layout.grid.total}"
        )
    if content["method"] == DENSE and content["kept"] != content["total"] and not found:
        found.append(f"`kept` must be {content['total']}, all {layout.grid.noun}, for dense, but is {content['kept']}")
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and value.isprintable()


def _is_count(value: Any) -> bool:
    return is_whole(value, 0) and value < 2**63


def _is_number(value: Any) -> bool:
    return is_finite(value, 0)


def _is_score(value: Any) -> bool:
    return _is_number(value) and value <= 100.0001  # chrF of a perfect translation may round above 100


def _is_description(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(item, str) or item is None or _is_number(item) for item in value.values())
    return isinstance(value, str)


def _is_command(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


_SCORE = ("a number from 0 to 100", _is_score)
_COUNT = ("a whole number of at least 0", _is_count)
_DESCRIPTION = ("a text, or an object of texts and numbers", _is_description)
_PATH = ("a path or null", or_none(_is_text))
_RULES: Rules = {
    "method": ("a text of one line", _is_text),
    "kept": _COUNT,
    "total": _COUNT,
    "seed": _COUNT,
    "layout": ("a layout, enc:…/dec:…/cross:…", is_layout),
    "bleu_tok": _SCORE,
    "sacrebleu": _SCORE,
    "chrf": _SCORE,
    "signatures": (
        "an object of texts",
        lambda value: isinstance(value, dict) and all(_is_text(item) for item in value.values()),
    ),
    "updates": ("a whole number of at least 0, or null", or_none(_is_count)),
    "seconds": ("a number of at least 0, or null", or_none(_is_number)),
    "words_per_second": ("a number of at least 0, or null", or_none(_is_number)),
    "parameters": _COUNT,
    "hardware": _DESCRIPTION,
    "versions": _DESCRIPTION,
    "data": _DESCRIPTION,
    "command": ("a text or a list of texts", _is_command),
}
_NUMBER = ("a number of at least 0, or null", or_none(_is_number))
_OPTIONAL_RULES: Rules = {
    "hypotheses": _PATH,
    "log": _PATH,
    "valid_nats": _NUMBER,
    "shuffled_of": ("a text of one line or null", or_none(_is_text)),
    "size_of": ("a whole number of at least 0, or null", or_none(_is_count)),
    "macs": ("a whole number of at least 0, or null", or_none(_is_count)),
    "latency": _NUMBER,
    "budget": ("a text of one line or null", or_none(_is_text)),
}
