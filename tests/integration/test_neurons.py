"""Checkpoints whose feed-forward networks are pruned too: cut, generated with, averaged, exported, refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    AVERAGE,
    QUIET,
    assert_refused,
    different,
    generate,
    heads_in,
    load,
    prune,
    prune_to_each,
    run,
    train,
)
from fairseq.models import ARCH_MODEL_NAME_REGISTRY
from models import build, model_options

EXPORT = "fairseq_dsp.cli.export"
importlib.import_module(EXPORT)  # before any fork

FULL = "enc:11.11/dec:11.11/cross:11.11"
ALL = f"{FULL}/ffn-enc:1111.1111/ffn-dec:1111.1111"  # groups of 4 of the 16 neurons
UNEVEN = "enc:10.01/dec:11.00/cross:01.01/ffn-enc:1010.0000/ffn-dec:0111.1000"
LAYOUTS = {
    "uneven": UNEVEN,
    "no neurons": f"{FULL}/ffn-enc:0000.0000/ffn-dec:0000.0000",
    "nothing": "enc:00.00/dec:00.00/cross:00.00/ffn-enc:0000.0000/ffn-dec:0000.0000",
    "whole sublayers": "enc:11.00/dec:00.11/cross:11.00/ffn-enc:0000.1111/ffn-dec:1111.0000",
    "single neurons": f"{FULL}/ffn-enc:{'01' * 8}.{'0' * 16}/ffn-dec:{'1' * 16}.{'0' * 15}1",
}


@pytest.fixture(scope="module")
def cut(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`dense`, cut to each of the layouts."""
    return prune_to_each(dense, LAYOUTS, tmp_path_factory.mktemp("neurons"))


def widths(path: Path) -> list[int]:
    state = load(path)["model"]
    return [len(state[f"{side}.layers.{i}.fc1.weight"]) for side in ("encoder", "decoder") for i in (0, 1)]


def changed(path: Path, target: Path, weights: dict[str, Any] | None = None, **options: Any) -> Path:
    """A copy of a rewritten checkpoint with other options of its model, and weights."""
    state = load(path)
    for name, value in options.items():
        setattr(state["cfg"]["model"], name, value)
    state["model"].update(weights or {})
    torch.save(state, target)
    return target


def test_a_dense_checkpoint_is_cut_to_widths_that_differ_by_layer(cut: dict[str, Path]):
    assert widths(cut["uneven"]) == [8, 0, 12, 4]
    assert widths(cut["no neurons"]) == [0, 0, 0, 0]
    assert widths(cut["single neurons"]) == [8, 0, 16, 1]
    assert heads_in(cut["uneven"]) == 6
    state = load(cut["uneven"])
    assert state["fairseq_dsp"]["format"] == 2
    assert state["fairseq_dsp"]["layout"] == state["cfg"]["model"].head_layout == UNEVEN
    assert state["cfg"]["model"].ffn_group == 4
    assert state["model"]["encoder.layers.0.ffn_kept_mask"].tolist() == [1, 0, 1, 0]
    assert load(cut["single neurons"])["cfg"]["model"].ffn_group == 1


def test_the_table_counts_groups_and_shows_no_marks(dense: Path, tmp_path: Path):
    out = prune(dense, tmp_path / "out.pt", "--layout", UNEVEN).out
    for words in ("encoder FFN neuron groups", "decoder FFN neuron groups", "heads", "2/4", "0/4"):
        assert words in out


def test_all_kept_translates_as_the_dense_one(dense: Path, data: Path, tmp_path: Path):
    prune(dense, tmp_path / "all.pt", "--layout", ALL)
    stock, ours = (generate(data, path, folder=tmp_path) for path in (dense, tmp_path / "all.pt"))
    assert stock.hypotheses() == ours.hypotheses()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_file_generates_as_its_dense_fold_does_in_stock_fairseq(name: str, cut, data: Path, tmp_path: Path):
    ours = generate(data, cut[name], folder=tmp_path)
    done = run(EXPORT, cut[name], tmp_path / "dense.pt", "--format", "dense", folder=tmp_path)
    assert done.code == 0, done.err
    folded = load(tmp_path / "dense.pt")
    assert folded["cfg"]["model"]["_name"] == "transformer_tiny"
    wide = {"uneven": [8, 8, 12, 12], "single neurons": [8, 8, 16, 16], "whole sublayers": [16] * 4}.get(
        name, [4, 4, 4, 4]
    )
    assert widths(tmp_path / "dense.pt") == wide
    assert not [each for each in folded["model"] if "kept_mask" in each]
    stock = generate(data, tmp_path / "dense.pt", folder=tmp_path)
    assert ours.hypotheses() == stock.hypotheses()
    assert ours.scores() == pytest.approx(stock.scores(), abs=1e-4)


