"""Which training logs a report shows, and what it says of those that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up import run, runs, training_log, write

from fairseq_dsp.analysis.records import read_records
from fairseq_dsp.analysis.report import read_logs


def test_a_training_that_was_cut_to_several_budgets_is_shown_under_none_of_them(tmp_path: Path):
    contents = [content for content in runs() if content["method"] in ("dense", "dsp", "brand new")]
    for content in contents:
        shared = "one.log" if content["method"] == "brand new" else f"{content['kept']}-{content['seed']}.log"
        content["log"] = shared
        (tmp_path / shared).write_text(training_log("simple", updates=100, fixed_at=60))
    records = read_records(str(write(tmp_path / "results.jsonl", contents)), pytest.fail)
    logs, problems = read_logs(records, str(tmp_path / "results.jsonl"))
    assert problems == []
    assert {"brand new", "dsp, K = 12"} <= logs.keys()


def test_a_training_of_two_methods_is_shown_once(tmp_path: Path):
    contents = [run("hard-concrete", k) for k in (6, 3)]
    contents += [run("hard-concrete-auto", 7), run("hard-concrete-auto", 9, seed=2)]
    for content in contents:
        content["log"] = f"{content['seed']}.log"
        (tmp_path / content["log"]).write_text(training_log("simple", updates=100, fixed_at=60))
    records = read_records(str(write(tmp_path / "results.jsonl", contents)), pytest.fail)
    logs, problems = read_logs(records, str(tmp_path / "results.jsonl"))
    assert (list(logs), problems) == (["hard-concrete"], [])


def test_missing_logs_are_one_sentence_and_others_take_their_place(tmp_path: Path):
    contents = [content for content in runs() if content["method"] != "dense"]
    for content in contents:
        content["log"] = "none.log"
        if content["method"] == "dsp" and content["kept"] == 3:
            content["log"] = "there.log"
    (tmp_path / "there.log").write_text(training_log("simple", updates=100, fixed_at=60))
    records = read_records(str(write(tmp_path / "results.jsonl", contents)), pytest.fail)
    logs, problems = read_logs(records, str(tmp_path / "results.jsonl"))
    assert len(logs) == 1
    others = [method for method in dict.fromkeys(content["method"] for content in contents) if method != "dsp"]
    assert problems == [f"no log of {', '.join(others)} can be read: No such file or directory."]
