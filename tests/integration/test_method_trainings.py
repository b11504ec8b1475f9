"""Methods with state of their own through fairseq's commands: from a dense start, in half precision, averaged, rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import AVERAGE, QUIET, assert_refused, budget, generate, heads_in, load, prune, run, train

OWN = {"simple": [], "lagrangian": ["multipliers"], "pass": ["rounds_begun", "doublings"]}
OWN |= {"function-norm": ["mean_norms", "norm_updates"], "site-threshold": ["thresholds"]}
EXPORT = "fairseq_dsp.cli.export"


def options(method: str, cooldown: int, *more: Any) -> list[Any]:
    return [*QUIET, "--head-selection", method, *budget(5, cooldown=cooldown), *more]


@pytest.mark.parametrize("method", OWN)
def test_from_a_dense_start_is_trained_averaged_rewritten_and_translates(
    method: str, dense: Path, data: Path, tmp_path: Path
):
    save = tmp_path / "save"
    flags = options(method, 90, "--finetune-from-model", dense, "--max-update", 4, "--save-interval-updates", 2)
    train(data, save, *flags)
    state = load(save / "checkpoint_last.pt")["model"]
    names = {name for name in state if name.startswith("head_gates.")}
    assert names == {f"head_gates.{name}" for name in ["importance", "fixed_mask", *OWN[method]]}
    ends = [save / "checkpoint_1_2.pt", save / "checkpoint_last.pt"]
    done = run(AVERAGE, tmp_path / "mean.pt", *ends, folder=tmp_path)
    if done.code:  # another choice after two updates more, which may not be averaged
        assert_refused(done, "heads")
    for name, source in {"last": ends[1], "mean": tmp_path / "mean.pt"}.items():
        if source.exists():
            prune(source, tmp_path / f"{name}-small.pt")
            assert heads_in(tmp_path / f"{name}-small.pt") == 5
    assert not [name for name in load(tmp_path / "last-small.pt")["model"] if "gates" in name]
    masked, small = (generate(data, path, folder=tmp_path) for path in (ends[1], tmp_path / "last-small.pt"))
    assert masked.hypotheses() == small.hypotheses()
    done = run(EXPORT, ends[1], tmp_path / "native.pt", "--format", "dense", folder=tmp_path)
    assert done.code == 0, done.err
    assert generate(data, tmp_path / "native.pt", folder=tmp_path).hypotheses() == masked.hypotheses()


@pytest.mark.parametrize("method", ["lagrangian", "pass", "function-norm", "site-threshold"])
@pytest.mark.parametrize("flag", ["--memory-efficient-fp16", "--bf16"])
def test_in_half_precision_state_of_their_own_is_float32_and_survives_a_stop(
    method: str, flag: str, data: Path, tmp_path: Path
):
    flags = options(method, 60, flag, "--max-update")  # a round of two updates
    train(data, tmp_path / "whole", *flags, 7)
    train(data, tmp_path / "parts", *flags, 5)
    train(data, tmp_path / "parts", *flags, 7)
    one, other = (load(tmp_path / f"{name}/checkpoint_last.pt")["model"] for name in ("whole", "parts"))
    own = [f"head_gates.{name}" for name in OWN[method]]
    for name in own:
        assert one[name].dtype == other[name].dtype == torch.float32
        assert one[name].any()
        # fairseq keeps halved weights, so two runs differ a little; what had started anew would differ by half
        torch.testing.assert_close(other[name], one[name], rtol=0.1, atol=0.05)


def test_the_threshold_that_a_budget_of_norms_implies_is_in_the_log(data: Path, tmp_path: Path):
    flags = options("function-norm", 6, "--norm-penalty", 0.3, "--cross-floor", 0, "--max-update", 7)
    done = train(data, tmp_path / "save", *flags)
    state = load(tmp_path / "save/checkpoint_last.pt")["model"]
    kept, norms = state["head_gates.fixed_mask"] == 1, state["head_gates.mean_norms"]
    threshold = done.logged("norm_threshold")[-1]
    assert int(kept.sum()) == 5
    assert threshold == pytest.approx(float(norms[kept].min()), abs=1e-6)
    assert threshold > float(norms[~kept].max()) - 1e-6


def test_a_mean_that_keeps_other_heads_than_its_checkpoints_is_refused(data: Path, tmp_path: Path):
    """The share of a site that is on is no straight line of its threshold."""
    train(data, tmp_path / "save", *options("site-threshold", 90, "--max-update", 1))
    one, other = [-2.5, 3.5, 2.5, 3.0, 0.5, 3.5], [-3.0, -0.5, 0.0, -0.5, -2.0, 0.0]
    for name, thresholds in (("one", one), ("other", other)):
        state = load(tmp_path / "save/checkpoint_last.pt")
        state["model"]["head_gates.importance"].copy_(-torch.arange(12.0))
        state["model"]["head_gates.thresholds"].copy_(torch.tensor(thresholds))
        torch.save(state, tmp_path / f"{name}.pt")
        prune(tmp_path / f"{name}.pt", tmp_path / f"{name}-small.pt")
    kept = [load(tmp_path / f"{name}-small.pt")["fairseq_dsp"]["layout"] for name in ("one", "other")]
    assert kept[0] == kept[1]
    done = run(AVERAGE, tmp_path / "mean.pt", tmp_path / "one.pt", tmp_path / "other.pt", folder=tmp_path)
    assert_refused(
        done, f"the mean of the checkpoints must keep the heads that each of them keeps, {kept[0]}, but keeps "
    )
    assert not (tmp_path / "mean.pt").exists()
    assert run(AVERAGE, tmp_path / "mean.pt", *[tmp_path / "one.pt"] * 2, folder=tmp_path).code == 0


def test_a_checkpoint_that_lost_them_is_refused(data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *options("lagrangian", 90), "--max-update", 2)
    state = load(tmp_path / "save/checkpoint_last.pt")
    del state["model"]["head_gates.multipliers"]
    torch.save(state, tmp_path / "broken.pt")
    assert_refused(prune(tmp_path / "broken.pt", tmp_path / "small.pt", ok=False), "multipliers")
    assert not (tmp_path / "small.pt").exists()