def test_layouts_that_differ_translate_together(cut: dict[str, Path], dense: Path, data: Path, tmp_path: Path):
    paths = ":".join(str(path) for path in (cut["uneven"], cut["no neurons"], dense))
    assert len(generate(data, paths, folder=tmp_path).hypotheses()) == 37


def test_cutting_again_gives_what_cutting_once_gives(cut: dict[str, Path], dense: Path, tmp_path: Path):
    fewer = "enc:10.00/dec:01.00/cross:01.01/ffn-enc:0010.0000/ffn-dec:0101.0000"
    for name, source in (("once.pt", dense), ("twice.pt", cut["uneven"])):
        prune(source, tmp_path / name, "--layout", fewer)
    assert not different(load(tmp_path / "once.pt")["model"], load(tmp_path / "twice.pt")["model"])
    done = prune(cut["uneven"], tmp_path / "more.pt", "--layout", ALL, ok=False)
    assert_refused(done, "`--layout` must name units that the model has", UNEVEN)


def test_a_model_with_these_units_is_trained_from_the_start(dense: Path, cut, data: Path, tmp_path: Path):
    save = tmp_path / "save"
    start = ["--finetune-from-model", dense, "--head-layout", cut["uneven"]]
    train(
        data,
        save,
        *QUIET,
        *start,
        "--max-update",
        3,
        task="translation",
        criterion="label_smoothed_cross_entropy",
        optimizer="adam",
    )
    state = load(save / "checkpoint_last.pt")
    assert state["cfg"]["model"].head_layout == UNEVEN
    assert widths(save / "checkpoint_last.pt") == [8, 0, 12, 4]
    prune(save / "checkpoint_last.pt", tmp_path / "out.pt")
    assert widths(tmp_path / "out.pt") == [8, 0, 12, 4]


@pytest.mark.parametrize("heads", ["enc:10.01/dec:11.00/cross:01.01", FULL])
def test_a_checkpoint_of_heads_alone_is_the_start_of_one_that_loses_neurons_too(
    heads, dense: Path, cut, data, tmp_path
):
    prune(dense, tmp_path / "heads.pt", "--layout", heads)
    start = [
        "--finetune-from-model",
        tmp_path / "heads.pt",
        "--head-layout",
        cut["uneven"],
        "--max-update",
        1,
        "--lr",
        0,
    ]
    parts = {"task": "translation", "criterion": "label_smoothed_cross_entropy", "optimizer": "adam"}
    done = train(data, tmp_path / "save", *QUIET, *start, ok=heads != FULL, **parts)
    if heads == FULL:  # of which the heads were not asked to go
        assert_refused(done, f"add `--head-layout {FULL}")
    else:
        ours, theirs = load(tmp_path / "save/checkpoint_last.pt")["model"], load(cut["uneven"])["model"]
        assert not different({name: ours[name] for name in theirs}, theirs)


@pytest.mark.parametrize(
    "architecture", [name for name, family in ARCH_MODEL_NAME_REGISTRY.items() if family == "transformer"]
)
def test_stock_checkpoints_of_every_architecture_are_cut(architecture: str, tmp_path: Path):
    sizes = {"embed_dim": 16, "ffn_embed_dim": 16, "attention_heads": 2, "layers": 2}
    options = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    cfg = {"model": model_options(arch=architecture, **options), "task": {"_name": "translation"}}
    model = build(arch=architecture, **options).float()
    torch.save({"args": None, "cfg": cfg, "model": model.state_dict()}, tmp_path / "dense.pt")
    prune(tmp_path / "dense.pt", tmp_path / "small.pt", "--layout", UNEVEN)
    assert widths(tmp_path / "small.pt") == [8, 0, 12, 4]
    done = run(EXPORT, tmp_path / "small.pt", tmp_path / "out.pt", "--format", "dense", folder=tmp_path)
    assert done.code == 0, done.err


