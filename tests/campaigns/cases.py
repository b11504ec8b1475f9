"""Broken inputs of every kind, each with the command that gets it and what must come of it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from commands import run as run_command
from hypothesis import strategies as st
from measured import made_up_costs

from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.options.costing import sizes_of
from fairseq_dsp.plugin.building import load_model
from tests.campaigns import mutations
from tests.campaigns.material import LAYOUT, Material


@dataclass(frozen=True)
class Case:
    """A broken input and what is done with it.

    Args:
        kind: of input.
        name: of our command, such as `prune`.
        arguments: of the command; `OUT` stands for its output.
        heads: how many heads a checkpoint must have that is written; None for as many as it says.
        reads: the checkpoint among the arguments whose heads are scored, if any.
        same: the undamaged file and what is done with it, where that must give the same; empty where it need not.
        must_say: what a refusal must name, and nothing but a refusal will do; empty for anything.
        check: what must be right with what is written, instead of what is asked of the command's outputs; where nothing must be
            said, a refusal is wrong then.
        apart: whether it must run in a process of its own, which can be ended in the middle of a computation.
        about: what a failure is told with.
    """

    kind: str
    name: str
    arguments: tuple[str, ...]
    heads: int | None = None
    reads: str = ""
    same: tuple[str, ...] = ()
    must_say: str = ""
    check: Callable[[Path], list[str]] | None = None
    apart: bool = False
    about: str = ""


class Source:
    """Makes cases: each kind has its share.

    Args:
        folder: for the broken files, one of each name at a time.
        marker: a folder that code in options makes.
    """

    def __init__(self, made: Material, folder: Path, marker: Path) -> None:
        self.made, self.folder, self.marker = made, folder, marker
        self.bytes = {path: path.read_bytes() for path in (made.trained, made.pruned, made.narrow)}
        self.boundaries = {path: mutations.boundaries_of(content) for path, content in self.bytes.items()}
        self.state, self.narrow = (torch.load(path, weights_only=True) for path in (made.trained, made.narrow))
        self.scores = self._scores("heads.json")
        self.scores_of_kinds = self._scores("kinds.json", "--units", "heads,ffn", "--ffn-group", "4")
        sizes = sizes_of(load_model(read_checkpoint(str(made.dense))))
        self.costs = json.loads(made_up_costs(sizes).text())
        self._file("costs.json", json.dumps(self.costs).encode())
        self.results = [json.loads(line) for line in made.results.read_text().splitlines()]

    def cases(self) -> st.SearchStrategy[Case]:
        """Any case."""
        commands = st.sampled_from(self._commands)
        return st.one_of(
            mutations.layout_texts().map(self.layout),
            st.builds(self.budget, mutations.BUDGETS),
            st.builds(self.score, mutations.json_files([self.scores], lines=False), st.integers(0, 12)),
            mutations.json_files([self.scores_of_kinds], lines=False).map(self.score_of_kinds),
            mutations.budget_texts().map(self.measure),
            mutations.json_files([self.costs], lines=False).map(self.cost),
            mutations.json_files(self.results, lines=True).map(self.result),
            st.builds(self.acting, mutations.acting_options(self.state, self.marker), commands),
            *(
                strategy
                for state in (self.state, self.narrow)
                for strategy in (
                    st.builds(self.options, mutations.options(state), commands, st.just(state)),
                    st.builds(self.weights, mutations.weights(state), commands),
                )
            ),
            *(
                st.builds(self.damage, mutations.damaged(content, self.boundaries[path]), commands, st.just(path))
                for path, content in self.bytes.items()
            ),
        )

    def undamaged(self) -> Iterator[Case]:
        """What is done with damaged files, done with whole ones."""
        for path, content in self.bytes.items():
            for command in dict.fromkeys(self._commands):
                yield self.damage(content, command, path)

    def layout(self, text: str) -> Case:
        arguments = (str(self.made.dense), "OUT", f"--layout={text}")
        return Case("layout", "prune", arguments, _count(text), about=repr(text))

    def budget(self, text: str) -> Case:
        with contextlib.suppress(ValueError):
            return Case("budget", "prune", (str(self.made.trained), "OUT", f"--unpruned-heads={text}"), int(text))
        return Case(
            "budget", "prune", (str(self.made.trained), "OUT", f"--unpruned-heads={text}"), must_say="whole number"
        )

    def score(self, content: bytes, heads: int) -> Case:
        path = self._file("scores.json", content)
        arguments = (str(self.made.dense), "OUT", "--scores", path, "--unpruned-heads", str(heads))
        return Case("scores", "prune", arguments, heads, about=repr(content[:300]))

    def score_of_kinds(self, content: bytes) -> Case:
        return self._measured("scores", content, "broken-kinds.json", "parameters=0.8")

    def measure(self, text: str) -> Case:
        return self._measured("budget", None, "kinds.json", text)

    def cost(self, content: bytes) -> Case:
        return self._measured("costs", content, "kinds.json", "latency=0.6", "broken-costs.json")

    def _measured(self, kind: str, content: bytes | None, scores: str, budget: str, costs: str = "costs.json") -> Case:
        """A cut of the dense checkpoint to a budget of a measure; `content` is that of the file whose name begins with `broken`."""
        about = repr(budget if content is None else content[:300])
        if content is not None:
            self._file(scores if scores.startswith("broken") else costs, content)
        words = [str(self.made.dense), "OUT", "--scores", str(self.folder / scores), f"--budget={budget}"]
        words += ["--costs", str(self.folder / costs)] if "latency" in budget else []
        return Case(kind, "prune", tuple(words), about=about)

    def result(self, content: bytes) -> Case:
        return Case(
            "results", "report", (self._file("results.jsonl", content), "--output", "OUT"), about=repr(content[:2000])
        )

    def options(self, state: Any, command: tuple[str, ...], whole: Any) -> Case:
        text = str(_differences(state, whole))
        return self._case("options", self._checkpoint(state), command, about=text)

    def acting(self, changed: tuple[Any, str], command: tuple[str, ...]) -> Case:
        state, text = changed
        return self._case("acting options", self._checkpoint(state), command, apart=True, about=text)

    def weights(self, broken: tuple[Any, str, str], command: tuple[str, ...]) -> Case:
        state, name, what = broken
        # what fairseq 0.12.2 leaves unwritten may be NaN, and is zeroed
        must = what == "not finite" and state["model"][name].numel() and not name.endswith("_float_tensor")
        must_say = name if must else ""
        return self._case("weights", self._checkpoint(state), command, must_say=must_say, about=f"{name} {what}")

    def damage(self, content: bytes, command: tuple[str, ...], path: Path) -> Case:
        about = f"{len(content)} bytes of {path.name}"
        return self._case("bytes", self._file("broken.pt", content), command, same=(path.name, *command), about=about)

    @property
    def _commands(self) -> tuple[tuple[str, ...], ...]:
        """What is done with a checkpoint, `broken`; often what is there twice."""
        return (
            ("prune", "broken", "OUT"), ("prune", "broken", "OUT"), ("prune", "broken", "OUT", "--layout", LAYOUT),
            ("average", "OUT", "broken", "broken"), ("export", "broken", "OUT", "--format", "dense"),
            ("score", str(self.made.data), "--path", "broken", "--scorer", "magnitude", "--output", "OUT", "--cpu"),
        )  # fmt: skip

    def _case(self, kind: str, path: str, command: tuple[str, ...], **others: Any) -> Case:
        arguments = tuple(path if word == "broken" else word for word in command[1:])
        return Case(kind, command[0], arguments, reads=path if command[0] == "score" else "", **others)

    def _checkpoint(self, state: Any) -> str:
        path = self.folder / "broken.pt"
        with contextlib.suppress(Exception):  # what torch cannot save no user has
            torch.save(state, path)
        return str(path)

    def _scores(self, name: str, *extra: str) -> Any:
        """Scores of the dense checkpoint, which are kept in the folder too."""
        path = self.folder / name
        score = [self.made.data, "--path", self.made.dense, "--scorer", "magnitude", *extra, "--output", path, "--cpu"]
        done = run_command("fairseq_dsp.cli.score", *score, folder=self.folder)
        assert done.code == 0, done.err
        return json.loads(path.read_text())

    def _file(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)


def _count(text: str) -> int:
    """Heads of a layout, if it is one."""
    return text.count("1")


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two trees differ, for people."""
    one, other = (
        vars(each) if hasattr(each, "__dict__") and not torch.is_tensor(each) else each for each in (one, other)
    )
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if key != "model" or path]
        return [
            text
            for key in keys
            for text in (
                _differences(one[key], other[key], f"{path}.{key}")
                if key in one and key in other
                else [f"{path}.{key} {'is new: ' + repr(one[key])[:80] if key in one else 'is gone'}"]
            )
        ]
    same = one is other or repr(one) == repr(other) or isinstance(one, float) and math.isnan(one)
    return [] if same else [f"{path} = {repr(one)[:80]}"]
