"""Figures: drawn for any methods, budgets, grids and logs; nothing overlaps the axis; the same input gives the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up import GRID, JOINT, OTHER, joint, run, runs, training_log, write

from fairseq_dsp.analysis import plots
from fairseq_dsp.analysis.plots import style
from fairseq_dsp.analysis.records import Record, read_records
from fairseq_dsp.analysis.report import refuse_mixtures, write_report
from fairseq_dsp.analysis.training_log import TrainingLog, read_log
from fairseq_dsp.files.output import checked_folder
from fairseq_dsp.units.layout import Grid, Layout

pytestmark = pytest.mark.filterwarnings("error")
STARTS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.fixture
def records(tmp_path: Path) -> Callable[[list[Any]], list[Record]]:
    return lambda contents: read_records(str(write(tmp_path / "results.jsonl", contents)), pytest.fail)


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[..., Any]:
    """Draws a figure and returns it, as it was when it was saved."""

    def draw(
        function: Callable[..., None], *arguments: Any, suffixes: tuple[str, ...] = ("png",), **options: Any
    ) -> Any:
        kept = []
        whole = style.save
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(style, "save", lambda figure, paths: kept.append(figure) or whole(figure, paths))
            paths = [str(tmp_path / f"figure.{suffix}") for suffix in suffixes]
            function(*arguments, *paths, **options)
        for path, suffix in zip(paths, suffixes, strict=True):
            assert Path(path).read_bytes().startswith(STARTS[suffix])
        return kept[0]

    return draw


def labels(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def overlapping(boxes: list[Any]) -> bool:
    return any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


class TestScores:
    def test_have_a_line_a_method_and_all_are_in_the_legend(self, records, drawn):
        contents = [content for content in runs() if content["kept"] in (36, 12, 0)]
        figure = drawn(plots.score_against_heads, records(contents), suffixes=("png", "pdf", "svg"))
        methods = list(dict.fromkeys(content["method"] for content in contents))
        assert labels(figure) == methods
        (axis,) = figure.axes
        assert axis.get_xlim() == (0, 36)
        means = {tuple(line.get_xdata()) for line in axis.lines[1:]}
        assert means == {(12, 0)}

    def test_show_the_mean_and_bars_from_lowest_to_highest(self, records, drawn):
        contents = [run("dsp", 6, seed, bleu_tok=value) for seed, value in ((1, 10.0), (2, 20.0), (3, 12.0))]
        (axis,) = drawn(plots.score_against_heads, records(contents)).axes
        assert list(axis.lines[0].get_ydata()) == [14.0]
        ((low, high),) = axis.collections[0].get_segments()
        assert (low[1], high[1]) == (10.0, 20.0)

    @pytest.mark.parametrize("contents", [[run("dense", 36)], [run("a", 0)], [run("$x_", 3), run("_hidden", 6)]])
    def test_are_drawn_of_little_and_of_strange_names(self, contents, records, drawn):
        figure = drawn(plots.score_against_heads, records(contents))
        assert [label.strip() for label in labels(figure)] == [content["method"] for content in contents]

    def test_against_costs_have_a_panel_for_each_cost_that_is_known(self, records, drawn):
        contents = [
            run("dense", 36, macs=10**8, latency=0.04),
            run("dsp", 6, 1),
            run("dsp", 6, 2, bleu_tok=12.0),
            run("dsp", 3),
        ]
        contents += [joint(JOINT, budget="parameters=0.5"), joint(OTHER, seed=2, budget="parameters=0.5"), joint(OTHER)]
        figure = drawn(plots.score_against_costs, records(contents), suffixes=("png", "pdf"))
        assert [axis.get_xlabel() for axis in figure.axes] == [
            "M parameters",
            "M multiply-adds a sentence",
            "ms a sentence",
        ]
        places = [
            [list(line.get_xdata()) for line in axis.lines if line.get_marker() != "None"] for axis in figure.axes
        ]
        dsp, by_budget = places[0]
        assert dsp == pytest.approx([(100_000 + 512 * kept) / 1e6 for kept in (3, 6)])
        assert by_budget == [0.09, 0.09]
        assert places[1:] == [[[], [70.0, 70.0]], [[], [20.0, 20.0]]]
        assert labels(figure) == ["dense", "dsp", "joint"]
        few = [run("dense", 36), run("dsp", 6)]
        assert len(drawn(plots.score_against_costs, records(few)).axes) == 1

    def test_are_drawn_of_a_model_without_heads(self, records, drawn):
        drawn(plots.score_against_heads, records([run("dense", 0, grid=Grid.of_heads((), (), ()))]))

    def test_legend_and_axes_do_not_overlap(self, records, drawn):
        contents = runs(seeds=(1,), budgets=(12, 3))
        figure = drawn(plots.score_against_heads, records(contents))
        boxes = [figure.axes[0].get_tightbbox(), figure.legends[0].get_tightbbox()]
        assert not overlapping(boxes)
        assert figure.legends[0].get_tightbbox().width < figure.bbox.width

    @pytest.mark.parametrize("suffix", ["png", "pdf"])
    def test_are_the_same_bytes_again(self, suffix, records, tmp_path):
        found = records([run("dense", 36), run()])
        for name in ("one", "two"):
            plots.score_against_heads(found, str(tmp_path / f"{name}.{suffix}"))
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


class TestBudgetAxis:
    @pytest.mark.parametrize("total", [12, 36, 72, 144])
    @pytest.mark.parametrize("width", [1.6, 2.8])
    def test_has_its_ends_and_no_labels_that_touch(self, total, width):
        with style.drawing():
            figure = style.new_figure(width + 0.6, 2)
            axis = figure.subplots()
            style.budget_axis(axis, range(total + 1), total, width)
            figure.draw_without_rendering()
            texts = [label.get_text() for label in axis.get_xticklabels()]
            assert (texts[0], texts[-1]) == ("0", str(total))
            assert len(texts) >= 5
            assert not overlapping([label.get_window_extent() for label in axis.get_xticklabels()])


def test_looks_are_different_for_every_method_and_the_same_in_every_figure():
    methods = ["dense", "dsp", "dsp-pipelined", "ste", "hard-concrete", "hard_concrete_auto", "gradient", "random"]
    methods += [
        "gradient-finetuned",
        "fixed",
        "magnitude",
        "new one",
        "another",
        "dsp without noise",
        "x",
        "y",
        "z",
        "v",
    ]
    found = style.looks(methods)
    assert len({(look.color, look.marker, str(look.dash)) for look in found.values()}) == len(methods)
    assert style.looks(["random", "ste", "dsp"])["dsp"] == found["dsp"]


class TestHeads:
    grid = Grid.of_heads((4, 4), (2,), (3, 1, 2))

    @pytest.mark.parametrize("function", [plots.kept_heads_grid, plots.kept_heads_by_budget])
    def test_grids_have_a_cell_a_head_and_mark_those_kept(self, function, drawn):
        from matplotlib.colors import to_rgba

        layouts = {f"K = {k}": Layout.full(self.grid).random_subset(k, seed=1) for k in (16, 5, 0)}
        figure = drawn(function, layouts, suffixes=("png", "pdf"))
        cells = [patch.get_facecolor() for axis in figure.axes for patch in axis.patches]
        assert len(cells) == 3 * self.grid.total
        assert cells.count(to_rgba(style.KEPT)) == 21

    @pytest.mark.parametrize("function", [plots.kept_heads_grid, plots.kept_heads_by_budget])
    def test_grids_are_drawn_without_any_heads(self, function, drawn):
        drawn(function, {"none": Layout.parse("enc:/dec:/cross:")})

    @pytest.mark.parametrize("function", [plots.kept_heads_grid, plots.kept_heads_by_budget])
    def test_widths_stand_beside_the_grids_where_neurons_are_units(self, function, drawn):
        layouts = {"both": Layout.parse(JOINT), "heads alone": Layout.full(GRID).random_subset(6, seed=1)}
        figure = drawn(function, layouts, suffixes=("png", "pdf"))
        assert len(figure.axes) == 10
        bars = [[patch.get_width() for patch in container] for axis in figure.axes for container in axis.containers]
        kept = [shares for shares in bars if shares != [1.0] * 3]
        assert kept == [[0.5, 0.0, 1.0], [0.125, 0.25, 0.0]]
        assert len(bars) == 8  # of both layouts all that there are, and what is kept

    def test_shares_are_of_the_heads_kept(self, records, drawn):
        layout = "enc:1000.0000.0000/dec:0000.0000.0000/cross:1100.1000.0000"
        contents = [run("dense", 36), run("dsp", 4, layout=layout), run("dsp", 0), run("other", 12), run("third", 3)]
        figure = drawn(plots.attention_type_shares, records([*contents, run("fourth", 3)]), suffixes=("png", "pdf"))
        panel = figure.axes[0]
        assert panel.get_title() == "dsp"
        shares = [list(line.get_ydata()) for line in panel.lines if line.get_marker() != "None"]
        assert shares == [[25.0], [0.0], [75.0]]
        assert not overlapping([axis.get_tightbbox() for axis in figure.axes if axis.get_visible()])
        assert not overlapping([figure.axes[3].get_tightbbox(), figure.legends[0].get_tightbbox()])


class TestTraining:
    log = read_log(training_log())

    def test_has_a_column_a_run_and_marks_where_heads_are_fixed(self, drawn):
        figure = drawn(plots.training_courses, {"dsp, K = 6": self.log, "ste": self.log}, suffixes=("png", "pdf"))
        assert len(figure.axes) == 10
        assert len(figure.axes[2].lines) == 4  # importance by type, and the update of the fixing
        assert "heads fixed" in [text.get_text() for text in figure.axes[0].texts]
        # a temperature of 0 has no place on its scale
        assert max(figure.axes[0].lines[0].get_xdata()) < self.log.fixed_at

    def test_shows_a_figure_that_was_logged_once_or_a_few_times(self, drawn):
        """A line through one point is nothing; a point among others that are not there, as with a line an epoch, is little."""
        for updates, visible in ((1, True), (3, True), (400, False)):
            log = read_log(training_log(updates=updates * 10, fixed_at=10**6))
            figure = drawn(plots.training_courses, {"dsp": log, "many": self.log})
            for axis in figure.axes[::2]:
                for line in axis.lines:
                    assert len(line.get_xdata()) == updates
                    assert (line.get_marker() not in ("None", "", None)) == visible

    def test_shows_neurons_where_the_log_has_them(self, drawn):
        log = read_log(training_log(neurons=True))
        figure = drawn(plots.training_courses, {"joint": log, "dsp": self.log})
        assert [len(axis.lines) for axis in figure.axes[6:8]] == [6, 4]
        assert figure.axes[6].get_ylabel() == "units kept"
        assert labels(figure)[-2:] == ["encoder FFN", "decoder FFN"]

    def test_is_drawn_where_figures_are_missing(self, drawn):
        drawn(plots.training_courses, {"a": TrainingLog({"heads_enc": [(1, 2.0)]}), "b": TrainingLog()})


class TestNote:
    """Small print that goes wherever the figure goes."""

    note = "30 % of the training set, official test set de-en"

    @pytest.fixture
    def figures(self, records, drawn) -> list[Any]:
        found, log = records(runs()), read_log(training_log("simple"))
        layouts = {"K = 6": found[0].layout}
        return [
            drawn(function, what, note=self.note, suffixes=("png", "pdf"))
            for function, what in (
                (plots.score_against_heads, found), (plots.attention_type_shares, found),
                (plots.kept_heads_by_budget, layouts), (plots.training_courses, {"dsp": log}),
            )
        ]  # fmt: skip

    def test_is_in_every_figure_and_in_no_other_s_place(self, figures):
        for figure in figures:
            assert " ".join(figure.get_suptitle().split()) == self.note
            note = figure._suptitle.get_window_extent()
            assert 0 <= note.x0 < note.x1 <= figure.bbox.width
            assert not overlapping([note, *(axis.get_tightbbox() for axis in figure.axes if axis.get_visible())])

    def test_is_not_there_where_none_is_given(self, records, drawn):
        assert drawn(plots.score_against_heads, records(runs())).get_suptitle() == ""


def test_every_figure_of_a_report_and_its_title_have_the_label_of_the_data(records, tmp_path: Path):
    data = {"label": "30 % of the training set", "pair": "de-en"}
    found = records([content | {"data": data} for content in runs()])
    kept, whole = [], style.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "save", lambda figure, paths: kept.append(figure) or whole(figure, paths))
        write_report(
            found, checked_folder(tmp_path / "out", False, "", bool), logs={"dsp": read_log(training_log("simple"))}
        )
    assert len(kept) == len(list((tmp_path / "out/figures").glob("*.png"))) > 5
    assert {" ".join(figure.get_suptitle().split()) for figure in kept} == {"30 % of the training set de-en"}
    for name in ("report.md", "report.html"):
        assert "30 % of the training set de-en" in (tmp_path / "out" / name).read_text().replace("\n", " ")


def test_a_report_of_heads_alone_and_of_both_kinds_shows_each_by_what_it_kept(records, tmp_path):
    contents = [
        run("dense", 36, macs=10**8, latency=0.04),
        run("dsp", 6),
        joint(JOINT, budget="parameters=0.5"),
        joint(OTHER),
    ]
    found = records(contents)
    refuse_mixtures(found, "results.jsonl")
    write_report(found, checked_folder(tmp_path / "report", False, "reports", lambda _: False))
    text = (tmp_path / "report/report.md").read_text()
    assert {path.stem for path in (tmp_path / "report/figures").glob("*.png")} == {
        "bleu-against-heads", "bleu-against-costs", "attention-types", "kept-heads-dsp", "kept-heads-joint",
    }  # fmt: skip
    table = text.split("## All figures")[1]
    cells = {tuple(row.split(" | ")[:2]): row.split(" | ") for row in table.splitlines() if row.startswith("| ")}
    both = cells["| joint", "parameters=0.5"]
    assert ["1 / 0 / 3", "12 / 3", "90,000", "70", "20"] == both[6:11]
    assert cells["| dense", "36"][6:8] == ["12 / 12 / 12", "\N{EN DASH}"]
    budgets = text.split("### BLEU")[1].split("###")[0]
    assert "joint" not in budgets
    assert "| method | 36 | 6 |" in budgets
    assert "a model with 36 attention heads: 2 methods at 3 budgets" in text
