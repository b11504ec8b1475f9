"""Dense checkpoints of stock fairseq of every age, and averages."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from commands import AVERAGE, HYDRA, QUIET, assert_refused, budget, generate, heads_in, load, prune, run, train
from hydra_config import write_config
from models import not_on_0_12_2

FULL = "enc:11.11/dec:11.11/cross:11.11"
LAYOUT = "enc:10.01/dec:11.00/cross:01.00"


def published(dense: Path, target: Path) -> Path:
    """The checkpoint as fairseq's first versions saved it: `args`, fused projections, half precision, few extras."""
    state = load(dense)
    cfg = state["cfg"]
    options = {**vars(cfg["model"]), "task": "translation", "source_lang": "aa", "target_lang": "bb"}
    for name in ("_name", "checkpoint_activations", "offload_activations", "quant_noise_pq", "layernorm_embedding"):
        options.pop(name, None)
    options.update(arch="transformer_tiny", criterion="label_smoothed_cross_entropy", data="nowhere")
    model = {}
    for name, value in state["model"].items():
        stem, _, kind = name.rpartition("_proj.")
        if stem.endswith(("q", "k", "v")):
            if stem.endswith("q"):
                parts = [state["model"][f"{stem[:-1]}{letter}_proj.{kind}"] for letter in "qkv"]
                model[f"{stem[:-1]}in_proj_{kind}"] = torch.cat(parts).half()
        else:
            model[name] = value.half()
    model["encoder.version"] = model["decoder.version"] = torch.tensor([3.0])
    history = [
        {"criterion_name": "LabelSmoothedCrossEntropyCriterion", "optimizer_name": "FairseqAdam", "num_updates": 9}
    ]
    history[0] |= {"lr_scheduler_state": {"best": None}, "best_loss": 4.5}
    old = {"args": argparse.Namespace(**options), "model": model, "optimizer_history": history}
    torch.save({**old, "extra_state": {"epoch": 6, "batch_offset": 0, "val_loss": 4.5}}, target)
    return target


def test_a_stock_checkpoint_keeps_its_translations_when_it_keeps_all_its_heads(dense: Path, data: Path, tmp_path: Path):
    prune(dense, tmp_path / "all.pt", "--layout", FULL)
    stock, ours = (generate(data, path, folder=tmp_path) for path in (dense, tmp_path / "all.pt"))
    assert stock.hypotheses() == ours.hypotheses()
    assert stock.scores() == pytest.approx(ours.scores(), abs=1e-4)


def test_a_published_checkpoint_of_the_first_versions_is_pruned(dense: Path, data: Path, tmp_path: Path):
    old = published(dense, tmp_path / "old.pt")
    prune(old, tmp_path / "all.pt", "--layout", FULL)
    assert load(tmp_path / "all.pt")["model"]["encoder.layers.0.fc1.weight"].dtype == torch.float16
    stock, ours = (generate(data, path, folder=tmp_path) for path in (dense, tmp_path / "all.pt"))
    assert stock.scores() == pytest.approx(ours.scores(), abs=0.05)
    prune(old, tmp_path / "some.pt", "--layout", LAYOUT)
    assert heads_in(tmp_path / "some.pt") == 5
    prune(dense, tmp_path / "new.pt", "--layout", LAYOUT)
    one, other = (generate(data, tmp_path / f"{name}.pt", folder=tmp_path) for name in ("some", "new"))
    assert one.scores() == pytest.approx(other.scores(), abs=0.05)


def test_a_published_checkpoint_is_the_start_of_a_pipelined_run(dense: Path, data: Path, tmp_path: Path):
    old = published(dense, tmp_path / "old.pt")
    train(
        data,
        tmp_path / "save",
        *QUIET,
        *budget(4, cooldown=2),
        "--pipelined",
        "--finetune-from-model",
        old,
        "--max-update",
        3,
    )
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "out.pt")
    assert heads_in(tmp_path / "out.pt") == 4


def test_the_second_copies_of_fairseq_0_12_2_are_dropped(dense: Path, tmp_path: Path):
    state = load(dense)
    for name in ("in_proj_weight", "out_proj_weight", "fc1_weight", "fc1_bias"):
        state["model"][f"encoder.layers.0.{name}"] = torch.zeros(3)
    torch.save(state, tmp_path / "in.pt")
    prune(tmp_path / "in.pt", tmp_path / "out.pt", "--layout", LAYOUT)
    assert "encoder.layers.0.fc1_weight" not in load(tmp_path / "out.pt")["model"]
    assert heads_in(tmp_path / "out.pt") == 5


@not_on_0_12_2
def test_a_dense_checkpoint_trained_by_hydra_is_pruned(data: Path, tmp_path: Path):
    arguments = write_config(tmp_path, data, tmp_path / "save", stock=True, max_update=3)
    done = run(HYDRA, *arguments, folder=tmp_path)
    assert done.code == 0, done.err[-3000:]
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "out.pt", "--layout", LAYOUT)
    assert heads_in(tmp_path / "out.pt") == 5
    assert len(generate(data, tmp_path / "out.pt", folder=tmp_path).hypotheses()) == 37


