"""The report of a study: do rankings transfer, what do they cost another pair, one small model for all or one for each."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fairseq_dsp.analysis.plots import style
from fairseq_dsp.units.score_file import ScoreFile

from .measuring import Likeness, likeness, mean_likeness, rankings
from .plan import ALONE, DIRECTIONS, JOINT, LOWEST, MAGNITUDE, MERGES, RANDOM, Study
from .text import HALVES

Line = dict[str, Any]
NAMES = {"o2m": "one to many", "m2o": "many to one"}
CLAIMS = """\
Ma et al. (ACL 2021) rank heads by gradient in cross- and multilingual tasks of labelling, with pretrained encoders (mBERT, XLM-R): rankings
transfer between languages, and removing the lowest helps. Kim et al. (Findings of ACL 2021, arXiv 2105.14940) translate many to one (TED,
6 and 3 layers, 16 heads) and measure attention itself: important heads are very alike across pairs, and nearly a third of all heads can
go. Here models are small, trained from nothing on the text named below, ranked by the gradient of gates on decoder and cross-attention too, and
cut to the budget named below, so that agreement or disagreement is with the claims, not with the papers' figures. A figure with ± is a mean with the standard deviation over seeds, or over draws and seeds."""


def write(study: Study, seeds: Sequence[int], lines: Sequence[Line], out: Path, facts: dict[str, Any]) -> Path:
    """Writes `report/report.md` and its heat maps anew; returns the page's path."""
    folder = out / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    text = [f"# Heads and language pairs: {', '.join(study.pairs)}", "", CLAIMS, ""]
    signatures = lines[0]["signatures"] if lines else {}
    text += [f"- {name}: {value}" for name, value in {**facts, **signatures}.items()] + [""]
    for direction in DIRECTIONS:
        mine = [line for line in lines if line["direction"] == direction]
        text += [f"## {NAMES[direction].capitalize()}", "", *_rankings(study, direction, seeds, out, folder)]
        if mine:
            text += [*_matrix(study, direction, mine), *_low(study, direction, mine), *_small(study, direction, mine)]
    page = folder / "report.md"
    page.write_text("\n".join(text) + "\n", encoding="utf-8")
    return page


def _rankings(study: Study, direction: str, seeds: Sequence[int], out: Path, folder: Path) -> Iterator[str]:
    pairs, k = study.directed(direction), study.preset.kept
    found = {seed: rankings(out, direction, seed, pairs) for seed in seeds}
    halves = {seed: [rankings(out, direction, seed, pairs, half) for half in HALVES] for seed in seeds}
    if not any(found.values()):
        yield "No ranking is finished.\n"
        return
    between = {
        "two pairs, one model": [likeness(a, b, k) for files in found.values() for a, b in itertools.combinations(files.values(), 2)],
        "one pair, two models (seeds)": [
            likeness(found[a][pair], found[b][pair], k)
            for a, b in itertools.combinations(seeds, 2)
            for pair in pairs
            if pair in found[a] and pair in found[b]
        ],
        "one pair, two halves of its data": [
            likeness(one[pair], other[pair], k) for one, other in halves.values() for pair in pairs if pair in one and pair in other
        ],
    }  # fmt: skip
    yield (
        f"How alike rankings are, of {study.preset.total} heads: Spearman's rho by place, by sublayer (scores sorted within each), and "
        f"the share of the {k} most important that both have, of which chance gives {k / study.preset.total:.2f}. Heads of models that were "
        "trained apart correspond by sublayer alone."
    )
    rows = [[name, *_cells(mean_likeness(each)), str(len(each))] for name, each in between.items()]
    yield from _table(["rankings of", "rho", "rho by sublayer", f"overlap of {k}", "comparisons"], rows)
    for seed, files in found.items():
        if len(files) > 1:
            yield f"Spearman's rho between pairs, seed {seed}:"
            rows = [[one, *(f"{likeness(files[one], files[other], k).rho:.2f}" for other in files)] for one in files]
            yield from _table(["", *files], rows)
        if files:
            name = f"figures/{direction}-s{seed}.png"
            heat_maps(files, str(folder / name))
            yield f"![share of each head in the importance for each pair, {NAMES[direction]}, seed {seed}]({name})\n"


