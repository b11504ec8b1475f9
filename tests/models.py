"""Small models without data, batches for them, and random layouts. Used by the tests in unit/ and conformance/.

Sizes are odd on purpose: 12 dimensions, 3 heads of 4, an ffn of 14, vocabularies of 11 and 13. Biases are random, because
fairseq starts them at zero, where a lost bias would not show.
"""

from __future__ import annotations

import argparse
from typing import Any

import devices
import fairseq
import pytest
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fairseq_dsp.plugin.building import VocabularyTask
from fairseq_dsp.units.layout import Grid, Layout

# Every example builds or runs a model, so few of them, and the same ones every time.
few_examples = settings(max_examples=8, deadline=None, derandomize=True)
many_examples = settings(max_examples=60, deadline=None, derandomize=True)

# Its stock models stop in generation on today's torch, it trains none of the legacy architectures under hydra, builds no encoder
# without layers, and has other searches.
FAIRSEQ_0_12_2 = fairseq.__version__.startswith("0.12.2")
not_on_0_12_2 = pytest.mark.skipif(FAIRSEQ_0_12_2, reason="stock fairseq 0.12.2 cannot do this: docs/compatibility.md")

WORDS = {"encoder": 11, "decoder": 13}
PAD = 1

_SIZES = {"embed_dim": 12, "attention_heads": 3, "ffn_embed_dim": 14, "layers": 2}
_OPTIONS: dict[str, Any] = {f"{side}_{name}": size for side in WORDS for name, size in _SIZES.items()}
_OPTIONS |= {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "task": "translation_dsp"}


def model_options(**options: Any) -> argparse.Namespace:
    """The cfg of a small model: fairseq's defaults, our sizes, then `options`."""
    args = argparse.Namespace(**{"arch": "dsp_transformer", **_OPTIONS, **options})
    ARCH_CONFIG_REGISTRY[args.arch](args)
    return args


def build(**options: Any) -> Any:
    """A small model in float64 and evaluation mode with random parameters; `arch` may be a stock one."""
    args = model_options(**options)
    words = dict.fromkeys(WORDS, 13) if args.share_all_embeddings else WORDS
    task = VocabularyTask({f"{side}.embed_tokens.weight": torch.empty(n, 0) for side, n in words.items()}, args)
    model = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task).double().eval().to(devices.device())
    randomise(model)
    return model


def build_gated(method: str = "dsp", kept: int | str | None = 7, **options: Any) -> Any:
    """A small model whose heads `method` is choosing."""
    return build(head_selection=method, unpruned_heads=kept, **options)


def build_with(layout: Layout, **options: Any) -> Any:
    """A small model that has the heads of the layout only, from the start."""
    return build(head_layout=str(layout), **options)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Normal values for all parameters, importance and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def sentences(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Three sentence pairs, as `forward` takes them: source (padded), its lengths, previous target words."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(4, 11, (3, 5), generator=generator)
    lengths = torch.tensor([5, 3, 2])
    source[torch.arange(5) >= lengths[:, None]] = PAD
    return source, lengths, torch.randint(4, 11, (3, 4), generator=generator)


def scores(model: Any, seed: int = 0) -> Tensor:
    """The model's output on `sentences`, as in training: [B, T, words]."""
    return model(*sentences(seed))[0]


def scores_as_generated(model: Any, seed: int = 0) -> Tensor:
    """The same as fairseq-generate computes it: encoder and decoder alone, a word at a time, with caches."""
    source, lengths, previous = sentences(seed)
    encoder_out = model.encoder(source, lengths)
    caches: dict[str, Any] = {}
    steps = [
        model.decoder(previous[:, : step + 1], encoder_out=encoder_out, incremental_state=caches)[0]
        for step in range(previous.size(1))
    ]
    return torch.cat(steps, dim=1)


def gradients(model: Any) -> dict[str, Tensor]:
    """Gradients of one update in training mode, by name of the parameter that has one."""
    model.train()
    model.zero_grad()
    output = scores(model)
    # a loss in which every output has a weight of its own
    (output.log_softmax(-1) * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-11) -> None:
    """Equality up to the order of float64 operations."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def assert_recomputing_changes_no_gradient(plain: Any, recomputed: Any, update: int) -> None:
    """A model whose activations are recomputed, once it has the weights of the one beside it, has its gradients at the update too."""
    recomputed.load_state_dict(plain.state_dict())
    for each in (plain, recomputed):
        each.set_num_updates(update)
    ours, theirs = gradients(recomputed), gradients(plain)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_same(ours[name], theirs[name])


counts = st.lists(st.integers(0, 4), max_size=3).map(tuple)
grids = st.builds(Grid.of_heads, counts, counts, counts)


def layouts_of(grid: Grid) -> st.SearchStrategy[Layout]:
    """Any layout of the grid, none and all of its heads included."""
    marks = st.tuples(*[st.booleans()] * grid.total)
    return st.one_of(
        st.just(Layout(grid, (False,) * grid.total)),
        st.just(Layout.full(grid)),
        marks.map(lambda kept: Layout(grid, kept)),
    )
