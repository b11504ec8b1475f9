"""fairseq-hydra-train: the same run, the same refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from commands import (
    HYDRA,
    QUIET,
    ROOT,
    STOCK,
    assert_refused,
    budget,
    different,
    generate,
    heads_in,
    load,
    prune,
    run,
    train,
)
from hydra_config import write_config
from models import not_on_0_12_2

pytestmark = not_on_0_12_2


def hydra(folder: Path, data: Path, *overrides: str, **parts):
    return run(HYDRA, *write_config(folder, data, folder / "save", *overrides, **parts), folder=folder)


@pytest.fixture(scope="module")
def composed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that fairseq-hydra-train has written."""
    folder = tmp_path_factory.mktemp("hydra")
    done = hydra(folder, data)
    assert done.code == 0, done.err[-3000:]
    return folder / "save/checkpoint_last.pt"


def test_hydra_trains_what_the_command_line_trains_bit_for_bit(composed: Path, data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=4), "--max-update", 10)
    states = [load(path) for path in (composed, tmp_path / "save/checkpoint_last.pt")]
    assert different(*(state["model"] for state in states)) == []
    assert different(*(state["last_optimizer_state"] for state in states)) == []


@pytest.mark.parametrize(
    ("model", "optimizer", "words"),
    [
        ({"prune": "sublayers", "budget": "6"}, {}, []),
        ({"prune": "heads,ffn", "budget": "heads=5,ffn=0.5", "ffn_group": 4}, {"importance_lr_of": "ffn=0.05"}, []),
        ({"prune": "ffn", "budget": "2"}, {"importance_lr_of": "heads=0.05"}, ["`--importance-lr-of` must name kinds"]),
        ({"prune": "layers", "budget": "2"}, {}, ["`--prune` must be kinds of units", "layers"]),
    ],
)
def test_kinds_of_units_are_chosen_as_on_the_command_line(model, optimizer, words, data: Path, tmp_path: Path):
    options = [f'+{part}.{name}="{value}"' for part, some in (("model", model), ("optimizer", optimizer)) for name, value in some.items()]  # fmt: skip
    done = hydra(tmp_path / "hydra", data, "~task.unpruned_heads", *options)
    if words:
        assert_refused(done, *words)
        return
    assert done.code == 0, done.err[-3000:]
    same = [word for name, value in (model | optimizer).items() for word in (f"--{name.replace('_', '-')}", value)]
    train(data, tmp_path / "save", *QUIET, *same, *budget(5, cooldown=4)[2:], "--max-update", 10)
    paths = (tmp_path / "hydra/save/checkpoint_last.pt", tmp_path / "save/checkpoint_last.pt")
    assert different(*(load(path)["model"] for path in paths)) == []
    prune(paths[0], tmp_path / "pruned.pt")
    assert generate(data, tmp_path / "pruned.pt", folder=tmp_path).hypotheses()