class TestAverages:
    def test_of_one_layout_keep_it(self, cut: dict[str, Path], tmp_path: Path):
        done = run(AVERAGE, tmp_path / "mean.pt", cut["uneven"], cut["uneven"], folder=tmp_path)
        assert done.code == 0, done.err
        assert not different(load(tmp_path / "mean.pt")["model"], load(cut["uneven"])["model"])

    def test_of_two_layouts_of_equal_widths_are_refused(self, cut: dict[str, Path], dense: Path, tmp_path: Path):
        other = UNEVEN.replace("ffn-enc:1010", "ffn-enc:0110")
        prune(dense, tmp_path / "other.pt", "--layout", other)
        assert widths(tmp_path / "other.pt") == widths(cut["uneven"])
        done = run(AVERAGE, tmp_path / "mean.pt", cut["uneven"], tmp_path / "other.pt", folder=tmp_path)
        assert_refused(done, "must keep the same", UNEVEN, other)
        assert not (tmp_path / "mean.pt").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("layout", "words"),
        [
            (f"{FULL}/ffn-enc:111.111/ffn-dec:1111.1111", ["must divide the neurons", "[16, 16]", "[3, 3]"]),
            (f"{FULL}/ffn-enc:1111/ffn-dec:1111.1111", ["[4]"]),
            (f"{FULL}/ffn-enc:11.11/ffn-dec:1111.1111", ["must be of one size", "[4, 8]"]),
            (f"{FULL}/ffn-enc:1111.1111", ["enc:…/dec:…/cross:…"]),
            (f"{FULL}/ffn-enc:11-1.1111/ffn-dec:1111.1111", ["11-1"]),
        ],
    )
    def test_of_layouts_that_do_not_fit(self, layout: str, words: list[str], dense: Path, tmp_path: Path):
        assert_refused(prune(dense, tmp_path / "out.pt", "--layout", layout, ok=False), "`--layout`", *words)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"ffn_group": -4}, ["`--ffn-group`", "-4"]),
            ({"ffn_group": None}, ["`--ffn-group`", "None"]),
            ({"ffn_group": 10**12}, ["`--encoder-ffn-embed-dim`", "`--decoder-ffn-embed-dim`"]),
            ({"ffn_group": 8}, ["`--encoder-ffn-embed-dim`"]),
            ({"ffn_group": 10**12, "encoder_ffn_embed_dim": 4 * 10**12}, ["at most 65536"]),
            ({"encoder_ffn_embed_dim": -16}, ["`--encoder-ffn-embed-dim`", "-16"]),
            ({"head_layout": UNEVEN.replace("1010.0000", "1010.1000")}, ["layer 1 in ffn-enc must have 4 neurons"]),
            ({"head_layout": UNEVEN.replace("ffn-enc:1010.0000", "ffn-enc:1010")}, ["2 layers in ffn-enc"]),
            ({"head_layout": UNEVEN.replace("1010.0000", f"x{1 << 20}:1.0000")}, ["`--encoder-ffn-embed-dim`"]),
            ({"head_layout": UNEVEN.replace("1010.0000", f"x{1 << 21}:1.0000")}, ["`--head-layout` must be a layout"]),
        ],
    )
    def test_of_widths_that_are_not_those_of_the_weights_before_anything_is_built(
        self, options, words, cut: dict[str, Path], tmp_path: Path
    ):
        odd = changed(cut["uneven"], tmp_path / "odd.pt", **options)
        for done in (
            prune(odd, tmp_path / "out.pt", "--layout", UNEVEN, ok=False),
            run(EXPORT, odd, tmp_path / "out.pt", "--format", "dense", folder=tmp_path),
        ):
            assert done.code == 2, done.err
            assert "Traceback" not in done.err
            for word in words:
                assert word in done.err
        assert [path.name for path in tmp_path.iterdir()] == ["odd.pt"]

    def test_of_other_neurons_of_equal_widths(self, cut: dict[str, Path], data: Path, tmp_path: Path):
        odd = changed(cut["uneven"], tmp_path / "odd.pt", head_layout=UNEVEN.replace("1010", "0110"))
        done = generate(data, odd, folder=tmp_path, ok=False)
        assert_refused(done, "other units", f"`--head-layout {UNEVEN}`")

    def test_of_options_that_read_the_weights_around_the_gates(self, dense: Path, data: Path, tmp_path: Path):
        layout = ["--head-layout", UNEVEN, "--max-update", 1]
        parts = {"task": "translation", "criterion": "label_smoothed_cross_entropy", "optimizer": "adam"}
        done = train(data, tmp_path / "save", *QUIET, *layout, "--quant-noise-pq", 0.1, ok=False, **parts)
        assert_refused(done, "`--quant-noise-pq`")
        norms = {
            f"decoder.layers.{i}.ffn_layernorm.{kind}": torch.ones(16) for i in (0, 1) for kind in ("weight", "bias")
        }
        scaled = changed(dense, tmp_path / "scaled.pt", norms, scale_fc=True)
        prune(scaled, tmp_path / "heads.pt", "--layout", FULL)
        assert_refused(prune(scaled, tmp_path / "out.pt", "--layout", UNEVEN, ok=False), "scale_fc")

    def test_of_a_group_that_does_not_divide(self, data: Path, tmp_path: Path):
        parts = {"task": "translation", "criterion": "label_smoothed_cross_entropy", "optimizer": "adam"}
        options = ["--head-layout", FULL, "--ffn-group", 3, "--max-update", 1]
        done = train(data, tmp_path / "save", *QUIET, *options, ok=False, **parts)
        assert_refused(done, "`--ffn-group` must divide the 16 neurons", "3")
