"""What training starts from: a save folder used again, a checkpoint to go on from or to fine-tune, and what does not fit it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import OURS, QUIET, STOCK, Result, assert_refused, budget, heads_in, load, prune, train

UPDATES = 10
FULL = "enc:11.11/dec:11.11/cross:11.11"
HARD_CONCRETE = ["--head-selection", "hard-concrete", "--importance-lr", 0.2]
FIXED = ["--head-selection", "fixed"]


@pytest.fixture(scope="module")
def folder_of(data: Path, tmp_path_factory: pytest.TempPathFactory):
    """Save folders by the options that they were trained with; each is trained once."""
    made: dict[str, Path] = {}

    def of(*options: Any, **parts: Any) -> Path:
        key = str((options, parts))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("trained") / "save"
            train(data, made[key], *QUIET, *options, "--max-update", UPDATES, **parts)
        return made[key]

    return of


@pytest.fixture
def again(data: Path, tmp_path: Path):
    """Trains in a copy of a folder; what was there is untouched unless the training goes on."""

    def run(folder: Path, *options: Any, ok: bool = True, more: int = 4, **parts: Any) -> Result:
        shutil.rmtree(tmp_path / "save", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "save")
        before = (folder / "checkpoint_last.pt").read_bytes()
        done = train(data, tmp_path / "save", *QUIET, *options, "--max-update", UPDATES + more, ok=ok, **parts)
        assert done.code == 0 or (tmp_path / "save/checkpoint_last.pt").read_bytes() == before
        return done

    return run


REUSED = {
    "another K after the cooldown": (budget(5), budget(4), ["`--unpruned-heads` must stay 5", "but is 4"]),
    "another K before it": (budget(5, 90), budget(4, 90), ["`--unpruned-heads` must stay 5", "but is 4"]),
    "a longer cooldown": (budget(5), budget(5, 12), ["`--cooldown-updates` must stay 8", "but is 12"]),
    "no cooldown given": (budget(5), ["--unpruned-heads", 5], ["`--cooldown-updates` must stay 8", "but is not given"]),
    "another method": (budget(5), [*budget(5), "--head-selection", "ste"], ["`--head-selection` must stay dsp", "ste"]),
    "hard concrete's own number, then a budget": (
        [*HARD_CONCRETE, "--unpruned-heads", "auto"], budget(5), ["must stay auto", "must stay hard-concrete"],
    ),
    "another penalty": (
        [*HARD_CONCRETE, "--unpruned-heads", 5, "--l0-penalty", 0.1], [*HARD_CONCRETE, "--unpruned-heads", 5],
        ["`--l0-penalty` must stay 0.1"],
    ),
    "another temperature": (budget(5), [*budget(5), "--final-temperature", 1e-3], ["`--final-temperature` must stay 0.1"]),
    "another relaxation": (
        budget(5), [*budget(5), "--relaxation", "successive-softmax"], ["`--relaxation` must stay projection"],
    ),
    "sampling without end": (budget(5), [*budget(5), "--keep-sampling"], ["`--keep-sampling` must not be given"]),
    "fewer of the heads drawn": (
        [*FIXED, "--unpruned-heads", 5], [*FIXED, "--unpruned-heads", 4], ["`--unpruned-heads` must stay 5"],
    ),
    "heads chosen, then drawn": (budget(5), [*FIXED, "--unpruned-heads", 5], ["`--head-selection` must stay dsp", "fixed"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REUSED)
def test_a_save_folder_used_again_for_something_else_is_refused(name: str, folder_of, again):
    before, after, words = REUSED[name]
    done = again(folder_of(*before), *after, ok=False)
    assert_refused(
        done, *words, "checkpoint_last.pt", "`--save-dir`", reasons=len(words) if "stay auto" in words[0] else 1
    )


def test_a_folder_whose_training_is_over_is_refused_too(folder_of, again):
    done = again(folder_of(*budget(5)), *budget(4), ok=False, more=0)
    assert_refused(done, "`--unpruned-heads` must stay 5")


def test_a_dense_training_s_folder_is_refused_in_one_sentence(folder_of, again):
    done = again(folder_of(stock=True), *budget(5), ok=False)
    assert_refused(done, "`--head-selection` must stay dense (transformer_tiny)", "but is dsp")


def test_naming_the_file_that_the_folder_would_go_on_from_is_no_other_wish(folder_of, data: Path, tmp_path: Path):
    shutil.copytree(folder_of(*budget(5, 90)), tmp_path / "save")
    start = ["--restore-file", tmp_path / "save/../save/checkpoint_last.pt", "--max-update", UPDATES + 2]
    done = train(data, tmp_path / "save", *QUIET, *budget(4, 90), *start, ok=False)
    assert_refused(done, "`--unpruned-heads` must stay 5")


@pytest.mark.parametrize(
    "change",
    [
        [*budget(5), "--initial-temperature", 1, "--relaxation", "projection", "--head-selection", "dsp"],
        [*budget(5, lr=0.1), "--lr", "1e-3", "--dropout", 0.2, "--clip-norm", 1.0],
    ],
    ids=["defaults given by name", "what belongs to no method"],
)
def test_the_same_training_goes_on_in_its_folder(change: list, folder_of, again, tmp_path: Path):
    again(folder_of(*budget(5)), *change)
    assert load(tmp_path / "save/checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == UPDATES + 4
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 5


def test_reset_optimizer_trains_anew_for_what_is_asked_and_says_that_heads_are_chosen_anew(
    folder_of, again, tmp_path: Path
):
    done = again(folder_of(*budget(5)), *budget(4), "--reset-optimizer", "--reset-dataloader")
    assert "the 5 heads that the checkpoint has fixed are chosen anew" in done.out
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 4


def test_reset_optimizer_in_a_folder_without_an_epoch_left_says_what_else_to_reset(folder_of, again):
    done = again(folder_of(*budget(5)), *budget(4), "--reset-optimizer", "--max-epoch", 1, ok=False)
    assert_refused(done, "`--unpruned-heads` must stay 5", "`--reset-dataloader`")


def test_a_checkpoint_that_is_named_goes_on_with_another_schedule_and_says_so(folder_of, data: Path, tmp_path: Path):
    start = folder_of(*budget(5, 90)) / "checkpoint_last.pt"
    extra = [*QUIET, *budget(4, 12), "--restore-file", start]
    done = train(data, tmp_path / "save", *extra, "--max-update", UPDATES + 4)
    assert "trained for `--unpruned-heads` 5 and goes on with 4" in done.out
    assert "trained for `--cooldown-updates` 90 and goes on with 12" in done.out
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 4
    done = train(data, tmp_path / "other", *extra, "--max-update", UPDATES, ok=False)
    assert_refused(done, "must stay 5", "must stay 90", reasons=2)  # nothing would be done


@pytest.mark.parametrize("change", [["--pipelined"], "fixed", "dense"], ids=str)
def test_a_checkpoint_whose_optimizer_moved_other_weights_is_refused(change, folder_of, data: Path, tmp_path: Path):
    options, start = [*budget(5), "--pipelined"], folder_of(*budget(5))
    if change == "fixed":
        options = [*FIXED, "--unpruned-heads", 5]
    elif change == "dense":
        options, start = budget(5), folder_of(stock=True)
    extra = ["--restore-file", start / "checkpoint_last.pt", "--max-update", UPDATES + 1]
    done = train(data, tmp_path / "save", *QUIET, *options, *extra, ok=False)
    assert_refused(done, "must not be given" if change == ["--pipelined"] else "`--head-selection` must stay")


def test_the_optimizer_of_a_dense_training_goes_on_where_no_unit_goes(folder_of, data: Path, tmp_path: Path):
    def go_on(*options: Any, ok: bool = True) -> Result:
        start = ["--restore-file", folder_of(stock=True) / "checkpoint_last.pt", "--max-update", UPDATES + 1]
        stock = {part: STOCK[part] for part in ("criterion", "optimizer")}  # or fairseq does not go on
        return train(data, tmp_path / "save", *QUIET, *options, *start, ok=ok, **stock)

    for options in ([*FIXED, "--budget", "parameters=0.5"], ["--head-layout", "enc:11.11/dec:11.01/cross:11.11"]):
        assert_refused(go_on(*options, ok=False), "`--head-selection` must stay dense (transformer_tiny)")
    assert_refused(go_on(*FIXED, ok=False), "`--unpruned-heads` must be given")  # and nothing of an optimizer
    go_on(
        "--head-layout", folder_of("--head-layout", FULL) / "checkpoint_last.pt"
    )  # its name does not say what it keeps
    assert load(tmp_path / "save/checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == UPDATES + 1


@pytest.mark.parametrize("cooldown", [8, 90], ids=["fixed heads", "heads that are not fixed yet"])
def test_a_checkpoint_without_the_optimizer_s_state_does_not_begin_again_without_a_word(
    cooldown: int, folder_of, again, data: Path, tmp_path: Path
):
    folder = folder_of(*budget(5, cooldown), "--no-save-optimizer-state")
    done = again(folder, *budget(5, cooldown), ok=False)
    assert_refused(done, "optimizer's state", f"{UPDATES} updates", "`--reset-optimizer`", "`--head-layout")
    train(data, tmp_path / "save", *QUIET, *budget(5, 2), "--reset-optimizer", "--max-update", 3)
    assert load(tmp_path / "save/checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 3


def test_without_the_optimizer_s_state_a_folder_is_compared_all_the_same(folder_of, again):
    """Neither needs the number of updates: importance that is added to dense weights, and a method without a schedule."""
    for before, after, parts, words in (
        ([], budget(5), {"stock": True}, "must stay dense"),
        ([*HARD_CONCRETE, "--unpruned-heads", "auto"], [*HARD_CONCRETE, "--unpruned-heads", 5], {}, "must stay auto"),
    ):
        folder = folder_of(*before, "--no-save-optimizer-state", **parts)
        assert_refused(again(folder, *after, ok=False), words)


def test_nor_does_an_average(folder_of, data: Path, tmp_path: Path):
    from commands import AVERAGE, run

    start = folder_of(*budget(5)) / "checkpoint_last.pt"
    assert run(AVERAGE, tmp_path / "mean.pt", start, start, folder=tmp_path).code == 0
    extra = [*budget(5), "--restore-file", tmp_path / "mean.pt", "--max-update", 12]
    assert_refused(train(data, tmp_path / "save", *QUIET, *extra, ok=False), "optimizer's state")
    heads = ["--head-layout", tmp_path / "mean.pt", "--restore-file", tmp_path / "mean.pt", "--max-update", 2]
    train(data, tmp_path / "save", *QUIET, *heads)
    fixed = load(start)["model"]["head_gates.fixed_mask"]
    layout = load(tmp_path / "save/checkpoint_last.pt")["cfg"]["model"].head_layout
    assert [float(mark) for mark in layout if mark in "01"] == fixed.tolist()


COMPUTED = {
    "head counts": (["--encoder-attention-heads", 4, "--decoder-attention-heads", 1], ["encoder", "decoder"]),
    "activation": (["--activation-fn", "gelu"], ["`--activation-fn` must be relu"]),
    "positions": (["--no-token-positional-embeddings"], ["`--no-token-positional-embeddings` must be False"]),
    "learned positions": (["--encoder-learned-pos"], ["`--encoder-learned-pos` must be False"]),
    "norms": (
        ["--encoder-normalize-before", "--decoder-normalize-before", "--no-decoder-final-norm"],
        ["encoder-normalize", "decoder-normalize", "no-decoder-final-norm"],
    ),
    "scale": (["--no-scale-embedding"], ["`--no-scale-embedding` must be False"]),
    "decoder that sees the source itself": (["--cross-self-attention"], ["`--cross-self-attention` must be False"]),
}


OTHER_WAYS = [
    (name, start) for name in ("head counts", "activation") for start in ("--finetune-from-model", "--restore-file")
]


@pytest.mark.parametrize(("name", "start"), [*((name, "pipelined") for name in COMPUTED), *OTHER_WAYS])
def test_weights_of_another_function_are_refused_with_all_that_differs(
    name: str, start: str, dense: Path, data: Path, tmp_path: Path
):
    options, words = COMPUTED[name]
    way = ["--pipelined", "--finetune-from-model"] if start == "pipelined" else [start]
    reset = ["--reset-optimizer"] if start == "--restore-file" else []
    extra = [*budget(5), *way, dense, *reset, *options, "--max-update", 1]
    done = train(data, tmp_path / "save", *QUIET, *extra, ok=False)
    assert_refused(done, *words, str(dense), reasons=len(words))


@pytest.mark.parametrize("start", ["--finetune-from-model", "--restore-file"])
def test_a_pruned_checkpoint_is_compared_where_stock_parts_finetune_it(
    start: str, pruned: Path, data: Path, tmp_path: Path
):
    stock = {name: STOCK[name] for name in ("task", "criterion", "optimizer")}
    extra = ["--head-layout", pruned, start, pruned, "--max-update", 1]
    done = train(data, tmp_path / "save", *QUIET, *extra, "--activation-fn", "gelu", ok=False, **stock)
    assert_refused(done, "`--activation-fn` must be relu", str(pruned))
    assert not list((tmp_path / "save").glob("*.pt"))
    train(data, tmp_path / "save", *QUIET, *extra, **stock)
    assert heads_in(tmp_path / "save/checkpoint_last.pt") == 5


SIZES = {
    "layers": (["--encoder-layers", 3], ["`--encoder-layers` must be 2", "but is 3"]),
    "fewer layers": (["--decoder-layers", 1], ["`--decoder-layers` must be 2", "but is 1"]),
    "ffn": (["--decoder-ffn-embed-dim", 24], ["`--decoder-ffn-embed-dim` must be 16", "but is 24"]),
    "norms": (["--layernorm-embedding"], ["`--layernorm-embedding` must be False"]),
    "what no option of ours explains": (
        ["--decoder-output-dim", 8],
        ["must fit the model's options", "project_out_dim"],
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_state_of_another_size_is_refused_in_a_sentence(name: str, folder_of, again):
    options, words = SIZES[name]
    assert_refused(again(folder_of(*budget(5)), *budget(5), *options, ok=False), *words)


def test_so_is_one_of_another_dictionary(trained: Path, dense: Path, data: Path, tmp_path: Path):
    shutil.copytree(data, tmp_path / "bin")
    with (tmp_path / "bin/dict.bb.txt").open("a") as file:
        file.write("stranger 1\n")
    size = len(load(dense)["model"]["decoder.embed_tokens.weight"])
    for start in (trained, dense):
        extra = [*budget(5), "--finetune-from-model", start, "--max-update", 1]
        done = train(tmp_path / "bin", tmp_path / "save", *QUIET, *extra, ok=False)
        assert_refused(done, f"target dictionary must be {size}", f"but is {size + 1}")


def test_so_are_embeddings_that_are_apart_where_the_model_shares_them(
    folder_of, dense: Path, data: Path, tmp_path: Path
):
    state = load(dense)
    state["model"]["decoder.output_projection.weight"] = state["model"]["decoder.output_projection.weight"] + 1
    torch.save(state, tmp_path / "apart.pt")
    extra = [*budget(5), "--finetune-from-model", tmp_path / "apart.pt", "--max-update", 1]
    done = train(data, tmp_path / "save", *QUIET, *extra, ok=False)
    assert_refused(done, "decoder.embed_tokens.weight and decoder.output_projection.weight", "shared")


def test_so_is_another_family(data: Path, tmp_path: Path):
    shutil.copytree(data, tmp_path / "bin")
    shutil.copy(data / "dict.aa.txt", tmp_path / "bin/dict.bb.txt")  # one dictionary, which BART wants
    parts = {"arch": "bart_base", "stock": True}
    train(tmp_path / "bin", tmp_path / "bart", *QUIET, "--max-update", 1, **parts)
    start = ["--finetune-from-model", tmp_path / "bart/checkpoint_last.pt", "--max-update", 1]
    for extra in (["--head-layout", FULL], budget(5)):
        stock = {name: STOCK[name] for name in ("task", "criterion", "optimizer")} if "--head-layout" in extra else {}
        done = train(tmp_path / "bin", tmp_path / "save", *QUIET, *extra, *start, ok=False, **stock)
        assert done.code == 2
        assert "Traceback" not in done.out + done.err
        assert done.refusals
    assert "`--activation-fn` must be gelu" in done.err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, dense: Path, data: Path, tmp_path: Path):
    state = load(dense)
    state["model"]["encoder.layers.1.fc1.weight"][0, 0] = value
    torch.save(state, tmp_path / "broken.pt")
    stock = {name: STOCK[name] for name in ("task", "criterion", "optimizer")}
    for extra, parts in ((budget(5), OURS), (["--head-layout", FULL], stock)):
        start = ["--finetune-from-model", tmp_path / "broken.pt", "--max-update", 1]
        done = train(data, tmp_path / "save", *QUIET, *extra, *start, ok=False, **parts)
        assert_refused(done, "encoder.layers.1.fc1.weight", "broken.pt")
    (tmp_path / "save").mkdir(exist_ok=True)
    shutil.copy(tmp_path / "broken.pt", tmp_path / "save/checkpoint_last.pt")
    done = train(data, tmp_path / "save", *QUIET, *budget(5), "--reset-optimizer", "--max-update", 1, ok=False)
    assert_refused(done, "encoder.layers.1.fc1.weight")
