"""What fairseq-dsp-bench prints: tables that fold nothing, figures that say when they say nothing, how far long work is."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from fairseq_dsp.benchmark import profiling
from fairseq_dsp.benchmark.comparison import Row
from fairseq_dsp.benchmark.measuring import estimate, paired_ratio
from fairseq_dsp.benchmark.settings import Case
from fairseq_dsp.benchmark.tables import show, show_profile
from fairseq_dsp.cli import waiting
from fairseq_dsp.cli.bench import main

PATHS = ["runs/dense-s1/checkpoint_best.pt", "experiments/of last week/dsp-k18-s1/pruned_and_finetuned_for_5_epochs.pt"]
NAMES = [*PATHS, "dsp_transformer_iwslt_de_en:spread=18,gated,pipelined,relaxation=projection,words=8848/6632"]
STEADY = [1.0, 1.01, 1.02, 0.99, 1.0, 1.01, 1.0]
OPERATOR = "aten::_scaled_dot_product_flash_attention_for_cpu"


def row(name: str, seconds=STEADY, baseline=None, engine="fairseq", phase="") -> Row:
    ratio = None if baseline is None else paired_ratio(baseline, seconds)
    return Row(
        model=name, phase=phase, parameters=39469056, heads=18, total=72, layout="", engine=engine, seconds=seconds,
        median=estimate(seconds).median, ratio=ratio, engine_ratio=ratio, tokens_per_second=1234567.0, flops=5.33e11,
        attention="flash_attention_for_cpu", promised=None if ratio is None else 1.61, share=None if ratio is None else 0.95,
        peak_bytes=3473e6, profile={OPERATOR: 0.4, "aten::mm": 0.1},
    )  # fmt: skip


def printed(rows: list[Row], width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    show(console, Case("generate", 32, 5), rows)
    show_profile(console, rows)
    return console.file.getvalue()


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize("width", [40, 80, 120, 200, 100_000])
def test_paths_phases_and_figures_are_never_folded(width, engines):
    rows = [row(NAMES[0]), *(row(name, baseline=[1.0] * 7, phase="heads fixed") for name in NAMES[1:])]
    if engines > 1:
        rows += [row(f"{NAMES[0]} in CTranslate2 int8", engine="CTranslate2 int8", baseline=[1.0] * 7)]
    text = printed(rows, width)
    for name in NAMES:
        assert name in text
    assert f"{NAMES[2]} (heads fixed)" in text
    for figure in (
        "39,469,056",
        "1,234,567",
        "3,473",
        "0.98-1.01",
        "1.61",
        "95%",
        OPERATOR.removeprefix("aten::"),
        "(80%)",
    ):
        assert figure in text
    assert "…" not in text


def test_a_table_of_four_models_fits_a_terminal():
    rows = [row(NAMES[0]), *(row(name, baseline=[1.0] * 7) for name in (*NAMES[1:], "x.pt"))]
    console = Console(width=80, file=io.StringIO())
    show(console, Case("generate", 32, 5), rows)
    table = console.file.getvalue().split(f"1: {NAMES[0]}")[0]
    assert max(map(len, table.splitlines())) <= 80


def test_figures_whose_interval_is_too_wide_say_so():
    """Ratios, their share of what was promised, and times, of the baseline too; not the row beside them."""
    shaky = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.7]
    text = printed([row("a", shaky), row("b", [1.0] * 7, baseline=shaky), row("c", STEADY, baseline=[1.0] * 7)], 1000)
    a, b, c = (next(line for line in text.splitlines() if line.startswith(f"│ {name}")) for name in "abc")
    assert "1000 ?" in a
    assert "1,234,567 ?" in a
    assert "1.00-1.70 ?" in b
    assert "95%" not in b
    assert "?" not in c
    assert "95%" in c
    assert "says next to nothing" in text
    assert "says next to nothing" not in printed([row("c")], 1000)


def test_too_few_pairs_give_a_ratio_and_no_interval():
    line = next(
        line for line in printed([row("a"), row("b", [1.0] * 5, [2.0] * 5)], 1000).splitlines() if "│ b" in line
    )
    assert [cell.strip() for cell in line.split("│")[5:7]] == ["2.00", ""]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(waiting, "monotonic", lambda: now.seconds)
    return now


def test_long_work_says_how_far_it_is_where_there_is_no_terminal(clock, capsys):
    with waiting.steps("turns", 9) as step:
        for _ in range(9):
            clock.seconds += 40
            step()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "turns: 1 of 9, about 5 minutes left"
    assert lines[7] == "turns: 8 of 9, about 40 seconds left"
    assert len(lines) == 8


def test_many_short_steps_make_few_lines(clock, capsys):
    things = waiting.watch_within("generate")("turns", range(600))
    for number in things:
        assert number == int(clock.seconds * 10 + 0.5)
        clock.seconds += 0.1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["1", "152", "302"]
    assert lines[0].startswith("generate: turns: 1 of 600, about 60 seconds left")


@pytest.mark.parametrize("workloads", ["encoder", "mask,encoder"])
def test_the_command_says_which_part_of_which_case_it_is_at(workloads, monkeypatch, capsys):
    seconds = itertools.count(step=20)
    monkeypatch.setattr(waiting, "monotonic", lambda: next(seconds))
    models = ["dsp_transformer_tiny:spread=6,words=30/40", "dsp_transformer_tiny:spread=5,gated,words=30/40"]
    sizes = "--batch-size 2 --length 4 --pairs 3 --warmup 1 --cpu --no-memory".split()
    main(["--random", *models, "--workloads", workloads, *sizes])
    said = capsys.readouterr().err
    count = len(workloads.split(","))
    assert "reading the models: 1 of 2, about 20 seconds left" in said
    assert f"encoder, batch 2 (case {count} of {count}): getting ready: 1 of 2, about 20 seconds left" in said
    assert f"encoder, batch 2 (case {count} of {count}): turns: 1 of 4, about 60 seconds left" in said


def test_short_work_says_nothing_where_there_is_no_terminal(clock, capsys):
    for _ in waiting.watched("turns", range(9), 9):
        clock.seconds += 1
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_what_remains(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    for _ in waiting.watched("turns", range(3), 3):
        pass
    error = capsys.readouterr().err
    assert "turns" in error
    assert "3/3" in error


def test_on_a_gpu_a_kernel_counts_once_with_the_operator_that_launched_it(monkeypatch):
    """torch lists kernels, copies and annotated ranges of the device beside the operators whose time they make up.

    These are the kinds of rows that torch 2.11 made of three updates on an H200: 12.0 ms in all of 5.3 ms of kernels.
    """
    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [
        ("aten::mm", cpu, 3000.0), ("aten::copy_", cpu, 1000.0), ("Activity Buffer Request", cpu, 1000.0), ("sgemm_kernel", cuda, 3000.0),
        ("Memcpy HtoD", cuda, 1000.0), ("Optimizer.step#Adam.step", cuda, 4000.0),
    ]  # fmt: skip

    class Profiler:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def key_averages(self):
            return [SimpleNamespace(key=k, device_type=d, self_device_time_total=t) for k, d, t in events]

    monkeypatch.setattr(profiling, "profile", lambda activities: Profiler())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = profiling.seconds_by_operator(lambda: None, "cuda")
    assert found.pop(profiling.REST) == 0
    assert found == {"aten::mm": 0.003, "aten::copy_": 0.001}
