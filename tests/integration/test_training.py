"""fairseq's own options of training go on working, and validation sees what will be deployed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import GENERATE, PLUGIN, QUIET, budget, different, generate, heads_in, load, prune, run, train

ALL_DATA = ["--batch-size", 200, "--dropout", 0]  # one update an epoch
HALF = ["--memory-efficient-fp16"], ["--bf16"], ["--memory-efficient-bf16"]


def model_of(path: Path) -> dict[str, torch.Tensor]:
    return load(path)["model"]


def assert_close(one: dict, other: dict, tolerance: float = 2e-4) -> None:
    """Equal up to rounding. Adam blows rounding up where a gradient is 0 by nature: the bias of keys."""
    for name, value in one.items():
        if not name.endswith("k_proj.bias"):
            assert (value - other[name]).abs().max() < tolerance, name


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five updates over all data at once."""
    save = tmp_path_factory.mktemp("plain") / "save"
    train(data, save, *QUIET, *budget(5, cooldown=3), *ALL_DATA, "--max-update", 5)
    return save / "checkpoint_last.pt"


def test_an_update_of_several_micro_batches_draws_one_mask(plain: Path, data: Path, tmp_path: Path):
    extra = [*ALL_DATA, "--batch-size", 100, "--update-freq", 2, "--max-update", 5]
    train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=3), *extra)
    assert_close(model_of(tmp_path / "save/checkpoint_last.pt"), model_of(plain))


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_recomputed_activations_train_to_the_same_model(dropout: float, data: Path, tmp_path: Path):
    extra = [*QUIET, *budget(5, cooldown=3), "--dropout", dropout, "--max-update", 5]
    train(data, tmp_path / "plain", *extra)
    train(data, tmp_path / "again", *extra, "--checkpoint-activations")
    ends = [model_of(tmp_path / f"{name}/checkpoint_last.pt") for name in ("plain", "again")]
    assert_close(*ends)


def test_recomputed_activations_with_layer_drop_train(data: Path, tmp_path: Path):
    extra = ["--checkpoint-activations", "--encoder-layerdrop", 0.5, "--decoder-layerdrop", 0.5, "--max-update", 4]
    train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=2), *extra)
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5


@pytest.mark.parametrize("flags", HALF, ids=lambda flags: flags[0])
def test_half_precision_trains_and_importance_stays_float32(flags: list[str], data: Path, tmp_path: Path):
    done = train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=4), *flags, "--max-update", 12)
    model = model_of(tmp_path / "save/checkpoint_last.pt")
    # fairseq saves everything as float32: what has been rounded to half precision tells by its digits
    half = torch.float16 if flags[0] == "--memory-efficient-fp16" else torch.bfloat16
    weight, importance = model["encoder.layers.0.fc1.weight"], model["head_gates.importance"]
    assert weight.to(half).float().equal(weight)
    assert importance.isfinite().all()
    assert not importance.half().float().equal(importance)
    assert not importance.bfloat16().float().equal(importance)
    losses = done.logged("loss")
    assert len(losses) >= 8
    assert losses[-1] < losses[0]
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5


def test_automatic_mixed_precision_changes_nothing_on_a_cpu(plain: Path, data: Path, tmp_path: Path):
    """fairseq casts for CUDA alone: weights and all that they are computed of stay float32."""
    train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=3), *ALL_DATA, "--amp", "--max-update", 5)
    state = load(tmp_path / "save/checkpoint_last.pt")
    assert state["cfg"]["common"]["amp"] is True
    assert different(state["model"], model_of(plain)) == []
    for name in ("encoder.layers.0.fc1.weight", "head_gates.importance"):
        value = state["model"][name]
        assert value.dtype == torch.float32
        assert not value.half().float().equal(value)
        assert not value.bfloat16().float().equal(value)


@pytest.mark.parametrize("flags", HALF, ids=lambda flags: flags[0])
def test_half_precision_moves_the_importance_as_float32_does(flags: list[str], data: Path, tmp_path: Path):
    # the steps of Adam are as large for the small gradients of the projection, whose signs rounding may turn
    schedule = [*QUIET, *budget(5, cooldown=100), "--recipe", "paper", "--max-update", 2]
    schedule += ["--dropout", 0, "--fp16-init-scale", 4]
    for name, extra in (("single", []), ("half", flags)):
        train(data, tmp_path / name, *schedule, *extra)
    single, half = (model_of(tmp_path / f"{name}/checkpoint_last.pt") for name in ("single", "half"))
    assert (single["head_gates.importance"] - half["head_gates.importance"]).abs().max() < 0.1


def test_weight_decay_does_not_touch_the_importance(data: Path, tmp_path: Path):
    schedule = [*QUIET, *budget(5, cooldown=0), "--max-update", 4]
    for decay in (0, 0.5):
        train(data, tmp_path / str(decay), *schedule, "--weight-decay", decay)
    ends = [model_of(tmp_path / f"{decay}/checkpoint_last.pt") for decay in (0, 0.5)]
    assert ends[0]["head_gates.importance"].equal(ends[1]["head_gates.importance"])
    assert not ends[0]["encoder.layers.0.fc1.weight"].equal(ends[1]["encoder.layers.0.fc1.weight"])


def test_gradient_norms_are_logged_apart_and_clipped_apart(data: Path, tmp_path: Path):
    schedule = [*QUIET, *budget(5, cooldown=20), "--max-update", 6]
    done = train(data, tmp_path / "save", *schedule, "--clip-norm", 0.001)
    assert len(done.logged("gnorm")) >= 5
    assert len(done.logged("importance_gnorm")) >= 5
    assert done.logged("gnorm") != done.logged("importance_gnorm")


