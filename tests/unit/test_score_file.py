"""`scores.json`: what is written is read again, any K can be cut from it, and anything else is refused in sentences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import grids, layouts_of, many_examples

from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.floors import floors_of
from fairseq_dsp.units.groups import part_of, with_part
from fairseq_dsp.units.layout import Grid, Layout, Site
from fairseq_dsp.units.score_file import ScoreFile, read_scores

LAYOUT = Layout.parse("enc:101/dec:01/cross:10")  # 4 of 7 heads
ONE_SHOT = ScoreFile(
    version="0.1.0",
    scorer="gradient",
    layout=LAYOUT,
    scores=(0.5, 1.0, 0.25, 1.0),
    order=None,
    iterative=None,
    subset="valid",
    batches=3,
    max_tokens=4096,
    sentences=70,
    seed=1,
    checkpoint="dense.pt",
)
ITERATIVE = replace(ONE_SHOT, order=(1, 3, 0, 2), iterative=2)
KINDS = replace(
    ONE_SHOT,
    scorer="magnitude",
    layout=Layout.parse("enc:101/dec:01/cross:10/ffn-enc:110/ffn-dec:011"),
    scores=(0.5, 1.0, 0.25, 1.0, 7.0, 9.0, 0.0, 8.0),
    units=("heads", "ffn"),
    comparable=False,
)
NEURONS = replace(KINDS, scores=(7.0, 9.0, 0.0, 8.0), units=("ffn",))
MARKED = replace(ONE_SHOT, weights={"float32": "0123456789abcdef" * 2, "float16": "f" * 32})


@pytest.fixture
def written(tmp_path: Path):
    """Writes content, text or bytes, and returns the file's name."""

    def write(content: Any) -> str:
        raw = content if isinstance(content, (str, bytes)) else json.dumps(content)
        (tmp_path / "scores.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return str(tmp_path / "scores.json")

    return write


def reasons_of(path: str) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refused:
        read_scores(path)
    assert all(reason.startswith("`--scores` must be") and reason.endswith(".") for reason in refused.value.reasons)
    return refused.value.reasons


class TestRoundTrip:
    no_data = replace(ONE_SHOT, scorer="random", subset=None, batches=None, max_tokens=None, sentences=None)

    @pytest.mark.parametrize(
        "file",
        [ONE_SHOT, ITERATIVE, no_data, MARKED, KINDS, NEURONS, replace(KINDS, order=tuple(range(8)), iterative=2)],
        ids=["one shot", "iterative", "no data", "marked", "kinds", "neurons", "iterative kinds"],
    )
    def test_keeps_everything(self, file, written):
        assert read_scores(written(file.text())) == file
        assert read_scores(written(file.text())).text() == file.text()

    def test_takes_a_file_of_a_version_that_wrote_no_fingerprint(self, written):
        assert "weights" not in json.loads(ONE_SHOT.text())
        assert read_scores(written(ONE_SHOT.text())).weights is None

    def test_of_heads_alone_is_written_as_ever(self):
        content = json.loads(MARKED.text())
        assert (content["format"], list(content)[-2:]) == (1, ["checkpoint", "weights"])
        assert (json.loads(KINDS.text())["format"], list(json.loads(KINDS.text()))[-2:]) == (2, ["units", "comparable"])

    def test_keeps_every_bit_of_a_score(self, written):
        file = replace(ONE_SHOT, scores=(0.1, 1 / 3, 1e-300, -1e300))
        assert read_scores(written(file.text())).scores == file.scores

    def test_takes_whole_numbers_for_scores(self, written):
        content = json.loads(ONE_SHOT.text()) | {"scores": [1, 2, 3, 4]}
        assert read_scores(written(content)).keep_top(1) == Layout.parse("enc:000/dec:00/cross:10")


class TestKeepTop:
    def test_of_one_scoring_are_the_highest_scores_ties_to_the_first(self):
        assert str(ONE_SHOT.keep_top(1)) == "enc:001/dec:00/cross:00"
        assert str(ONE_SHOT.keep_top(3)) == "enc:101/dec:00/cross:10"

    def test_of_several_are_those_removed_last_whatever_the_scores(self):
        assert str(ITERATIVE.keep_top(1)) == "enc:000/dec:01/cross:00"
        assert str(ITERATIVE.keep_top(3)) == "enc:100/dec:01/cross:10"

    @many_examples
    @given(grids.flatmap(layouts_of), st.randoms(use_true_random=False), st.booleans())
    def test_keeps_exactly_k_of_the_heads_that_are_there(self, layout, draw, iterative):
        scores = tuple(draw.random() for _ in range(layout.count))
        order = tuple(draw.sample(range(layout.count), layout.count)) if iterative else None
        file = replace(ONE_SHOT, layout=layout, scores=scores, order=order, iterative=2 if iterative else None)
        kept = [file.keep_top(k) for k in range(layout.count + 1)]
        assert [each.count for each in kept] == list(range(layout.count + 1))
        assert all(small.within(large) for small, large in zip(kept, kept[1:], strict=False))
        assert kept[-1] == layout

    @pytest.mark.parametrize("file", [ONE_SHOT, ITERATIVE], ids=["one shot", "iterative"])
    @pytest.mark.parametrize("k", [-1, 5])
    def test_refuses_more_or_fewer_than_there_are(self, file, k):
        with pytest.raises(ValueError, match=f"between 0 and 4, but is {k}"):
            file.keep_top(k)


class TestSeveralKinds:
    alike = replace(KINDS, scorer="fisher", comparable=True)

    def test_that_compare_are_kept_by_one_budget(self):
        assert str(self.alike.keep_top(4)) == "enc:001/dec:00/cross:00/ffn-enc:110/ffn-dec:001"
        assert str(self.alike.keep_top(8)) == str(KINDS.layout)

    def test_that_do_not_compare_are_refused_one_budget_and_offered_one_a_kind(self):
        reason = KINDS.objection_to_one_budget("--budget", 4)
        assert reason == (
            "`--budget` must give each kind of unit its own budget (heads=K,ffn=K), for scores of `--scorer magnitude` cannot be "
            "compared between kinds, but is 4."
        )
        with pytest.raises(ValueError, match="its own budget"):
            KINDS.keep_top(4)
        for file in (self.alike, NEURONS, ONE_SHOT):
            assert file.objection_to_one_budget("--budget", 4) is None

    def test_are_kept_by_a_budget_a_kind(self):
        assert str(KINDS.keep_top_of_kinds({"heads": 2, "ffn": 3})) == "enc:001/dec:00/cross:10/ffn-enc:110/ffn-dec:001"
        assert str(KINDS.keep_top_of_kinds({"ffn": 0})) == "enc:101/dec:01/cross:10/ffn-enc:000/ffn-dec:000"

    def test_of_which_one_is_scored_leave_the_other_alone(self):
        assert str(NEURONS.keep_top(1)) == "enc:101/dec:01/cross:10/ffn-enc:010/ffn-dec:000"
        with pytest.raises(ValueError, match="the scores are of ffn, but the budget is of heads"):
            NEURONS.keep_top_of_kinds({"heads": 1})

    def test_leave_the_floor_of_heads_alone(self):
        floors = floors_of(KINDS.layout.surviving, 1)
        assert str(KINDS.keep_top_of_kinds({"heads": 1, "ffn": 1}, floors)) == (
            "enc:000/dec:00/cross:10/ffn-enc:010/ffn-dec:000"
        )
        assert str(self.alike.keep_top(2, floors)) == "enc:000/dec:00/cross:10/ffn-enc:010/ffn-dec:000"

    @many_examples
    @given(grids.flatmap(layouts_of), st.randoms(use_true_random=False), st.booleans())
    def test_keeps_exactly_what_each_budget_says(self, layout, draw, iterative):
        neurons = draw.choices([True, False], k=4)
        grid = Grid((*layout.grid.counts, (Site("ffn-enc", 0), 3), (Site("ffn-dec", 0), 1)))
        layout = Layout(grid, (*layout.kept, *neurons))
        order = tuple(draw.sample(range(layout.count), layout.count)) if iterative else None
        scores = tuple(draw.random() for _ in range(layout.count))
        file = replace(KINDS, layout=layout, scores=scores, order=order, iterative=2 if iterative else None)
        heads, groups = (part_of(layout, [name]).count for name in ("heads", "ffn"))
        k = {"heads": draw.randint(0, heads), "ffn": draw.randint(0, groups)}
        kept = file.keep_top_of_kinds(k)
        assert kept.within(layout)
        assert {name: part_of(kept, [name]).count for name in k} == k
        assert with_part(layout, part_of(kept, ["heads", "ffn"])) == kept
        value = dict(zip([unit for unit, mark in enumerate(layout.kept) if mark], file.ranking().tolist(), strict=True))
        for start, end in ((0, grid.total - 4), (grid.total - 4, grid.total)):
            inside = [unit for unit in value if start <= unit < end]
            lost = [value[unit] for unit in inside if not kept.kept[unit]]
            assert not lost or max(lost) <= min([value[unit] for unit in inside if kept.kept[unit]], default=max(lost))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("units", None),
            ("units", []),
            ("units", "ffn"),
            ("units", ["ffn", "heads"]),
            ("units", ["heads", "heads"]),
            ("units", ["heads", "layers"]),
            ("units", [["heads"]]),
            ("units", ["ffn"]),
            ("comparable", None),
            ("comparable", 1),
            ("layout", "enc:1111/dec:11/cross:11"),
            ("scores", [0.5]),
        ],
    )
    def test_of_a_wrong_value_are_refused(self, name, value, written):
        (reason,) = reasons_of(written(json.loads(KINDS.text()) | {name: value}))
        assert f"`{'scores' if value == ['ffn'] else name}`" in reason

    @pytest.mark.parametrize("name", ["units", "comparable"])
    def test_need_what_format_2_adds_and_format_1_does_not_know(self, name, written):
        content = json.loads(KINDS.text())
        del content[name]
        assert f"`{name}` is missing" in reasons_of(written(content))[0]
        (reason,) = reasons_of(written(json.loads(ONE_SHOT.text()) | {name: json.loads(KINDS.text())[name]}))
        assert f"`{name}` is not known" in reason

    def test_of_neurons_in_format_1_are_refused(self, written):
        content = json.loads(KINDS.text()) | {"format": 1}
        del content["units"], content["comparable"]
        content["scores"] = content["scores"][:4]
        (reason,) = reasons_of(written(content))
        assert "`layout`" in reason


