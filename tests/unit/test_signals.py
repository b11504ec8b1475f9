"""What the log says of the importance's gradients, against slow loops; and that noting it waits for no device."""

from __future__ import annotations

import statistics

import devices
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import few_examples

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods import METHODS
from fairseq_dsp.modules.gates import HeadGates
from fairseq_dsp.plugin.progress import HeadProgress
from fairseq_dsp.plugin.signals import BLOCK, Signals
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.groups import with_groups
from fairseq_dsp.units.layout import Grid


def slow(gradients: list[list[float]]) -> tuple[float, float]:
    """Living share and signal to noise."""
    live, ratios = [], []
    for gradient in gradients:
        largest = max(map(abs, gradient))
        live.append(sum(abs(each) > 0.01 * largest for each in gradient) / len(gradient))
    for of_head in zip(*gradients, strict=True):
        rms = (sum(each**2 for each in of_head) / len(of_head)) ** 0.5
        ratios.append(abs(sum(of_head) / len(of_head)) / rms if rms else 0.0)
    return sum(live) / len(live), statistics.median(ratios)


@given(st.integers(1, 2 * BLOCK + 7), st.integers(1, 9), st.integers(0, 99))
@few_examples
def test_figures_are_those_of_a_slow_loop_over_the_last_whole_block(updates: int, heads: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(updates, heads, generator=generator) * torch.rand(heads, generator=generator) ** 8 + 0.01
    masks = (torch.rand(updates + 1, heads, generator=generator) > 0.5).float()
    signals = Signals()
    assert signals.read(masks[0]) == {}
    for update in range(1, updates + 1):
        signals.note(gradients[update - 1], lambda update=update: masks[update], update)
    end = updates - updates % BLOCK if updates >= BLOCK else updates
    begin = max(end - BLOCK, 0) if updates >= BLOCK else 0
    found = signals.read(masks[updates])
    live, ratio = slow(gradients[begin:end].double().tolist())
    assert found["importance_live"] == pytest.approx(live)
    assert found["importance_snr"] == pytest.approx(ratio)
    before = masks[begin if begin else 1]
    assert found["heads_swapped"] == ((masks[end] > 0) & (before == 0)).sum()


def test_pure_noise_and_pure_signal_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    for signal, low, high in ((0.0, 0.03, 0.15), (9.0, 0.9, 1.0)):
        signals = Signals()
        for update in range(1, BLOCK + 1):
            signals.note(torch.randn(40, generator=generator) + signal, lambda: torch.zeros(40), update)
        assert low <= signals.read(torch.zeros(40))["importance_snr"] <= high


def test_a_gradient_that_is_not_finite_does_not_count():
    clean, broken = Signals(), Signals()
    for update in range(1, 6):
        gradient = torch.linspace(-1, 1, 5) * update
        clean.note(gradient, lambda: torch.zeros(5), update)
        broken.note(gradient, lambda: torch.zeros(5), update)
        broken.note(gradient * float("inf"), lambda: torch.zeros(5), update)
    assert broken.read(torch.zeros(5)) == clean.read(torch.zeros(5))


def test_heads_of_no_gradient_at_all_are_dead_and_without_signal():
    signals = Signals()
    signals.note(torch.zeros(4), lambda: torch.zeros(4), 1)
    assert signals.read(torch.zeros(4)) == {"importance_live": 0.0, "importance_snr": 0.0, "heads_swapped": 0.0}


def test_noting_reads_nothing_from_the_device():
    with devices.on(devices.PRETENDED):
        signals, gradient, kept = Signals(), torch.linspace(-1, 1, 5), torch.zeros(5)
        with devices.reads_from_the_device() as found:
            for update in range(1, 2 * BLOCK + 5):
                signals.note(gradient, lambda: kept, update)
        assert found == []
        assert signals.read(kept)["importance_live"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("group", "names"), [(None, set()), (7, {"kept_heads", "kept_ffn", "heads_ffn-enc", "heads_ffn-dec"})]
)
def test_units_kept_are_counted_by_kind_and_type_where_there_are_several_kinds(group, names):
    grid = Grid.of_heads((3, 3), (3, 3), (3, 3))
    grid = grid if group is None else with_groups(grid, {"ffn-enc": (14, 14), "ffn-dec": (14, 14)}, group)
    gates = HeadGates(grid, Budget.of_units(9, grid.total), METHODS["dsp"].from_config(PruningConfig()))
    progress = HeadProgress()
    layout = progress.look(gates)
    assert {name for name in progress.figures if "ffn" in name or name.startswith("kept")} - {
        "importance_ffn-enc",
        "importance_ffn-dec",
    } == names
    if group is not None:
        counts = layout.by_kind()
        assert progress.figures["kept_heads"] == counts["heads"][0]
        assert progress.figures["kept_ffn"] == counts["neuron groups"][0]
        assert progress.figures["kept_heads"] + progress.figures["kept_ffn"] == 9
