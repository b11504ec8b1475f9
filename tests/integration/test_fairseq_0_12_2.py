"""A dense checkpoint that stock fairseq 0.12.2 trained is loaded, pruned and translated by whatever fairseq is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from commands import PREPROCESS, QUIET, ROOT, budget, heads_in, load, prune, run, train

from fairseq_dsp.guards.versions import FUSED_COPIES

sys.path.append(str(ROOT))
from tests.golden.make import translate

GOLDEN = ROOT / "tests/golden"
DENSE = GOLDEN / "fairseq-0.12.2/dense.pt"


def copies(state: dict) -> list[str]:
    return [name for name in state if name.startswith("encoder.layers.0.") and name.split(".")[-1] in FUSED_COPIES]


def test_it_holds_second_copies_of_the_encoder_s_weights():
    assert len(copies(load(DENSE)["model"])) == len(FUSED_COPIES)


def test_all_its_heads_are_kept_unchanged(tmp_path: Path):
    prune(DENSE, tmp_path / "all.pt", "--layout", "enc:11/dec:11/cross:11")
    before, after = (load(path)["model"] for path in (DENSE, tmp_path / "all.pt"))
    assert not copies(after)
    assert heads_in(tmp_path / "all.pt") == 6
    projections = [name for name in before if "_attn." in name or ".fc1." in name or ".fc2." in name]
    assert len(projections) == 3 * 8 + 2 * 4
    assert [name for name in projections if not before[name].equal(after[name])] == []


def test_with_all_its_heads_it_translates_as_0_12_2_did(tmp_path: Path):
    prune(DENSE, tmp_path / "all.pt", "--layout", "enc:11/dec:11/cross:11")
    done = translate(GOLDEN, tmp_path / "all.pt", tmp_path)
    rows = [line.split("\t") for line in (DENSE.parent / "expected.tsv").read_text().splitlines()]
    assert len({text for _, text in rows}) == len(rows) == 12
    assert [text for _, text in sorted(done.hypotheses().items())] == [text for _, text in rows]
    scores = [score for _, score in sorted(done.scores().items())]
    assert scores == pytest.approx([float(score) for score, _ in rows], abs=2e-4)


def test_some_of_its_heads_are_kept(tmp_path: Path):
    prune(DENSE, tmp_path / "some.pt", "--layout", "enc:10/dec:00/cross:01")
    assert heads_in(tmp_path / "some.pt") == 2
    before, after = (load(path)["model"] for path in (DENSE, tmp_path / "some.pt"))
    for name, rows in (("encoder.layers.0.self_attn", slice(0, 8)), ("decoder.layers.0.encoder_attn", slice(8, 16))):
        assert after[f"{name}.v_proj.weight"].equal(before[f"{name}.v_proj.weight"][rows])
        assert after[f"{name}.out_proj.weight"].equal(before[f"{name}.out_proj.weight"][:, rows])


def test_what_it_leaves_uninitialised_is_no_weight(tmp_path: Path):
    """Its sinusoidal positions keep one number of memory that nobody has written to, which may be NaN."""
    state = load(DENSE)
    for side in ("encoder", "decoder"):
        state["model"][f"{side}.embed_positions._float_tensor"].fill_(float("nan"))
    torch.save(state, tmp_path / "dense.pt")
    prune(tmp_path / "dense.pt", tmp_path / "pruned.pt", "--layout", "enc:10/dec:00/cross:01")
    assert [name for name, value in load(tmp_path / "pruned.pt")["model"].items() if value.isnan().any()] == []


def test_its_heads_are_chosen_by_a_pipelined_training(tmp_path: Path):
    """Weights are frozen there, so the checkpoint must arrive in the model whole."""
    text = (GOLDEN / "source.txt").read_text().splitlines()
    for subset in ("train", "valid"):
        (tmp_path / f"{subset}.qar").write_text("\n".join(text) + "\n")
        (tmp_path / f"{subset}.qte").write_text("\n".join(text) + "\n")
    arguments = ["-s", "qar", "-t", "qte", "--destdir", tmp_path / "bin", "--workers", 1]
    arguments += ["--trainpref", tmp_path / "train", "--validpref", tmp_path / "valid"]
    arguments += ["--srcdict", GOLDEN / "dict.qar.txt", "--tgtdict", GOLDEN / "dict.qte.txt"]
    assert run(PREPROCESS, *arguments, folder=tmp_path).code == 0
    shape = [
        word for side in ("encoder", "decoder") for word in (f"--{side}-layers", 1, f"--{side}-attention-heads", 2)
    ]
    options = ["--pipelined", "--finetune-from-model", DENSE, *shape, "--max-update", 4]
    train(tmp_path / "bin", tmp_path / "save", *QUIET, *budget(2, cooldown=2), *options)
    before, after = load(DENSE)["model"], load(tmp_path / "save/checkpoint_last.pt")["model"]
    shared = [name for name in before if name in after and not name.endswith(("version", "_float_tensor"))]
    assert len(shared) > 3 * 8
    assert [name for name in shared if not before[name].equal(after[name])] == []
    prune(tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt")
    assert heads_in(tmp_path / "pruned.pt") == 2