def test_its_checkpoint_is_rewritten_and_translates_as_before(composed: Path, data: Path, tmp_path: Path):
    prune(composed, tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5
    masked, small = (generate(data, path, folder=tmp_path) for path in (composed, tmp_path / "pruned.pt"))
    assert sorted(small.hypotheses()) == list(range(37))
    assert masked.hypotheses() == small.hypotheses()


def test_hydra_resumes_to_the_same_end(composed: Path, data: Path, tmp_path: Path):
    for updates in (3, 10):
        done = hydra(tmp_path / "run", data, max_update=updates)
        assert done.code == 0, done.err[-3000:]
    assert different(load(tmp_path / "run/save/checkpoint_last.pt")["model"], load(composed)["model"]) == []


def test_a_pruned_checkpoint_is_finetuned_by_hydra(pruned: Path, data: Path, tmp_path: Path):
    extra = [f"+model.head_layout={pruned}", f"checkpoint.finetune_from_model={pruned}", "~task.unpruned_heads"]
    extra += ["~model.cooldown_updates"]
    done = hydra(tmp_path / "run", data, *extra, max_update=2)
    assert done.code == 0, done.err[-3000:]
    assert heads_in(tmp_path / "run/save/checkpoint_last.pt") == 5


TYPOS = ["+model.heads_layout=enc:1", "+model.unpruned_head=3", "+model.head_selecton=ste"]
TYPOS += ["+model.cooldown=5", "+model.encoder_layer=4", "+model.nothing_like_it=1"]


@pytest.mark.parametrize("typo", TYPOS)
def test_an_option_that_nobody_reads_is_refused_and_the_right_one_named(typo: str, data: Path, tmp_path: Path):
    done = hydra(tmp_path / "run", data, typo)
    meant = [] if "nothing" in typo else ["did you mean"]
    assert_refused(done, typo[len("+model.") :].partition("=")[0], "is not an option of dsp_transformer_tiny", *meant)
    assert not list(tmp_path.rglob("*.pt"))


def test_so_is_one_of_a_model_with_given_heads_that_stock_parts_train(data: Path, tmp_path: Path):
    parts = {name: STOCK[name] for name in ("task", "criterion", "optimizer")}
    heads = ["+model.head_layout='enc:10.01/dec:11.00/cross:01.00'", "~model.cooldown_updates"]
    done = hydra(tmp_path / "run", data, *heads, "+model.encoder_layer=4", max_update=1, **parts)
    assert_refused(done, "`encoder_layer` is not an option", "`encoder_layers`")
    assert not list(tmp_path.rglob("*.pt"))
    assert hydra(tmp_path / "run", data, *heads, "+model.scale_fc=true", max_update=1, **parts).code == 0


def test_spectral_norms_in_half_precision_are_refused_though_no_option_of_the_model_says_so(data: Path, tmp_path: Path):
    half = ["common.fp16=true", "common.fp16_no_flatten_grads=true"]
    done = hydra(tmp_path / "run", data, "+model.spectral_norm=fc1", *half, max_update=1)
    assert_refused(done, "`--spectral-norm` must be trained in float32", "float16")
    assert not list(tmp_path.rglob("*.pt"))


def test_a_checkpoint_that_was_trained_with_one_goes_on_working(composed: Path, data: Path, tmp_path: Path):
    state = load(composed)
    state["cfg"]["model"]["encoder_layer"] = 4
    torch.save(state, tmp_path / "old.pt")
    prune(tmp_path / "old.pt", tmp_path / "pruned.pt")
    assert len(generate(data, tmp_path / "old.pt", folder=tmp_path).hypotheses()) == 37


def test_a_save_folder_used_again_for_something_else_is_refused(composed: Path, data: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    shutil.copytree(composed.parent, tmp_path / "run/save")
    done = hydra(tmp_path / "run", data, "task.unpruned_heads=4", "model.cooldown_updates=20", max_update=20)
    assert_refused(done, "`--unpruned-heads` must stay 5", "`--cooldown-updates` must stay 4", reasons=2)


def test_weights_of_another_function_are_refused(dense: Path, data: Path, tmp_path: Path):
    start = f"checkpoint.finetune_from_model={dense}"
    done = hydra(tmp_path / "run", data, start, "+model.activation_fn=gelu", "model.encoder_attention_heads=4")
    assert_refused(done, "`--activation-fn` must be relu", "`--encoder-attention-heads` must be 2", reasons=2)


@pytest.mark.parametrize("part", ["task", "arch", "criterion", "optimizer"])
def test_any_single_stock_part_is_refused(part: str, data: Path, tmp_path: Path):
    done = hydra(tmp_path / "run", data, **{part: STOCK[part]})
    assert done.code == 2, done.out[-2000:] + done.err[-2000:]
    assert "Traceback" not in done.err
    assert done.refusals
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("part", ["task", "arch", "criterion", "optimizer"])
def test_any_single_part_of_ours_among_stock_parts_is_refused(part: str, data: Path, tmp_path: Path):
    from commands import OURS

    done = hydra(tmp_path / "run", data, stock=True, **{part: OURS[part]})
    assert done.code == 2, done.out[-2000:] + done.err[-2000:]
    assert "Traceback" not in done.err
    assert done.refusals
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.unpruned_heads=13", ["`--unpruned-heads`", "13"]),
        ("task.unpruned_heads=few", ["`--unpruned-heads`", "few"]),
        ("~task.unpruned_heads", ["`--unpruned-heads` must be given"]),
        ("+model.scale_heads=true", ["`--scale-heads`"]),
        ("+model.quant_noise_pq=0.1", ["`--quant-noise-pq`", "0.1"]),
        ("+model.pipelined=true", ["`--pipelined`"]),
        ("+model.pipelined=perhaps", ["`--pipelined`", "perhaps"]),
        ("+model.encoder_layers_to_keep='0'", ["`--encoder-layers-to-keep`"]),
        ("model.cooldown_updates=soon", ["`--cooldown-updates`", "soon"]),
        ("distributed_training.ddp_backend=fully_sharded", ["`--ddp-backend`"]),
        ("+model.unpruned_heads=4", ["must agree", "4", "5"]),
    ],
)
def test_bad_values_are_refused_as_on_the_command_line(override: str, words: list, data: Path, tmp_path: Path):
    assert_refused(hydra(tmp_path / "run", data, override), *words)
    assert not list(tmp_path.rglob("*.pt"))


def test_fp16_under_hydra_works_or_says_what_to_add(data: Path, tmp_path: Path):
    done = hydra(tmp_path / "run", data, "common.memory_efficient_fp16=true", "common.fp16=true", max_update=2)
    assert done.code == 0, done.err[-3000:]
    done = hydra(tmp_path / "bf16", data, "common.bf16=true", max_update=2)
    assert done.code == 0, done.err[-3000:]


def test_the_recipe_that_is_shipped_trains_with_a_small_model(data: Path, tmp_path: Path):
    sizes = {f"{side}_{name}": 16 for side in ("encoder", "decoder") for name in ("embed_dim", "ffn_embed_dim")}
    sizes |= {"encoder_layers": 1, "decoder_layers": 1}
    overrides = [f"+model.{name}={size}" for name, size in sizes.items()]
    overrides += [f"task.data={data}", "task.unpruned_heads=5", "task.eval_bleu=false"]
    overrides += ["checkpoint.best_checkpoint_metric=loss", "checkpoint.maximize_best_checkpoint_metric=false"]
    overrides += [f"checkpoint.save_dir={tmp_path / 'save'}", "optimization.max_epoch=1", "common.cpu=true"]
    overrides += [f"common.user_dir={ROOT / 'fairseq_dsp'}", f"hydra.run.dir={tmp_path / 'hydra'}"]
    place = ["--config-dir", str(ROOT / "examples/translation/conf"), "--config-name", "iwslt14_de_en"]
    done = run(HYDRA, *place, *overrides, folder=tmp_path)
    assert done.code == 0, done.err[-3000:]
    prune(tmp_path / "save/checkpoint_best.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt", head_dim=4) == 5