AVERAGED = ["--store-ema", "--ema-decay", 0.75, "--save-interval-updates", 1]


def averages(folder: Path, update: int) -> dict[str, torch.Tensor]:
    """Those in the checkpoint after so many updates, in the first epoch."""
    return load(folder / f"checkpoint_1_{update}.pt")["extra_state"]["ema"]


@pytest.fixture(scope="module")
def averaged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five updates, each with its checkpoint, with the averages of all so far."""
    save = tmp_path_factory.mktemp("averaged") / "save"
    train(data, save, *QUIET, *budget(5, cooldown=3), *AVERAGED, "--max-update", 5)
    return save


def test_a_moving_average_is_kept_beside_the_model(averaged: Path):
    """average <- d average + (1 - d) weights, from the first update's weights on, for the importance too.

    fairseq does it for every name in the state, and so twice where the decoder's embeddings have two.
    """
    first = different(averages(averaged, 1), model_of(averaged / "checkpoint_1_1.pt"))
    assert set(first) <= {".encoder.version", ".decoder.version"}  # which fairseq does not average
    for update in range(2, 6):
        before, after = averages(averaged, update - 1), averages(averaged, update)
        model = model_of(averaged / f"checkpoint_1_{update}.pt")
        assert after.keys() == model.keys()
        for name in model.keys() - {"encoder.version", "decoder.version"}:
            shared = name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
            decay = 0.75**2 if shared else 0.75
            by_hand = decay * before[name].double() + (1 - decay) * model[name].double()
            torch.testing.assert_close(after[name].double(), by_hand, rtol=1e-6, atol=1e-7, equal_nan=True)
        assert not after["head_gates.importance"].equal(model["head_gates.importance"])


def test_a_moving_average_goes_on_where_a_resumed_run_left_it_and_is_dropped_by_rewriting(
    averaged: Path, data: Path, tmp_path: Path
):
    for last in (3, 5):
        train(data, tmp_path / "parts", *QUIET, *budget(5, cooldown=3), *AVERAGED, "--max-update", last)
    assert different(averages(tmp_path / "parts", 5), averages(averaged, 5)) == []
    prune(tmp_path / "parts/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert not [name for name in load(tmp_path / "pruned.pt")["extra_state"] if "ema" in name]


@pytest.mark.parametrize(("limit", "value"), [("--max-update", 6), ("--max-epoch", 1)])
def test_a_cooldown_that_cannot_be_reached_is_a_warning_at_the_start(limit, value, data: Path, tmp_path: Path):
    done = train(data, tmp_path / "late", *QUIET, *budget(5, cooldown=8), limit, value)
    warnings = [line for line in done.out.splitlines() if line.startswith("WARNING") and "cooldown" in line]
    assert len(warnings) == 1
    assert f"`{limit}` {value}" in warnings[0]
    assert done.out.index(warnings[0]) < done.out.index("train_inner")
    done = train(data, tmp_path / "early", *QUIET, *budget(5, cooldown=4), limit, value)
    assert "`--cooldown-updates`" not in done.out


def test_validation_bleu_is_that_of_the_heads_that_will_be_deployed(data: Path, tmp_path: Path):
    """In the middle of annealing, when training still uses soft and noisy gates."""
    bleu = ["--eval-bleu", "--eval-tokenized-bleu", "--eval-bleu-args", '{"beam": 3, "max_len_b": 15}']
    bleu += ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric", "--initial-temperature", 1]
    schedule = [*budget(3, cooldown=1000), "--max-epoch", 20, "--validate-interval", 20, "--batch-size-valid", 37]
    done = train(data, tmp_path / "save", "--no-epoch-checkpoints", *schedule, *bleu)
    best = tmp_path / "save/checkpoint_best.pt"
    (logged,) = done.logged("bleu", "valid")
    assert logged > 1
    assert done.logged("bsz", "valid") == [37]  # 8 does not divide it, and no sentence is lost
    sacrebleu = ["--scoring", "sacrebleu", "--sacrebleu-tokenizer", "none"]
    masked = generate(data, best, *sacrebleu, folder=tmp_path, subset="valid")
    assert float(masked.out.split("BLEU = ")[-1].split()[0]) == pytest.approx(logged, abs=0.02)
    prune(best, tmp_path / "pruned.pt")
    assert generate(data, tmp_path / "pruned.pt", folder=tmp_path, subset="valid").hypotheses() == masked.hypotheses()
    assert load(tmp_path / "pruned.pt")["extra_state"].keys().isdisjoint({"best", "val_loss"})


def test_our_task_generates_every_sentence_without_being_told(trained: Path, data: Path, tmp_path: Path):
    arguments = [data, *PLUGIN, "--task", "translation_dsp", "--path", trained, "--batch-size", 16, "--cpu"]
    done = run(GENERATE, *arguments, "--num-workers", 0, "--max-len-b", 15, folder=tmp_path)
    assert done.code == 0, done.err
    assert sorted(done.hypotheses()) == list(range(37))


def test_no_draw_depends_on_the_number_of_data_workers_or_on_logging(data: Path, tmp_path: Path):
    for name, extra in (("one", []), ("two", ["--num-workers", 1, "--log-interval", 100])):
        train(data, tmp_path / name, *QUIET, *budget(5), "--max-update", 3, *extra)
    ends = [model_of(tmp_path / f"{name}/checkpoint_last.pt") for name in ("one", "two")]
    assert different(*ends) == []