class TestRefusals:
    def test_of_a_file_that_is_not_there(self, tmp_path):
        (reason,) = reasons_of(str(tmp_path / "none.json"))
        assert "none.json" in reason

    def test_of_a_folder(self, tmp_path):
        reasons_of(str(tmp_path))

    @pytest.mark.parametrize(
        "content",
        ["", "{", ONE_SHOT.text()[:-9], b"\xff\xfe", "[" * 100_000, ONE_SHOT.text().replace("0.25", "NaN"), "{} {}"]
        + [ONE_SHOT.text().replace("0.25", "-Infinity")],
    )
    def test_of_what_is_no_whole_json(self, content, written):
        (reason,) = reasons_of(written(content))
        assert "must be whole JSON" in reason

    @pytest.mark.parametrize("content", [[], "scores", 3, None, {}, {"format": 3}, {"format": True}, {"format": "1"}])
    def test_of_another_format(self, content, written):
        (reason,) = reasons_of(written(json.dumps(content)))
        assert "format 1 or 2" in reason

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("version", 1),
            ("version", ""),
            ("scorer", None),
            ("checkpoint", ["dense.pt"]),
            ("layout", "enc:1x/dec:/cross:"),
            ("layout", 7),
            ("layout", None),
            ("scores", None),
            ("scores", "0.5"),
            ("scores", {"0": 0.5}),
            ("scores", [0.5, 1.0, 0.25]),
            ("scores", [0.5, 1.0, 0.25, 1.0, 1.0]),
            ("scores", [0.5, 1.0, 0.25, "1.0"]),
            ("scores", [0.5, 1.0, 0.25, True]),
            ("scores", [0.5, 1.0, 0.25, None]),
            ("scores", [0.5, 1.0, 0.25, [1.0]]),
            ("scores", [0.5, 1.0, 0.25, 10**400]),
            ("order", [0, 1, 2, 3]),
            ("iterative", 2),
            ("iterative", 0),
            ("subset", "test"),
            ("subset", None),
            ("subset", ["train"]),
            ("batches", 0),
            ("batches", 2.5),
            ("batches", True),
            ("max_tokens", 0),
            ("sentences", "70"),
            ("seed", None),
            ("seed", 1.5),
            ("weights", None),
            ("weights", {}),
            ("weights", "f" * 32),
            ("weights", {"float64": "f" * 32}),
            ("weights", {"float32": "f" * 31}),
            ("weights", {"float32": "F" * 32}),
            ("weights", {"float32": "f" * 32, "float16": None}),
        ],
    )
    def test_of_a_wrong_value_name_it(self, name, value, written):
        (reason,) = reasons_of(written(json.loads(ONE_SHOT.text()) | {name: value}))
        assert f"`{name}`" in reason
        assert len(reason) < 300

    @pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4], [0, 1, 2, -1], [0, 1, 2, 3.0], "0123"])
    def test_of_an_order_that_is_none(self, order, written):
        (reason,) = reasons_of(written(json.loads(ITERATIVE.text()) | {"order": order}))
        assert "`order`" in reason

    def test_of_a_number_too_large_for_a_float(self, written):
        (reason,) = reasons_of(written(ONE_SHOT.text().replace("0.25", "1e999")))
        assert "`scores` holds inf" in reason

    @pytest.mark.parametrize("name", [name for name in json.loads(ONE_SHOT.text()) if name != "format"])
    def test_of_a_missing_entry_name_it(self, name, written):
        content = json.loads(ONE_SHOT.text())
        del content[name]
        (reason,) = reasons_of(written(content))
        assert f"`{name}` is missing" in reason

    def test_come_all_at_once(self, written):
        content = json.loads(ONE_SHOT.text()) | {"seed": "x", "subset": "test", "more": 1}
        del content["scorer"]
        assert len(reasons_of(written(content))) == 4
