"""Gives data folders with odd dictionaries to `fairseq-dsp-export --format ctranslate2`.

    python -m tests.campaigns.dictionaries --count 1000 --seed 1

CTranslate2 gets words as text, fairseq has numbers. Each case must end in a refusal that names what is wrong with the dictionaries, where
fairseq cannot read them, the model has other numbers of words, or two words have one name; in all others with a model that, given the
text of any words, says the same log-probabilities as fairseq's model of the numbers that fairseq's own dictionary has for them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import ctranslate2
import hypothesis
import torch
from fairseq.data import Dictionary
from fairseq.tokenizer import tokenize_line
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from fairseq_dsp.export.ctranslate2 import log_probabilities
from fairseq_dsp.files.checkpoint import read_checkpoint
from fairseq_dsp.plugin.building import load_model
from tests.campaigns.cases import Case
from tests.campaigns.judging import Judge
from tests.campaigns.material import Material, Tally, make, parser

_SPECIAL = ("<blank>", "<pad>", "<s>", "</s>", "<unk>")
_NAMES = (
    *_SPECIAL,
    "<blank>_1",
    "<blank>_2",
    "<PAD>",
    "▁",
    "a b",
    "",
    "\u00a0",
    "\u2028",
    "\r",
    "\x00",
    "é",
    "e\u0301",
    "\ufeffa",
)
_NAMES = (*_NAMES, "a" * 3000, "#fairseq:overwrite", "1", "madeupword0000", "a0", "b0", "\\", '"', "{}")
_COUNTS = ("1", "-1", "0", "1.5", "x", "", "9" * 30)
_OVERWRITE = " #fairseq:overwrite"
_TOLERANCE = 1e-3


@st.composite
def lines_of(draw: st.DrawFn, lines: Sequence[str]) -> list[str]:
    """A dictionary's lines; up to three have another name or count, are gone, are there twice, or are new."""
    lines = list(lines)
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 3)))):
        place = draw(st.integers(0, max(len(lines) - 1, 0)))
        name = draw(st.one_of(st.just("<blank>"), st.sampled_from(_NAMES), st.text(max_size=3)))
        line = f"{name} {draw(st.sampled_from(_COUNTS[:1] * 40 + _COUNTS))}{draw(st.sampled_from(('', _OVERWRITE)))}"
        what = draw(st.sampled_from(("twice", "gone", "new", *["other"] * 12)))
        if what == "twice":
            line = lines[draw(st.integers(0, len(lines) - 1))] + _OVERWRITE
        lines[place : place + (what != "new")] = [] if what == "gone" else [line]
    return lines


class Source:
    """Makes cases.

    Args:
        folder: for a data folder, one at a time.
    """

    def __init__(self, made: Material, folder: Path) -> None:
        self.made, self.folder = made, folder
        self.model = load_model(read_checkpoint(str(made.pruned))).float()
        self.model.bake()
        self.rows = [len(side.embed_tokens.weight) for side in (self.model.encoder, self.model.decoder)]
        self.lines = [(made.data / f"dict.{language}.txt").read_text().splitlines() for language in ("aa", "bb")]

    def cases(self) -> st.SearchStrategy[Case]:
        """Any case."""
        return st.tuples(*map(lines_of, self.lines)).map(self.case)

    def case(self, sides: Sequence[Sequence[str]]) -> Case:
        dictionaries: list[Dictionary] = []
        for language, lines in zip(("aa", "bb"), sides, strict=True):
            path = self.folder / f"dict.{language}.txt"
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="ignore", newline="")
            (self.folder / f"train.aa-bb.{language}.idx").touch()  # tells the languages
            try:
                dictionaries.append(Dictionary.load(str(path)))
            except Exception:  # fairseq raises what comes
                continue
        arguments = (str(self.made.pruned), "OUT", "--format", "ctranslate2", "--data", str(self.folder))
        check = partial(self.wrong, dictionaries)
        return Case(
            "dictionaries", "export", arguments, must_say=self.cause(dictionaries), check=check, about=repr(sides)
        )

    def cause(self, dictionaries: Sequence[Dictionary]) -> str:
        """What a refusal must say; empty where nothing is wrong."""
        if len(dictionaries) < 2:
            return "must be a dictionary of fairseq"
        for rows, dictionary in zip(self.rows, dictionaries, strict=True):
            if rows != len(dictionary):
                return f"{rows} words, but its dictionary has {len(dictionary)}"
        # padding alone is never written, whatever it is called
        names = [[*dictionary.symbols[:1], *dictionary.symbols[2:]] for dictionary in dictionaries]
        return "a name of its own for every word" if any(len(set(each)) != len(each) for each in names) else ""

    def wrong(self, dictionaries: Sequence[Dictionary], path: Path) -> list[str]:
        """What is wrong with a converted model: words that it takes for others."""
        texts = [
            [word for word in dictionary.symbols[4:] if tokenize_line(word) == [word]] for dictionary in dictionaries
        ]
        pairs = [tuple(words[start : start + 4] for words in texts) for start in range(0, max(map(len, texts)), 4)]
        pairs = [(source, target) for source, target in pairs if source and target]
        translator = ctranslate2.Translator(str(path), compute_type="float32", intra_threads=1)
        results = translator.score_batch(*(list(side) for side in zip(*pairs, strict=True)))
        failures = []
        for pair, result in zip(pairs, results, strict=True):
            numbers = [
                [dictionary.index(word) for word in side] for dictionary, side in zip(dictionaries, pair, strict=True)
            ]
            difference = (log_probabilities(self.model, *numbers) - torch.tensor(result.log_probs)).abs().max().item()
            if not difference <= _TOLERANCE:
                failures.append(f"differs by {difference:.2g} in log-probability for {pair}")
        return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; 1 where something was not as it should be."""
    args = parser(str(__doc__), count=(1000, "data folders")).parse_args(arguments)
    torch.set_num_threads(1)
    tally = Tally(args.count)
    with tempfile.TemporaryDirectory() as name:
        run(make(Path(name)), Path(name), args.count, args.seed, tally)
    return tally.finish()


def run(made: Material, folder: Path, count: int, seed: int, tally: Tally) -> None:
    """So many cases."""
    for name in ("odd", "outputs"):
        (folder / name).mkdir()
    source, judge = Source(made, folder / "odd"), Judge(folder / "outputs", folder / "executed")

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(source.cases())
    def each(case: Case) -> None:
        failures = judge.run(case)
        tally.count("refused" if judge.refused else "done")
        tally.step(failures)

    each()


if __name__ == "__main__":
    sys.exit(main())
