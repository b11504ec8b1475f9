"""Results files: what is right is read, a killed writer's last line is left out, anything else is refused by line and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up import JOINT, OTHER, joint, run, runs, training_log, write

from fairseq_dsp.analysis.groups import grouped, mean_and_spread
from fairseq_dsp.analysis.records import Record, describe, name_of, read_records
from fairseq_dsp.analysis.training_log import FIGURES, read_log
from fairseq_dsp.errors import Refusal
from fairseq_dsp.units.layout import Layout


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def read(path: Path) -> tuple[list[Record], list[str]]:
    """The runs and the warnings."""
    warnings: list[str] = []
    return read_records(str(path), warnings.append), warnings


def reasons_of(path: Path) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refused:
        read(path)
    assert all("results" in reason and reason.endswith(".") and len(reason) < 400 for reason in refused.value.reasons)
    return refused.value.reasons


class TestReading:
    def test_keeps_everything(self, results):
        content = run("dsp", 6, 3, hypotheses="hypotheses/6.txt", log="6.log")
        records, warnings = read(write(results, [content]))
        assert not warnings
        (record,) = records
        assert record.layout == Layout.parse(content["layout"])
        assert {name: getattr(record, name) for name in content} | {"layout": content["layout"]} == content
        assert record.line == 1

    def test_takes_null_where_nothing_was_trained_and_leaves_further_keys_alone(self, results):
        content = run(updates=None, seconds=None, words_per_second=None, notes=[1, {"deep": None}], log=None)
        (record,) = read(write(results, [content]))[0]
        assert (record.updates, record.seconds, record.words_per_second) == (None, None, None)

    def test_takes_runs_whose_neurons_are_units_and_groups_them_by_their_budget(self, results):
        contents = [
            joint(JOINT, 1, budget="macs=0.5"),
            joint(OTHER, 2, budget="macs=0.5"),
            joint(JOINT, 3),
            run("joint", 6),
        ]
        records, warnings = read(write(results, contents))
        assert not warnings
        assert [record.size for record in records] == ["macs=0.5", "macs=0.5", f"{records[2].kept} units", "6"]
        assert [record.is_counted for record in records] == [False, False, False, True]
        assert records[0].heads == Layout.parse(JOINT.split("/ffn")[0])
        found = {group.size: len(group.records) for group in grouped(records)}
        assert found == {"6": 1, f"{records[2].kept} units": 1, "macs=0.5": 2}

    @pytest.mark.parametrize(
        "wrong", [{"macs": -1}, {"macs": 0.5}, {"latency": -0.1}, {"latency": "1"}, {"budget": ""}]
    )
    def test_refuses_costs_that_are_none(self, wrong, results):
        write(results, [joint(JOINT) | wrong])
        assert next(iter(wrong)) in reasons_of(results)[0]

    def test_skips_empty_lines_and_needs_no_last_line_break(self, results):
        results.write_text("\n" + json.dumps(run(seed=1)) + "\n  \n" + json.dumps(run(seed=2)))
        records, warnings = read(results)
        assert [record.line for record in records] == [2, 4]
        assert not warnings

    def test_takes_a_dense_model_as_large_as_a_pruned_one_for_its_budget(self, results):
        whole = str(Layout.full(Layout.parse(run()["layout"]).grid))
        small = run("dense-small", 6, layout=whole, size_of=6)
        (record,) = read(write(results, [small]))[0]
        assert (record.kept, record.has_all_heads, record.is_dense) == (6, True, False)
        for wrong in ({"size_of": 5}, {"layout": run()["layout"]}, {"size_of": "few"}):
            assert "`size_of` must be" in reasons_of(write(results, [small | wrong]))[0]

    def test_takes_methods_that_nobody_knows(self, results):
        assert read(write(results, [run("größer $x_1$ <b>|")]))[0][0].method == "größer $x_1$ <b>|"

    def test_of_the_same_run_the_last_counts_and_a_warning_names_both(self, results):
        records, (warning,) = read(write(results, [run(bleu_tok=1.0), run(seed=2), run(bleu_tok=2.0)]))
        assert sorted(record.bleu_tok for record in records if record.seed == 1) == [2.0]
        assert "lines 1 and 3" in warning

    @pytest.mark.parametrize("cut", [1, 30, 200, -1])
    def test_leaves_out_a_last_line_that_was_cut(self, cut, results):
        whole = json.dumps(run(seed=2))
        results.write_text(json.dumps(run()) + "\n" + whole[:cut])
        records, (warning,) = read(results)
        assert [record.seed for record in records] == [1]
        assert f"{results}, line 2" in warning

    @pytest.mark.parametrize("rest", [b"\0\0\0\0\n", b'{"method": "d\xc3', b"[" * 100_000])
    def test_leaves_out_a_last_line_of_rubbish(self, rest, results):
        results.write_bytes(json.dumps(run()).encode() + b"\n" + rest)
        records, warnings = read(results)
        assert len(records) == len(warnings) == 1


class TestRefusals:
    def test_of_a_file_that_is_not_there(self, results):
        (reason,) = reasons_of(results)
        assert str(results) in reason

    @pytest.mark.parametrize("content", ["", "\n\n", '{"method": "ds'])
    def test_of_a_file_without_a_finished_run(self, content, results):
        results.write_text(content)
        with pytest.raises(Refusal, match="holds none"):
            read(results)

    def test_of_a_broken_line_in_the_middle(self, results):
        results.write_text(json.dumps(run())[:50] + json.dumps(run()) + "\n" + json.dumps(run(seed=2)) + "\n")
        (reason,) = reasons_of(results)
        assert f"{results}, line 1 must be whole JSON" in reason

    @pytest.mark.parametrize("name", list(run()))
    def test_of_a_missing_key_name_it(self, name, results):
        content = run(seed=2)
        del content[name]
        (reason,) = reasons_of(write(results, [run(), content]))
        assert reason == f"{results}, line 2: `{name}` must be there, but is missing."

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("method", ""),
            ("method", 3),
            ("method", "two\nlines"),
            ("kept", -1),
            ("kept", 6.0),
            ("kept", True),
            ("kept", 7),
            ("total", 37),
            ("total", "36"),
            ("seed", None),
            ("layout", "enc:1x/dec:/cross:"),
            ("layout", None),
            ("bleu_tok", float("nan")),
            ("bleu_tok", float("inf")),
            ("bleu_tok", "33.1"),
            ("bleu_tok", None),
            ("bleu_tok", True),
            ("sacrebleu", -1),
            ("sacrebleu", 101),
            ("chrf", [50.0]),
            ("signatures", "nrefs:1"),
            ("signatures", {"chrf": None}),
            ("updates", 1.5),
            ("updates", -1),
            ("seconds", float("nan")),
            ("words_per_second", "fast"),
            ("parameters", None),
            ("parameters", 10**30),
            ("hardware", 3),
            ("versions", {"torch": [2]}),
            ("data", None),
            ("command", ["fairseq-train", 3]),
            ("hypotheses", 3),
            ("log", ""),
        ],
    )
    def test_of_a_wrong_value_name_file_line_and_value(self, name, value, results):
        (reason,) = reasons_of(write(results, [run(seed=7), run() | {name: value}]))
        assert f"{results}, line 2: `{name}` must be" in reason
        assert "but is" in reason

    @pytest.mark.parametrize("content", [[], 3, None, "dsp"])
    def test_of_a_line_that_is_no_object(self, content, results):
        (reason,) = reasons_of(write(results, [content]))
        assert "must be an object" in reason

    def test_of_a_dense_model_with_fewer_heads(self, results):
        (reason,) = reasons_of(write(results, [run("dense", 6)]))
        assert "all heads, for dense" in reason

    def test_come_all_at_once_but_not_by_the_thousand(self, results):
        assert len(reasons_of(write(results, [run(seed="x", chrf=None), [], run(seed=None)]))) == 4
        reasons = reasons_of(write(results, [[]] * 500))
        assert len(reasons) == 21
        assert "480 more" in reasons[-1]


class TestGroups:
    def test_are_by_method_dense_first_and_by_falling_budget(self, results):
        contents = runs()
        contents.reverse()
        groups = grouped(read(write(results, contents))[0])
        assert groups[0].method == "dense"
        assert [record.seed for record in groups[0].records] == [1, 2]
        assert [group.kept for group in groups if group.method == "dsp"] == [24, 12, 6, 3, 0]
        assert sum(len(group.records) for group in groups) == len(contents)

    def test_values_leave_out_what_is_missing(self, results):
        (group,) = grouped(read(write(results, [run(seed=1, seconds=None), run(seed=2, seconds=3)]))[0])
        assert group.values("seconds") == [3]

    def test_spread_is_the_sample_standard_deviation_and_one_value_has_none(self):
        assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
        assert mean_and_spread([1.0]) == (1.0, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("one", "one"),
        ({"torch": "2.5", "gpu": None, "note": "", "cores": 2}, "torch 2.5, cores 2"),
        (["train", "prune"], "train && prune"),
    ],
)
def test_descriptions_are_one_line(value: Any, text: str):
    assert describe(value) == text


def test_data_is_called_by_its_label_and_pair():
    assert name_of({"label": "a third", "pair": "de-en", "sha256": "abc"}) == "a third de-en"
    assert name_of({"label": "", "size": 3}) == "size 3"
    assert name_of("one") == "one"


class TestTrainingLogs:
    @pytest.mark.parametrize("kind", ["simple", "json"])
    def test_give_every_figure_of_every_update(self, kind):
        log = read_log(training_log(kind, updates=40, every=10, fixed_at=30, neurons=True))
        assert log.figures.keys() == {*FIGURES}
        of_heads = read_log(training_log(kind, updates=40, every=10, fixed_at=30))
        assert of_heads.figures.keys() == {name for name in FIGURES if "ffn" not in name}
        assert all([update for update, _ in points] == [10, 20, 30, 40] for points in log.figures.values())
        assert log.figures["heads_enc"][2:] == [(30, 1.0), (40, 1.0)]
        assert log.fixed_at == 30
        assert 0 < log.figures["temperature"][0][1] < 0.1

    def test_are_the_same_in_both_formats(self):
        assert read_log(training_log("simple")) == read_log(training_log("json"))

    def test_of_a_resumed_run_count_the_last_word(self):
        line = "2026-01-31 12:00:00 | INFO | train_inner | epoch 001:  1 / 9 heads_enc={}, num_updates={}\n"
        text = line.format(3, 10) + line.format(4, 20) + line.format(1, 10) + line.format(2, 20)
        assert read_log(text).figures == {"heads_enc": [(10, 1.0), (20, 2.0)]}

    def test_leave_out_what_is_not_finite_and_lines_that_were_cut(self):
        line = '2026 | INFO | train_inner | {"importance_gnorm": "%s", "num_updates": "%s"}\n'
        text = line % ("inf", 1) + line % ("nan", 2) + line % ("0.5", 3) + (line % ("1", 4))[:60]
        assert read_log(text).figures == {"importance_gnorm": [(3, 0.5)]}

    def test_without_updates_give_the_epochs(self):
        text = "2026 | INFO | train | epoch 001 | loss 3.2 | temperature 1e-08 | heads_enc 3 | num_updates 8\n"
        json_text = '2026 | INFO | train | {"epoch": 1, "train_heads_enc": "3", "train_num_updates": "8"}\n'
        assert read_log(text).figures == {"temperature": [(8, 1e-08)], "heads_enc": [(8, 3.0)]}
        assert read_log(json_text).figures == {"heads_enc": [(8, 3.0)]}

    def test_of_a_dense_training_are_empty(self):
        assert read_log("2026 | INFO | train_inner | epoch 001:  1 / 9 loss=3, num_updates=1\n").figures == {}
        assert read_log("").fixed_at is None

    @pytest.mark.parametrize(
        "options", ["Namespace(lr=1, cooldown_updates=25, seed=1)", "{'model': {'cooldown_updates': 25}}"]
    )
    def test_knows_when_heads_were_fixed_where_no_temperature_is_annealed(self, options: str):
        lines = [f"2026 | INFO | train_inner | epoch 001:  1 / 9 num_updates={n}, heads_enc=3\n" for n in (10, 20, 30)]
        began = f"2026 | INFO | fairseq_cli.train | {options}\n"
        assert read_log(began + "".join(lines)).fixed_at == 25
        assert read_log(began + "".join(lines[:2])).fixed_at is None
        assert read_log(began.replace("seed=1", "keep_sampling=True") + "".join(lines)).fixed_at == (
            None if "Namespace" in options else 25
        )
        assert read_log("".join(lines)).fixed_at is None
        resumed = began + lines[0] + began.replace("25", "15") + "".join(lines[1:])
        assert read_log(resumed).fixed_at == 15