def _cells(found: Likeness | None) -> list[str]:
    return ["", "", ""] if found is None else [f"{each:.2f}" for each in (found.rho, found.sorted_rho, found.overlap)]


def _matrix(study: Study, direction: str, lines: Sequence[Line]) -> Iterator[str]:
    pairs = study.directed(direction)
    rows = []
    for pair in pairs:
        cells = [
            _mean(line for line in lines if (line["arm"], line["tuned"], line["pair"]) == (pair, pair, tested))
            for tested in pairs
        ]
        rows.append([pair, *cells])
    if any(cell for row in rows for cell in row[1:]):
        yield f"BLEU of models with {study.preset.kept} heads, chosen and fine-tuned on the row's pair, tested on the column's:"
        yield from _table(["chosen on", *pairs], rows)


def _low(study: Study, direction: str, lines: Sequence[Line]) -> Iterator[str]:
    low = study.low_pair(direction)
    mine = [line for line in lines if line["tuned"] == low and line["pair"] == low]
    rows = []
    for arm in dict.fromkeys(line["arm"].rstrip("0123456789") for line in mine):
        chosen = [line for line in mine if line["arm"].rstrip("0123456789") == arm]
        names = {
            low: "its own ranking",
            LOWEST: "its own ranking, the lowest kept",
            RANDOM: "random",
            MAGNITUDE: "magnitude",
        }
        rows.append([names.get(arm, f"the ranking of {arm}"), _mean(chosen), _mean(chosen, "chrf"), str(len(chosen))])
    if rows:
        yield f"The low-resource pair {low}: {study.preset.kept} heads chosen by a ranking, fine-tuned on {low}, tested on it."
        yield from _table(["heads by", "BLEU", "chrF", "runs"], rows)


def _small(study: Study, direction: str, lines: Sequence[Line]) -> Iterator[str]:
    pairs = study.directed(direction)
    names = {
        "dense": "all heads",
        JOINT: "DSP over all pairs",
        "all": "ranking on all data",
        ALONE: "DSP, a model a pair",
    }
    names |= {by: f"rankings merged by {by}" for by in MERGES}
    rows = []
    for arm, name in names.items():
        mine = [line for line in lines if line["arm"] == arm or arm == ALONE and line["arm"].startswith(ALONE)]
        values = [[line["bleu"] for line in mine if line["pair"] == pair] for pair in pairs]
        if all(values):
            means = [statistics.mean(each) for each in values]
            rows.append(
                [name, str(mine[0]["kept"]), *map(_number, means), _number(statistics.mean(means)), _number(min(means))]
            )
    if rows:
        yield "BLEU of one small model for all pairs, and of one for each:"
        yield from _table(["heads by", "heads", *pairs, "mean", "worst"], rows)


def heat_maps(files: dict[str, ScoreFile], path: str) -> None:
    """Every pair's ranking: a row a sublayer, a column a head, dark where the head's share of the importance is large."""
    with style.drawing():
        figure = style.new_figure(style.TEXT_WIDTH, 2.6)
        axes = figure.subplots(1, len(files), squeeze=False)[0]
        for axis, (pair, file) in zip(axes, files.items(), strict=True):
            grid, total = file.layout.surviving, sum(file.scores)
            widest = max(grid.size(site) for site in grid.sites)
            scores, rows = iter(file.scores), []
            for site in grid.sites:
                row = [next(scores) / total for _ in range(grid.size(site))]
                rows.append(row + [float("nan")] * (widest - len(row)))
            axis.imshow(rows, cmap="Blues", aspect="auto", vmin=0)
            axis.set_title(pair)
            axis.set_xticks(range(widest), [str(head + 1) for head in range(widest)])
            axis.set_yticks(range(len(rows)), [f"{site.stack} {site.layer + 1}" for site in grid.sites])
        style.save(figure, [path])


def _mean(lines: Iterable[Line], figure: str = "bleu") -> str:
    values = [line[figure] for line in lines]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _number(value: float) -> str:
    return f"{value:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(header) + " |"
    yield "| --- |" + " ---: |" * (len(header) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""
