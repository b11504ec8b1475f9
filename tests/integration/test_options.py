"""fairseq's own options of a transformer go on working: trained, rewritten, and translated the same before and after."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import QUIET, budget, generate, load, prune, train, weights

OPTIONS = {
    "norm first": ["--encoder-normalize-before", "--decoder-normalize-before", "--layernorm-embedding"],
    "learned positions": ["--encoder-learned-pos", "--decoder-learned-pos", "--max-source-positions", 64],
    "no positions": ["--no-token-positional-embeddings", "--no-scale-embedding"],
    "other sizes": ["--decoder-embed-dim", 24, "--decoder-output-dim", 24, "--decoder-attention-heads", 3],
    "dropouts": ["--attention-dropout", 0.2, "--activation-dropout", 0.2, "--activation-fn", "gelu"],
    "deep encoder": ["--encoder-layers", 3, "--decoder-layers", 1, "--encoder-layerdrop", 0.3],
    "more heads": ["--encoder-attention-heads", 4, "--decoder-attention-heads", 8],
    "cross self-attention": ["--cross-self-attention"],
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_an_option_of_fairseq_s_trains_is_rewritten_and_translates(name: str, data: Path, tmp_path: Path):
    train(data, tmp_path / "save", *QUIET, *budget(5, cooldown=3), *OPTIONS[name], "--max-update", 5)
    trained, pruned = tmp_path / "save/checkpoint_last.pt", tmp_path / "pruned.pt"
    prune(trained, pruned)
    assert load(pruned)["cfg"]["model"].head_layout.count("1") == 5
    masked, small = (generate(data, path, folder=tmp_path) for path in (trained, pruned))
    assert sorted(small.hypotheses()) == list(range(37))
    assert small.scores() == pytest.approx(masked.scores(), abs=1e-4)


def test_with_all_heads_it_trains_what_stock_fairseq_trains(data: Path, tmp_path: Path):
    extra = [*QUIET, "--dropout", 0, "--max-update", 8]
    train(data, tmp_path / "ours", *extra, *budget(12, cooldown=4))
    train(data, tmp_path / "stock", *extra, stock=True)
    ours, stock = (weights(tmp_path / f"{name}/checkpoint_last.pt") for name in ("ours", "stock"))
    for name, value in stock.items():
        if not name.endswith("k_proj.bias"):  # its gradient is rounding alone, which Adam blows up
            assert (value - ours[name]).abs().max() < 2e-3, name
