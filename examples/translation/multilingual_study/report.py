"""The report of a study: do rankings transfer, what do they cost another pair, one small model for all or one for each."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from fairseq_dsp.analysis.plots import style
from fairseq_dsp.units.score_file import ScoreFile

from .measuring import Likeness, likeness, mean_likeness, rankings
from .plan import ALONE, DIRECTIONS, JOINT, LOWEST, MAGNITUDE, MERGES, RANDOM, SPECIALIST, THIRD, WHOLE, Study
from .text import HALVES

Line = dict[str, Any]
NAMES = {"o2m": "one to many", "m2o": "many to one"}
PAIRS, SEEDS, PARTS = "two pairs, one model", "one pair, two models (seeds)", "one pair, two halves of its data"
THIRDS = {
    "dense": "none",
    THIRD: "the lowest for the pair",
    f"{THIRD}-{RANDOM}": "random ones",
    f"{THIRD}-{LOWEST}": "the highest for the pair",
}
CLAIMS = """\
Ma et al. (ACL 2021) rank heads by gradient in cross- and multilingual tasks of labelling, with pretrained encoders (mBERT, XLM-R): rankings
transfer between languages, and removing the lowest helps. Kim et al. (Findings of ACL 2021, arXiv 2105.14940) translate many to one (TED,
6 and 3 layers, 16 heads) and measure attention itself: important heads are very alike across pairs, and nearly a third of all heads can
go. Here models are small, trained from nothing on the text named below, ranked by the gradient of gates on decoder and cross-attention too, and
cut to the budget named below, so that agreement or disagreement is with the claims, not with the papers' figures. Every direction ends with
the claims beside what was found. A figure with ± is a mean with the standard deviation over seeds, or over draws and seeds."""


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
            text += [*_thirds(study, direction, mine), *_specialists(study, direction, mine)]
        text += [*_claims(study, direction, seeds, mine, out)]
    page = folder / "report.md"
    page.write_text("\n".join(text) + "\n", encoding="utf-8")
    return page


def _compared(study: Study, direction: str, seeds: Sequence[int], out: Path) -> dict[str, list[Likeness]]:
    """How alike rankings are, by what they are of."""
    pairs, k = study.directed(direction), study.preset.kept
    found = {seed: rankings(out, direction, seed, pairs) for seed in seeds}
    halves = {seed: [rankings(out, direction, seed, pairs, half) for half in HALVES] for seed in seeds}
    return {
        PAIRS: [likeness(a, b, k) for files in found.values() for a, b in itertools.combinations(files.values(), 2)],
        SEEDS: [
            likeness(found[a][pair], found[b][pair], k)
            for a, b in itertools.combinations(seeds, 2)
            for pair in pairs
            if pair in found[a] and pair in found[b]
        ],
        PARTS: [
            likeness(one[pair], other[pair], k) for one, other in halves.values() for pair in pairs if pair in one and pair in other
        ],
    }  # fmt: skip


def _rankings(study: Study, direction: str, seeds: Sequence[int], out: Path, folder: Path) -> Iterator[str]:
    pairs, k = study.directed(direction), study.preset.kept
    found = {seed: rankings(out, direction, seed, pairs) for seed in seeds}
    if not any(found.values()):
        yield "No ranking is finished.\n"
        return
    yield (
        f"How alike rankings are, of {study.preset.total} heads: Spearman's rho by place, with the lowest and the highest; by sublayer (scores "
        "sorted within each), beside what it would be on the mean if the sublayers of one were shuffled, for within a sublayer some head is always "
        f"the first; and the share of the {k} most important that both have, of which chance gives {k / study.preset.total:.2f}. Chance gives "
        "a rho by place of 0. Heads of models that were trained apart correspond by sublayer alone."
    )
    rows = [[name, *_cells(each), str(len(each))] for name, each in _compared(study, direction, seeds, out).items()]
    yield from _table(
        ["rankings of", "rho", "rho by sublayer", "the same by chance", f"overlap of {k}", "comparisons"], rows
    )
    for seed, files in found.items():
        if len(files) > 1:
            yield f"Spearman's rho between pairs, seed {seed}:"
            rows = [[one, *(f"{likeness(files[one], files[other], k).rho:.2f}" for other in files)] for one in files]
            yield from _table(["", *files], rows)
        if files:
            name = f"figures/{direction}-s{seed}.png"
            heat_maps(files, str(folder / name))
            yield f"![share of each head in the importance for each pair, {NAMES[direction]}, seed {seed}]({name})\n"


def _cells(found: Sequence[Likeness]) -> list[str]:
    mean = mean_likeness(found)
    if mean is None:
        return ["", "", "", ""]
    rho, *others = (f"{each:.2f}" for each in astuple(mean))
    ends = [f"{end(each.rho for each in found):.2f}" for end in (min, max)]
    return [f"{rho} ({ends[0]} to {ends[1]})", *others]


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
        rows.append(["all heads, not fine-tuned", *(_mean(_of(lines, "dense", pair)) for pair in pairs)])
        yield (
            f"BLEU of models with {study.preset.kept} heads, chosen and fine-tuned on the row's pair, tested on the column's. Another pair's figure "
            "is of the choice and of what fine-tuning on one pair forgets; the choice alone is in the table of the low-resource pair."
        )
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
        beside = {"dense": "all heads", JOINT: "DSP over all pairs", f"{ALONE}-{low}": f"DSP on {low} alone"}
        for arm, name in beside.items():
            if chosen := _of(lines, arm, low):
                rows.append([f"{name}, not fine-tuned", _mean(chosen), _mean(chosen, "chrf"), str(len(chosen))])
        yield f"The low-resource pair {low}: {study.preset.kept} heads chosen by a ranking, fine-tuned on {low}, tested on it."
        yield from _table(["heads by", "BLEU", "chrF", "runs"], rows)


def _small(study: Study, direction: str, lines: Sequence[Line]) -> Iterator[str]:
    pairs, preset = study.directed(direction), study.preset
    names: dict[str, str] = {"dense": "all heads", JOINT: "DSP over all pairs", "all": "ranking on all data"}
    names |= {by: f"rankings merged by {by}" for by in MERGES}
    arms = {name: {pair: _of(lines, arm, pair) for pair in pairs} for arm, name in names.items()}
    arms["DSP, a model a pair"] = {pair: _of(lines, f"{ALONE}-{pair}", pair) for pair in pairs}
    arms["the pair's own ranking, a model a pair"] = {
        pair: [line for line in _of(lines, pair, pair) if line["tuned"] == pair] for pair in pairs
    }
    rows = []
    for name, found in arms.items():
        if not all(found.values()):
            continue
        means = [statistics.mean(line["bleu"] for line in found[pair]) for pair in pairs]
        first = found[pairs[0]][0]
        sizes = [str(first["kept"]), f"{first['parameters']:,}"]
        rows.append([name, *sizes, *(_mean(found[pair]) for pair in pairs), *map(_number, (statistics.mean(means), min(means)))])  # fmt: skip
    if rows:
        yield (
            "BLEU of one small model for all pairs, and of one for each. A training from the start is of "
            f"{preset.epochs} epochs, whether of all pairs or of one: a model of one pair has fewer updates. What is cut by a ranking goes on for "
            f"{preset.tuning} epochs, of the pairs that it is for."
        )
        yield from _table(["heads by", "heads of a model", "its parameters", *pairs, "mean", "worst"], rows)


def _thirds(study: Study, direction: str, lines: Sequence[Line]) -> Iterator[str]:
    pairs, kept = study.directed(direction), study.preset.most_kept
    rows = []
    for arm, name in THIRDS.items():
        found = [
            [line for line in lines if line["arm"].rstrip("0123456789") == arm and line["pair"] == pair]
            for pair in pairs
        ]
        if all(found):
            rows.append(
                [name, *map(_mean, found), _number(statistics.mean(line["bleu"] for each in found for line in each))]
            )
    if len(rows) > 1:  # more than all heads
        yield f"BLEU with {kept} of {study.preset.total} heads, a third being removed and nothing fine-tuned:"
        yield from _table(["removed", *pairs, "mean"], rows)


def _specialists(study: Study, direction: str, lines: Sequence[Line]) -> Iterator[str]:
    pairs, preset = study.directed(direction), study.preset
    names = {
        "dense": "the model of all pairs",
        SPECIALIST: "the specialist of the pair",
        WHOLE: "all heads, trained on likewise",
    }
    arms = {name: [_of(lines, arm, pair) for pair in pairs] for arm, name in names.items()}
    if not all(map(all, arms.values())):
        return
    yield (
        f"BLEU of the specialist of a pair: {preset.most_kept} of {preset.total} heads by the pair's own ranking, trained on for {preset.special} epochs "
        "of the pair alone; beside the model that it comes from, as it is and trained on likewise."
    )
    rows = []
    for name, found in arms.items():
        first, means = found[0][0], [statistics.mean(line["bleu"] for line in each) for each in found]
        sizes = [str(first["kept"]), f"{first['parameters']:,}"]
        rows.append([name, *sizes, *map(_mean, found), _number(statistics.mean(means))])
    yield from _table(["model", "heads", "its parameters", *pairs, "mean"], rows)


def _claims(study: Study, direction: str, seeds: Sequence[int], lines: Sequence[Line], out: Path) -> Iterator[str]:
    """What both papers claim, beside the figures that speak for it or against it; nothing of what is not finished."""
    compared, low, k = _compared(study, direction, seeds, out), study.low_pair(direction), study.preset.kept
    means = {name: mean_likeness(found) for name, found in compared.items()}
    rows = []
    said = [
        f"{name}: rho {mean.rho:.2f}, by sublayer {mean.sorted_rho:.2f} (chance {mean.chance:.2f}), overlap of {k} {mean.overlap:.2f} "
        f"(chance {k / study.preset.total:.2f})"
        for name, mean in means.items()
        if mean is not None
    ]
    if means[PAIRS] is not None:
        rows.append(["Ma et al.: rankings of heads transfer between languages. Kim et al.: the most important heads are very alike across pairs.", "; ".join(said)])  # fmt: skip
    tuned = [line for line in lines if line["tuned"] == low and line["pair"] == low]
    groups = {
        "the others' rankings": [line for line in tuned if line["arm"] in study.directed(direction) and line["arm"] != low],
        "its own": [line for line in tuned if line["arm"] == low],
        "random": [line for line in tuned if line["arm"].startswith(RANDOM)],
        "its own, the lowest kept": [line for line in tuned if line["arm"] == LOWEST],
    }  # fmt: skip
    if groups["the others' rankings"]:
        said = [f"{name} {_mean(found)}" for name, found in groups.items() if found]
        rows.append([f"Ma et al.: the ranking of another language serves one of few data, here {low}.", f"BLEU with {k} heads by {', '.join(said)}"])  # fmt: skip
    thirds = {
        name: [line["bleu"] for line in lines if line["arm"].rstrip("0123456789") == arm]
        for arm, name in THIRDS.items()
    }
    if thirds[THIRDS[THIRD]]:
        said = [f"{name} {statistics.mean(found):.1f}" for name, found in thirds.items() if found]
        rows.append(["Kim et al.: nearly a third of all heads can go. Ma et al.: removing the lowest helps.", f"BLEU, mean of all pairs, removed: {', '.join(said)}"])  # fmt: skip
    if rows:
        yield "Claims, and what was found here:"
        yield from _table(["claim", "here"], rows, text=2)


def heat_maps(files: dict[str, ScoreFile], path: str) -> None:
    """Every pair's ranking on one scale: a row a sublayer, a column a head, dark where the head's share of the importance is large."""
    highest = max(max(file.scores) / sum(file.scores) for file in files.values())
    with style.drawing():
        figure = style.new_figure(style.TEXT_WIDTH, 2.6)
        axes = figure.subplots(1, len(files), squeeze=False, sharey=True)[0]
        for axis, (pair, file) in zip(axes, files.items(), strict=True):
            grid, total = file.layout.surviving, sum(file.scores)
            widest = max(grid.size(site) for site in grid.sites)
            scores, rows = iter(file.scores), []
            for site in grid.sites:
                row = [next(scores) / total for _ in range(grid.size(site))]
                rows.append(row + [float("nan")] * (widest - len(row)))
            image = axis.imshow(rows, cmap="Blues", aspect="auto", vmin=0, vmax=highest)
            axis.set_title(pair)
            axis.set_xticks(range(widest), [str(head + 1) for head in range(widest)])
            axis.set_yticks(range(len(rows)), [f"{site.stack} {site.layer + 1}" for site in grid.sites])
        figure.colorbar(image, ax=axes.tolist())
        style.save(figure, [path])


def _of(lines: Iterable[Line], arm: str, pair: str) -> list[Line]:
    return [line for line in lines if (line["arm"], line["pair"]) == (arm, pair)]


def _mean(lines: Iterable[Line], figure: str = "bleu") -> str:
    values = [line[figure] for line in lines]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _number(value: float) -> str:
    return f"{value:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> Iterator[str]:
    """Lines of a table, whose first columns are text and the others figures."""
    yield ""
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * text + " ---: |" * (len(header) - text)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""
