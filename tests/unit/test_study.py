"""multilingual.py: what it plans, measures and reports; nothing is trained."""

from __future__ import annotations

import itertools
import json
import lzma
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.fingerprint import SIZE
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.score_file import ScoreFile

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/translation"))

import multilingual
from multilingual_study import measuring, plan, presets, report, text

PRESET = presets.PRESETS["smoke"]
STUDY = plan.Study(PRESET, ("de-en", "en-fr", "en-sv"), "en", "en-sv")
LAYOUT = Layout.full(Grid.even(PRESET.layers, PRESET.heads))


def scores(values, layout=LAYOUT) -> ScoreFile:
    facts = {
        "order": None,
        "iterative": None,
        "subset": "train",
        "batches": 2,
        "max_tokens": 100,
        "sentences": 7,
        "seed": 1,
    }
    facts |= {"version": "1", "scorer": "gradient", "checkpoint": "a.pt", "weights": {"float32": "0" * 2 * SIZE}}
    return ScoreFile(layout=layout, scores=tuple(values), **facts)


def words_after(words, option):
    return words[words.index(option) + 1]


@pytest.mark.parametrize("direction", plan.DIRECTIONS)
class TestPlan:
    def test_every_run_reads_what_an_earlier_one_makes(self, direction):
        planner = plan.Planner(STUDY, direction, 2)
        runs = planner.first() + planner.arms(lambda pair, k: str(LAYOUT)) + planner.specialists()
        made: set[str] = set()
        for run in runs:
            assert all(name in {each.name for each in runs} for name in run.needs)
            for step in run.steps:
                read = [word for word in step.words if word.startswith("runs/") and word.endswith((".pt", ".json"))]
                made |= {f"{words_after(step.words, '--save-dir')}/checkpoint_best.pt"} if step.trains else set()
                made |= {step.output} if step.output else set()
                if step.name == "pairs":
                    made |= {f"{words_after(step.words, '--output')}/scores.{pair}.json" for pair in planner.pairs}
                outputs = {words_after(step.words, "--output")} if "--output" in step.words else set()
                assert set(read) - outputs <= made, step.words
        assert len({run.name for run in runs}) == len(runs)

    def test_what_is_compared_is_there(self, direction):
        planner = plan.Planner(STUDY, direction, 1)
        pairs, low = planner.pairs, STUDY.low_pair(direction)
        assert all((pair.startswith("en-") if direction == "o2m" else pair.endswith("-en")) for pair in pairs)
        asked: list[tuple[str, int]] = []
        runs = planner.arms(lambda pair, k: asked.append((pair, k)) or str(LAYOUT))
        arms = {run.name.removeprefix(f"{direction}-s1-"): run for run in runs}
        for pair in pairs:  # chosen and fine-tuned on one, tested on all
            tested = [step.name for step in arms[f"{pair}-on-{pair}"].steps if step.name.startswith("generate.")]
            assert tested == [f"generate.{each}" for each in pairs]
            assert (
                words_after(next(step for step in arms[f"{pair}-on-{low}"].steps if step.trains).words, "--lang-pairs")
                == low
            )
        controls = {f"random{n}-on-{low}" for n in range(1, PRESET.randoms + 1)} | {
            f"lowest-on-{low}",
            f"magnitude-on-{low}",
        }
        assert controls | {f"{name}-on-all" for name in ("all", "sum", "max", "worst")} <= arms.keys()
        assert asked == [(low, PRESET.kept), *((pair, PRESET.most_kept) for pair in pairs)]
        thirds = {f"third-{pair}" for pair in pairs} | {f"third-lowest-{pair}" for pair in pairs}
        thirds |= {f"third-random{n}" for n in range(1, PRESET.randoms + 1)}
        assert thirds == {name for name in arms if name.startswith(plan.THIRD)}
        for name in thirds:  # cut and tested, and that is all
            assert not any(step.trains for step in arms[name].steps)
            assert arms[name].budget == PRESET.most_kept == 4
        assert [step.name for step in arms["third-random1"].steps][2:] == [f"generate.{pair}" for pair in pairs]
        assert not any(run.method.endswith(plan.LOWEST) for run in planner.arms(None))
        first = {run.method for run in planner.first()}
        assert {"dense", "scores", plan.JOINT, *(f"{plan.ALONE}-{pair}" for pair in pairs)} == first

    def test_a_specialist_and_the_whole_model_are_trained_on_alike(self, direction):
        planner = plan.Planner(STUDY, direction, 1)
        runs = {(run.method, run.name.partition("-on-")[2]): run for run in planner.specialists()}
        assert runs.keys() == {(arm, pair) for arm in (plan.SPECIALIST, plan.WHOLE) for pair in planner.pairs}
        for pair in planner.pairs:
            special, whole = (runs[arm, pair] for arm in (plan.SPECIALIST, plan.WHOLE))
            assert (special.budget, whole.budget) == (PRESET.most_kept, PRESET.total)
            one, other = (next(step.words for step in run.steps if step.trains) for run in (special, whole))
            for option in ("--lang-pairs", "--max-epoch", "--lr", "--warmup-updates", "--seed"):
                assert words_after(one, option) == words_after(other, option)
            assert words_after(one, "--lang-pairs") == pair
            assert (
                words_after(one, "--finetune-from-model")
                == words_after(one, "--head-layout")
                == special.steps[0].output
            )
            assert words_after(other, "--finetune-from-model") == planner.dense
            assert [step.name for step in special.steps] == ["prune", "train", f"generate.{pair}"]


