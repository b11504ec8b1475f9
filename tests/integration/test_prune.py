"""`fairseq-dsp-prune`: what it takes, what it writes, what it prints and what it refuses."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import re
from pathlib import Path

import pytest
import torch
from commands import PRUNE, QUIET, ROOT, assert_refused, budget, generate, heads_in, load, prune, run, train

from fairseq_dsp.errors import Refusal
from fairseq_dsp.files.checkpoint import read_checkpoint

EXPORT = "fairseq_dsp.cli.export"
importlib.import_module(EXPORT)  # before any fork

FULL = "enc:11.11/dec:11.11/cross:11.11"
LAYOUT = "enc:10.01/dec:11.00/cross:01.00"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changed(path: Path, target: Path, **cfg_model: object) -> Path:
    """A copy of a checkpoint with other values in its cfg.model."""
    state = load(path)
    for name, value in cfg_model.items():
        setattr(state["cfg"]["model"], name, value)
    torch.save(state, target)
    return target


def test_it_prints_a_table_the_grid_and_the_layout(trained: Path, tmp_path: Path):
    out = prune(trained, tmp_path / "out.pt").out
    for words in (
        "encoder self heads",
        "decoder self heads",
        "cross heads",
        "parameters",
        "megabytes",
        "before",
        "after",
    ):
        assert words in out
    grid = [line for line in out.splitlines() if "#" in line or "·" in line]
    assert len(grid) == 6
    assert sum(line.count("#") for line in grid) == 5
    assert sum(line.count("·") for line in grid) == 7
    assert f"layout {load(tmp_path / 'out.pt')['cfg']['model'].head_layout}" in out


def test_the_table_counts_what_a_model_had_that_was_rewritten_before(tmp_path: Path):
    kept = "enc:00.10/dec:00.00/cross:01.01"
    out = prune(ROOT / "tests/golden/rewritten.pt", tmp_path / "out.pt", "--layout", kept).out
    rows = re.findall(r"^│ (encoder self|decoder self|cross|)(?: ?)heads +│ +(\d+) │ +(\d+) │$", out, re.MULTILINE)
    assert rows == [("encoder self", "2", "1"), ("decoder self", "1", "0"), ("cross", "2", "2"), ("", "5", "3")]


def test_the_file_holds_no_training_state_and_no_importance(trained: Path, tmp_path: Path):
    prune(trained, tmp_path / "out.pt")
    state = load(tmp_path / "out.pt")
    assert "last_optimizer_state" not in state
    assert not [name for name in state["model"] if "head_gates" in name or "ema" in name]
    assert set(state["extra_state"]) <= {"train_iterator", "previous_training_time"}
    assert len(state["optimizer_history"]) == 1
    assert os.path.getsize(tmp_path / "out.pt") < os.path.getsize(trained) / 2
    assert state["fairseq_dsp"]["kept"] == 5


@pytest.mark.parametrize("k", [0, 3, 8, 12])
def test_another_budget_than_the_trained_one_can_be_chosen(k: int, trained: Path, tmp_path: Path):
    prune(trained, tmp_path / "out.pt", "--unpruned-heads", k)
    assert heads_in(tmp_path / "out.pt") == k


@pytest.mark.parametrize("k", ["-1", "13", "many"])
def test_a_budget_that_the_model_cannot_have_is_refused(k: str, trained: Path, tmp_path: Path):
    done = prune(trained, tmp_path / "out.pt", f"--unpruned-heads={k}", ok=False)
    assert_refused(done, "`--unpruned-heads`", k)
    assert os.listdir(tmp_path) == []


def test_a_layout_prunes_any_heads_of_a_gated_or_dense_checkpoint(trained: Path, dense: Path, tmp_path: Path):
    for name, source in (("gated.pt", trained), ("dense.pt", dense)):
        prune(source, tmp_path / name, "--layout", LAYOUT)
        assert load(tmp_path / name)["cfg"]["model"].head_layout == LAYOUT
        assert heads_in(tmp_path / name) == 5
        # neither the training nor its seed has chosen these
        assert {"method": "layout", "pipelined": False, "seed": None}.items() <= load(tmp_path / name)[
            "fairseq_dsp"
        ].items()


def test_the_file_says_what_chose_its_heads(trained: Path, tmp_path: Path):
    prune(trained, tmp_path / "out.pt")
    seed = load(trained)["cfg"]["model"].seed
    assert {"method": "dsp", "pipelined": False, "seed": seed}.items() <= load(tmp_path / "out.pt")[
        "fairseq_dsp"
    ].items()


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("enc:1x.11/dec:11.11/cross:11.11", "1x.11"),
        ("enc:11.11/dec:11.11", "enc:11.11/dec:11.11"),
        ("", "''"),
        ("enc:11/dec:11/cross:11", "enc:11/dec:11/cross:11"),
        ("enc:111.11/dec:11.11/cross:11.11", "enc:111.11"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout: str, words: str, trained: Path, tmp_path: Path):
    assert_refused(prune(trained, tmp_path / "out.pt", "--layout", layout, ok=False), "`--layout`", words)
    assert os.listdir(tmp_path) == []


def test_a_layout_and_a_budget_that_contradict_each_other_are_refused(trained: Path, tmp_path: Path):
    done = prune(trained, tmp_path / "out.pt", "--layout", LAYOUT, "--unpruned-heads", 4, ok=False)
    assert_refused(done, "`--unpruned-heads`", "`--layout`", "5", "4")


def test_a_dense_checkpoint_without_a_layout_is_refused(dense: Path, tmp_path: Path):
    for extra in ([], ["--unpruned-heads", 4]):
        done = prune(dense, tmp_path / "out.pt", *extra, ok=False)
        assert_refused(done, "`--layout`", "12", "`--unpruned-heads`", "`--scores`")


def test_an_existing_file_is_overwritten_only_by_force(trained: Path, tmp_path: Path):
    target = tmp_path / "out.pt"
    target.write_text("precious")
    assert_refused(prune(trained, target, ok=False), "`--force`", str(target))
    assert target.read_text() == "precious"
    prune(trained, target, "--force")
    assert heads_in(target) == 5


def test_an_output_in_no_folder_or_that_is_a_folder_is_refused(trained: Path, tmp_path: Path):
    missing = run(PRUNE, trained, tmp_path / "none/out.pt", folder=tmp_path)
    assert_refused(missing, str(tmp_path / "none"))
    (tmp_path / "taken").mkdir()
    assert_refused(prune(trained, tmp_path / "taken", "--force", ok=False), str(tmp_path / "taken"))


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(trained: Path, tmp_path: Path, monkeypatch):
    target = tmp_path / "out.pt"
    target.write_text("precious")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, function, full_disk)
            assert_refused(prune(trained, target, "--force", ok=False), "No space left", str(target))
        assert target.read_text() == "precious"
        assert os.listdir(tmp_path) == ["out.pt"]


def test_a_rewritten_checkpoint_is_not_rewritten_again_without_a_layout(pruned: Path, tmp_path: Path):
    for extra in ([], ["--unpruned-heads", 3]):
        assert_refused(prune(pruned, tmp_path / "out.pt", *extra, ok=False), "rewritten already", "`--layout`")
    layout = load(pruned)["cfg"]["model"].head_layout
    fewer = layout[::-1].replace("1", "0", 2)[::-1]
    prune(pruned, tmp_path / "out.pt", "--layout", fewer)
    assert heads_in(tmp_path / "out.pt") == 3
    more = layout.replace("0", "1", 1)
    assert_refused(prune(pruned, tmp_path / "more.pt", "--layout", more, ok=False), "`--layout`", more)


def test_checkpoints_that_are_missing_cut_short_or_not_fairseq_s_are_refused(trained: Path, tmp_path: Path):
    whole = trained.read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "garbage.pt").write_bytes(b"garbage" * 100)
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"cfg": torch.zeros(2), "model": {}}, tmp_path / "numbers.pt")
    sparse = {"cfg": {"model": {"arch": "transformer"}}, "model": {"weight": torch.eye(2).to_sparse()}}
    torch.save(sparse, tmp_path / "sparse.pt")
    for name in ("missing", "short", "garbage", "empty", "foreign", "list", "numbers", "sparse"):
        path = tmp_path / f"{name}.pt"
        assert_refused(prune(path, tmp_path / "out.pt", "--layout", FULL, ok=False), str(path))
        assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("arch", ["lstm", "fconv", "transformer_align", "bart_large", "multilingual_transformer"])
def test_other_families_are_refused_by_name(arch: str, dense: Path, tmp_path: Path):
    path = changed(dense, tmp_path / "in.pt", _name=arch, arch=arch)
    assert_refused(prune(path, tmp_path / "out.pt", "--layout", FULL, ok=False), arch, str(path))


@pytest.mark.parametrize("arch", [["transformer"], {"transformer": 1}, 7, True])
def test_an_architecture_that_is_no_text_is_refused(arch: object, dense: Path, tmp_path: Path):
    path = changed(dense, tmp_path / "in.pt", _name=arch, arch=arch)
    assert_refused(prune(path, tmp_path / "out.pt", "--layout", FULL, ok=False), "architecture", str(path))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["encoder.layers.0.fc1.weight", "head_gates.importance", "head_gates.fixed_mask"])
def test_weights_and_importance_that_are_no_numbers_are_refused_by_name(name: str, value: str, trained, tmp_path: Path):
    state = load(trained)
    state["model"][name].view(-1)[1] = float(value)
    torch.save(state, tmp_path / "in.pt")
    for arguments in ([], ["--unpruned-heads", 3], ["--layout", LAYOUT]):
        assert_refused(prune(tmp_path / "in.pt", tmp_path / "out.pt", *arguments, ok=False), name, "NaN or infinity")
    assert os.listdir(tmp_path) == ["in.pt"]


def test_a_weight_whose_byte_was_flipped_is_refused(trained: Path, tmp_path: Path):
    state = load(trained)
    wanted = state["model"]["encoder.layers.0.fc1.weight"].numpy().tobytes()
    content = bytearray(trained.read_bytes())
    content[content.index(wanted) + 5] ^= 1  # another number, as finite as before
    (tmp_path / "in.pt").write_bytes(content)
    assert_refused(prune(tmp_path / "in.pt", tmp_path / "out.pt", ok=False), "checksum", str(tmp_path / "in.pt"))


@pytest.mark.parametrize("kind", ["trained", "dense"])
def test_options_that_ask_for_more_than_the_weights_are_refused_before_anything_is_built(kind, request, tmp_path: Path):
    source = request.getfixturevalue(kind)
    path = changed(source, tmp_path / "in.pt", encoder_layers=10**12, max_source_positions=10**12)
    done = prune(path, tmp_path / "out.pt", ok=False)
    assert_refused(done, "`--encoder-layers` must be 2", "`--max-source-positions`", reasons=2)


@pytest.mark.parametrize("kind", ["trained", "dense"])
def test_options_that_are_no_numbers_or_too_large_ones_are_refused_by_name(kind, request, tmp_path: Path):
    source = request.getfixturevalue(kind)
    path = changed(source, tmp_path / "in.pt", attention_dropout={"a": 1.0}, encoder_layerdrop="0.5")
    done = prune(path, tmp_path / "out.pt", ok=False)
    assert_refused(done, "`--attention-dropout` must be a number", "`--encoder-layerdrop`", reasons=2)
    for number in (10**9, "1000000000"):  # fairseq's command line leaves some numbers as text
        path = changed(source, tmp_path / "in.pt", decoder_output_dim=number)
        assert_refused(prune(path, tmp_path / "out.pt", ok=False), "`--decoder-output-dim` must be at most")
    assert os.listdir(tmp_path) == ["in.pt"]


def test_a_history_that_is_none_is_refused(trained: Path, tmp_path: Path):
    state = load(trained)
    state["extra_state"]["train_iterator"] = [[], 3]
    torch.save(state, tmp_path / "in.pt")
    done = run(EXPORT, tmp_path / "in.pt", tmp_path / "out.pt", "--format", "dense", folder=tmp_path)
    assert_refused(done, "options and history must be as fairseq writes them")


@pytest.mark.parametrize("group", ["common", "task", "criterion", "optimizer"])
@pytest.mark.parametrize(("value", "kind"), [([[]] * 3, "list"), (3, "int"), ("text", "str")])
def test_a_group_of_options_that_is_none_is_refused_by_name(group, value, kind, trained: Path, tmp_path: Path):
    state = load(trained)
    state["cfg"][group] = value
    torch.save(state, tmp_path / "in.pt")
    with pytest.raises(Refusal, match=f"`{group}` is no group of options, but of the type {kind}"):
        read_checkpoint(str(tmp_path / "in.pt"))


@pytest.mark.parametrize("value", [torch.ones(2), argparse.Namespace(a=1), {"of": [torch.ones(1)]}])
def test_options_that_hold_no_plain_data_are_refused_by_name(value: object, trained: Path, tmp_path: Path):
    path = changed(trained, tmp_path / "in.pt", dropout=value)
    inside = ".of.0" if isinstance(value, dict) else ""
    for command in (
        prune(path, tmp_path / "out.pt", ok=False),
        run(EXPORT, path, tmp_path / "out.pt", "--format", "dense", folder=tmp_path),
    ):
        assert_refused(command, f"model.dropout{inside}.", "numbers, text that refers to nothing, and containers")
    assert os.listdir(tmp_path) == ["in.pt"]


def test_embeddings_that_training_began_with_are_not_looked_for(trained: Path, tmp_path: Path):
    path = changed(trained, tmp_path / "in.pt", encoder_embed_path="/nowhere/embeddings.txt")
    prune(path, tmp_path / "out.pt")
    assert load(tmp_path / "out.pt")["cfg"]["model"].encoder_embed_path is None


def test_a_layout_in_a_checkpoint_is_never_a_path(trained: Path, tmp_path: Path):
    path = changed(trained, tmp_path / "in.pt", head_layout=str(tmp_path / "in.pt"))  # itself, without end
    assert_refused(prune(path, tmp_path / "out.pt", ok=False), "`--head-layout` must be a layout", "in.pt")


def test_shared_embeddings_stay_shared(corpus: Path, data: Path, tmp_path: Path):
    shared = tmp_path / "data"
    shared.mkdir()
    words = (data / "dict.aa.txt").read_text() + (data / "dict.bb.txt").read_text()
    for name in os.listdir(data):
        (shared / name).write_bytes((data / name).read_bytes())
    for side in ("aa", "bb"):
        (shared / f"dict.{side}.txt").write_text(words)
    extra = ["--share-all-embeddings", "--max-update", 3]
    train(shared, tmp_path / "save", *QUIET, *budget(5, cooldown=2), *extra)
    before = tmp_path / "save/checkpoint_last.pt"
    out = prune(before, tmp_path / "out.pt").out
    model = load(tmp_path / "out.pt")["model"]
    pointers = {value.data_ptr() for name, value in model.items() if "embed_tokens" in name or "projection" in name}
    assert len(pointers) == 1
    counts = next(line for line in out.splitlines() if "parameters" in line).replace(",", "").replace("│", " ").split()
    assert int(counts[-2]) - int(counts[-1]) == 7 * (3 * (16 * 8 + 8) + 8 * 16)
    masked = generate(shared, before, folder=tmp_path)
    assert generate(shared, tmp_path / "out.pt", folder=tmp_path).hypotheses() == masked.hypotheses()


def test_the_input_is_never_touched(trained: Path, tmp_path: Path):
    before = digest(trained)
    prune(trained, tmp_path / "out.pt")
    assert_refused(prune(trained, trained, ok=False), "`--force`")
    assert digest(trained) == before