@pytest.fixture(scope="module")
def epochs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of updates 4 to 6, after a cooldown of 3."""
    save = tmp_path_factory.mktemp("epochs") / "save"
    train(data, save, *QUIET, *budget(5, cooldown=3), "--save-interval-updates", 1, "--max-update", 6)
    return save


def average(target: Path, *paths: Path, extra: tuple = ()):
    return run(AVERAGE, target, *paths, *extra, folder=target.parent)


def test_averaging_gives_the_mean_and_the_result_is_rewritten(epochs: Path, data: Path, tmp_path: Path):
    paths = [epochs / f"checkpoint_1_{update}.pt" for update in (4, 5, 6)]
    done = average(tmp_path / "mean.pt", *paths)
    assert done.code == 0, done.err
    name = "encoder.layers.1.fc2.weight"
    mean = sum(load(path)["model"][name].double() for path in paths) / 3
    assert torch.allclose(load(tmp_path / "mean.pt")["model"][name].double(), mean, atol=1e-7)
    assert "last_optimizer_state" not in load(tmp_path / "mean.pt")
    prune(tmp_path / "mean.pt", tmp_path / "out.pt")
    masked, small = (generate(data, tmp_path / f"{name}.pt", folder=tmp_path) for name in ("mean", "out"))
    assert masked.hypotheses() == small.hypotheses()
    assert_refused(average(tmp_path / "mean.pt", *paths), "`--force`")


def test_rewritten_checkpoints_of_one_layout_are_averaged(epochs: Path, data: Path, tmp_path: Path):
    for update in (5, 6):
        prune(epochs / f"checkpoint_1_{update}.pt", tmp_path / f"{update}.pt")
    done = average(tmp_path / "mean.pt", tmp_path / "5.pt", tmp_path / "6.pt")
    assert done.code == 0, done.err
    assert heads_in(tmp_path / "mean.pt") == 5
    assert len(generate(data, tmp_path / "mean.pt", folder=tmp_path).hypotheses()) == 37


def test_averaging_refuses_other_heads_other_models_and_missing_files(
    dense: Path, epochs: Path, pruned: Path, tmp_path: Path
):
    layouts = (LAYOUT, "enc:01.01/dec:11.00/cross:01.00")
    for number, layout in enumerate(layouts):
        prune(dense, tmp_path / f"{number}.pt", "--layout", layout)
    done = average(tmp_path / "mean.pt", tmp_path / "0.pt", tmp_path / "1.pt")
    assert_refused(done, "keep the same heads", *layouts)
    assert_refused(average(tmp_path / "mean.pt", pruned, epochs / "checkpoint_last.pt"), "of one model")
    assert_refused(average(tmp_path / "mean.pt", dense, tmp_path / "none.pt"), "none.pt")
    assert not (tmp_path / "mean.pt").exists()


def test_averaging_refuses_models_that_compute_something_else_with_weights_of_the_same_shapes(
    dense: Path, tmp_path: Path
):
    state = torch.load(dense, weights_only=False)
    state["cfg"]["model"].activation_fn, state["cfg"]["model"].no_scale_embedding = "gelu", True
    state["cfg"]["model"].cross_self_attention = True
    torch.save(state, tmp_path / "other.pt")
    done = average(tmp_path / "mean.pt", dense, tmp_path / "other.pt")
    assert_refused(
        done,
        "`--activation-fn` gelu",
        "relu",
        "`--no-scale-embedding` True",
        "`--cross-self-attention` True",
        reasons=3,
    )
    assert not (tmp_path / "mean.pt").exists()


def test_averaging_refuses_models_of_another_pair_whose_dictionaries_are_as_large(dense: Path, tmp_path: Path):
    state = torch.load(dense, weights_only=False)
    task = state["cfg"]["task"]
    for name, pair in {"one": ("qar", "qte"), "turned": ("qte", "qar"), "open": (None, None)}.items():
        task["source_lang"], task["target_lang"] = pair
        torch.save(state, tmp_path / f"{name}.pt")
    one, turned, silent = (tmp_path / f"{name}.pt" for name in ("one", "turned", "open"))
    done = average(tmp_path / "mean.pt", silent, one, turned)
    assert_refused(done, "translate one language pair", f"{turned} translates qte-qar", f"{one} qar-qte", reasons=1)
    assert average(tmp_path / "mean.pt", silent, one).code == 0


def test_gated_checkpoints_whose_choices_differ_are_not_averaged(epochs: Path, tmp_path: Path):
    state = load(epochs / "checkpoint_last.pt")
    gates = state["model"]["head_gates.fixed_mask"]
    state["model"]["head_gates.fixed_mask"] = 1 - gates if gates.sum() == 6 else gates.roll(1)
    state["model"]["head_gates.importance"] = -state["model"]["head_gates.importance"]
    torch.save(state, tmp_path / "other.pt")
    done = average(tmp_path / "mean.pt", epochs / "checkpoint_last.pt", tmp_path / "other.pt")
    assert_refused(done, "keep the same heads")
