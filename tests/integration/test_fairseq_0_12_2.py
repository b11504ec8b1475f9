"""A dense checkpoint that stock fairseq 0.12.2 trained is loaded and pruned by whatever fairseq is installed."""

from __future__ import annotations

from pathlib import Path

from commands import heads_in, load, prune

from fairseq_dsp.compat import FUSED_COPIES

DENSE = Path(__file__).resolve().parents[1] / "golden/fairseq-0.12.2/dense.pt"


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


def test_some_of_its_heads_are_kept(tmp_path: Path):
    prune(DENSE, tmp_path / "some.pt", "--layout", "enc:10/dec:00/cross:01")
    assert heads_in(tmp_path / "some.pt") == 2
    before, after = (load(path)["model"] for path in (DENSE, tmp_path / "some.pt"))
    for name, rows in (("encoder.layers.0.self_attn", slice(0, 8)), ("decoder.layers.0.encoder_attn", slice(8, 16))):
        assert after[f"{name}.v_proj.weight"].equal(before[f"{name}.v_proj.weight"][rows])
        assert after[f"{name}.out_proj.weight"].equal(before[f"{name}.out_proj.weight"][:, rows])