@settings(deadline=None)
@given(st.permutations(range(PRESET.total)), st.integers(1, PRESET.total))
def test_likeness_is_one_of_equal_rankings_and_of_those_with_heads_of_a_sublayer_swapped_by_sublayer(values, k):
    file = scores([float(value) for value in values])
    same = measuring.likeness(file, file, k)
    assert (same.rho, same.sorted_rho, same.overlap) == (pytest.approx(1), pytest.approx(1), 1)
    parts = torch.tensor(file.scores).split([PRESET.heads] * (PRESET.total // PRESET.heads))
    swapped = measuring.likeness(file, scores(torch.cat([part.flip(0) for part in parts]).tolist()), k)
    assert swapped.sorted_rho == pytest.approx(1)
    opposite = measuring.likeness(file, scores([-value for value in file.scores]), k)
    assert opposite.rho == pytest.approx(-1)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(PRESET.total)), st.permutations(range(PRESET.total)))
def test_likeness_by_chance_is_the_mean_over_all_orders_of_the_sublayers(one, other):
    files = [scores([float(value) for value in values]) for values in (one, other)]
    parts = torch.tensor(files[1].scores).split([PRESET.heads] * (PRESET.total // PRESET.heads))
    every = [scores(torch.cat(order).tolist()) for order in itertools.permutations(parts)]
    found = [measuring.likeness(files[0], each, 2).sorted_rho for each in every]
    assert measuring.likeness(*files, 2).chance == pytest.approx(sum(found) / len(found))


def test_the_lowest_heads_are_those_of_least_score_and_one_of_cross_attention():
    kept = Layout.parse(measuring.lowest_layout(scores([6, 1, 5, 2, 3, 4]), 3)).kept
    assert [number for number, mark in enumerate(kept) if mark] == [1, 3, 4]
    kept = Layout.parse(measuring.lowest_layout(scores([1, 2, 3, 4, 5, 6]), 2)).kept
    assert [number for number, mark in enumerate(kept) if mark] == [0, 4]


def test_the_report_says_what_lines_and_rankings_say(tmp_path):
    for seed, shift in ((1, 0), (2, 1)):
        for folder in ("pairs", "half1", "half2"):
            place = tmp_path / f"runs/o2m-s{seed}-scores/{folder}"
            place.mkdir(parents=True)
            for number, pair in enumerate(STUDY.directed("o2m")):
                values = torch.arange(6.0).roll(shift if folder == "pairs" else number) + 1
                (place / f"scores.{pair}.json").write_text(scores(values.tolist()).text())
    line = {
        "direction": "o2m",
        "kept": 2,
        "total": 6,
        "chrf": 30.0,
        "parameters": 1,
        "signatures": {"bleu": "the signature"},
    }
    pairs = STUDY.directed("o2m")
    lines = [
        {**line, "seed": seed, "arm": pair, "tuned": pair, "pair": other, "bleu": 10.0 * (1 + (pair == other)) + seed}
        for seed in (1, 2) for pair in pairs for other in pairs
    ]  # fmt: skip
    lines += [{**line, "seed": 1, "arm": "random1", "tuned": "en-sv", "pair": "en-sv", "bleu": 3.0}]
    lines += [{**line, "seed": 1, "arm": "en-de", "tuned": "en-sv", "pair": "en-sv", "bleu": 4.0}]
    alone = {**line, "seed": 1, "tuned": None}
    for n, pair in enumerate(pairs):
        lines += [{**alone, "arm": "dense", "pair": pair, "bleu": 5.0 + n, "kept": 6, "parameters": 1234}]
        lines += [{**alone, "arm": f"bilingual-dsp-{pair}", "pair": pair, "bleu": 2.0 + n}]
        lines += [{**alone, "arm": "third", "pair": pair, "bleu": 4.0 + n}]
        lines += [{**alone, "arm": f"third-random{m}", "pair": pair, "bleu": m + n} for m in (1, 2)]
        lines += [{**alone, "arm": "specialist", "tuned": pair, "pair": pair, "bleu": 5.5 + n, "kept": 4}]
        lines += [{**alone, "arm": "whole", "tuned": pair, "pair": pair, "bleu": 5.6 + n, "kept": 6}]
    page = report.write(STUDY, (1, 2), lines, tmp_path, {"hardware": "made up"}).read_text()
    assert "| two pairs, one model | 1.00 (1.00 to 1.00) | 1.00 |" in page
    assert page.count("| one pair, two models (seeds) |") == 1
    assert "| one pair, two halves of its data | 1.00 (" in page
    assert "| en-de | 21.5 ± 0.7 | 11.5 ± 0.7 | 11.5 ± 0.7 |" in page
    assert "| all heads, not fine-tuned | 5.0 | 6.0 | 7.0 |" in page  # beside the matrix
    assert "what fine-tuning on one pair forgets" in page
    assert "| random | 3.0 | 30.0 | 1 |" in page
    assert "| all heads, not fine-tuned | 7.0 | 30.0 | 1 |" in page  # beside the low-resource pair
    assert "| DSP on en-sv alone, not fine-tuned | 4.0 |" in page
    assert "| all heads | 6 | 1,234 | 5.0 | 6.0 | 7.0 | 6.0 | 5.0 |" in page
    assert "| DSP, a model a pair | 2 | 1 | 2.0 | 3.0 | 4.0 | 3.0 | 2.0 |" in page
    assert "| the pair's own ranking, a model a pair | 2 | 1 | 21.5 ± 0.7 |" in page
    assert "DSP over all pairs |" not in page  # no run of it is finished
    assert "| the lowest for the pair | 4.0 | 5.0 | 6.0 | 5.0 |" in page
    assert "| random ones | 1.5 ± 0.7 |" in page
    assert "| the specialist of the pair | 4 | 1 | 5.5 | 6.5 | 7.5 | 6.5 |" in page
    assert "| all heads, trained on likewise | 6 | 1 | 5.6 | 6.6 | 7.6 | 6.6 |" in page
    claims = [line for line in page.splitlines() if line.startswith(("| Ma et al.", "| Kim et al."))]
    assert len(claims) == 3
    assert "rho 1.00, by sublayer 1.00 (chance " in claims[0]
    assert "BLEU with 2 heads by the others' rankings 4.0, its own 21.5 ± 0.7, random 3.0 |" in claims[1]
    assert "removed: none 6.0, the lowest for the pair 5.0, random ones 2.5 |" in claims[2]
    assert "the signature" in page
    assert "No ranking is finished." in page  # of the other direction
    assert (tmp_path / "report/figures/o2m-s1.png").stat().st_size > 1000


def write_texts(folder: Path, pairs, subsets=text.SUBSETS, packed=False) -> Path:
    folder.mkdir(exist_ok=True)
    for pair in pairs:
        for subset in subsets:
            for side in pair.split("-"):
                content = "".join(f"{side} {n}\n" for n in range(6)).encode()
                path = folder / f"{subset}.{pair}.{side}{'.xz' if packed else ''}"
                path.write_bytes(lzma.compress(content) if packed else content)
    return folder


def test_texts_are_found_plain_or_packed_and_refused_where_no_study_can_be_made_of_them(tmp_path):
    assert text.pairs_of(write_texts(tmp_path / "one", ["en-de", "fr-en"])) == ["en-de", "fr-en"]
    assert text.pairs_of(write_texts(tmp_path / "two", ["en-de", "en-fr"], packed=True)) == ["en-de", "en-fr"]
    write_texts(tmp_path / "three", ["en-de"])
    write_texts(tmp_path / "three", ["en-fr"], subsets=("train", "test"))
    with pytest.raises(Refusal, match="holds en-de"):
        text.pairs_of(tmp_path / "three")
    with pytest.raises(Refusal, match="share one language"):
        text.pairs_of(write_texts(tmp_path / "four", ["en-de", "fr-sv"]))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--seeds", "1"], "`--seeds` must be two at least"),
        (["--jobs", "0"], "`--jobs` must be at least 1, but is 0"),
        (["--text", "TEXT"], "`--low` must be given"),
        (
            ["--text", "TEXT", "--low", "en-sv"],
            "`--low` must be one of the pairs of `--text` (de-en, en-fr), but is en-sv",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_made(extra, words, tmp_path):
    folder = str(write_texts(tmp_path / "text", ["de-en", "en-fr"]))
    arguments = [
        "--preset",
        "smoke",
        "--output",
        str(tmp_path / "out"),
        *(folder if word == "TEXT" else word for word in extra),
    ]
    with pytest.raises(Refusal) as refused:
        multilingual.main(arguments)
    assert words in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_study_or_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(Refusal, match="neither"):
        multilingual.main(["--preset", "smoke", "--output", str(tmp_path / "other")])
    (tmp_path / "study").mkdir()
    content = {"preset": "small", "text": None, "low": None, "scorer": "gradient"}
    (tmp_path / "study/study.json").write_text(json.dumps(content))
    with pytest.raises(Refusal, match="`--preset` must be small"):
        multilingual.main(["--preset", "smoke", "--output", str(tmp_path / "study")])
