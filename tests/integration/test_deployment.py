"""Rewritten models as others deploy them: TorchScript of the model and of the generator, int8 weights by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import prune_to_each
from fairseq import checkpoint_utils
from fairseq.sequence_generator import SequenceGenerator
from torch import nn

from fairseq_dsp.modules.attention import PrunableAttention

LAYOUTS = {
    "uneven": "enc:10.00/dec:11.01/cross:00.10",
    "no cross": "enc:11.11/dec:11.11/cross:00.00",
    "nothing": "enc:00.00/dec:00.00/cross:00.00",
    "uneven neurons": "enc:10.00/dec:11.01/cross:00.10/ffn-enc:0110.0000/ffn-dec:1111.1000",
}


@pytest.fixture(scope="module")
def small(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The dense checkpoint rewritten to each of the layouts."""
    return prune_to_each(dense, LAYOUTS, tmp_path_factory.mktemp("small"))


def loaded(path: Path, data: Path) -> tuple[Any, Any]:
    """Model and task as fairseq-generate loads them."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data)})
    if hasattr(model, "bake"):  # what fairseq-generate would have it do; a no-op where nothing is gated
        model.bake()
    return model.eval(), task


def sources() -> dict[str, torch.Tensor]:
    """Three sentences of 7, 5 and 2 words, padded on the left as fairseq pads them: [3, 8]."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([8, 6, 3])
    tokens = torch.randint(4, 14, (3, 8), generator=generator)
    tokens[:, -1] = 2
    tokens[torch.arange(8) < 8 - lengths[:, None]] = 1
    return {"src_tokens": tokens, "src_lengths": lengths}


def found(generator: Any) -> list[list[tuple[list[int], float]]]:
    """Hypotheses of every sentence: their words and scores."""
    done = generator({"net_input": sources()})
    return [[(one["tokens"].tolist(), float(one["score"])) for one in sentence] for sentence in done]


def assert_same_hypotheses(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    assert [[words for words, _ in sentence] for sentence in ours] == [[w for w, _ in sentence] for sentence in theirs]
    scores = [[score for sentence in part for _, score in sentence] for part in (ours, theirs)]
    assert scores[0] == pytest.approx(scores[1], abs=tolerance)


@pytest.mark.parametrize("name", ["stock", "not rewritten", *LAYOUTS])
def test_the_generator_is_scripted_saved_and_finds_the_same(name, small, dense, trained, data, tmp_path: Path):
    model, task = loaded({"stock": dense, "not rewritten": trained, **small}[name], data)
    generator = SequenceGenerator([model], task.target_dictionary, beam_size=3, max_len_b=12)
    torch.jit.script(generator).save(tmp_path / "generator.pt")
    scripted = torch.jit.load(tmp_path / "generator.pt")
    assert_same_hypotheses(found(scripted), found(generator))


def test_a_scripted_ensemble_of_different_layouts_finds_the_same(small, data: Path):
    models, tasks = zip(*(loaded(small[name], data) for name in ("uneven", "no cross")), strict=True)
    generator = SequenceGenerator(list(models), tasks[0].target_dictionary, beam_size=3, max_len_b=12)
    assert_same_hypotheses(found(torch.jit.script(generator)), found(generator))


def assert_empty_networks_add_their_bias(model: nn.Module, quantised: nn.Module) -> None:
    """Torch's own int8 map of no inputs returns memory as it finds it, so the memory that is free is made NaN."""
    for name, layer in model.named_modules():
        if hasattr(layer, "fc2") and layer.fc2.in_features == 0:
            for _ in range(10):
                freed = [torch.full((3, 5, layer.fc2.out_features), float("nan")) for _ in range(4)]
                del freed
                added = quantised.get_submodule(name).fc2(torch.zeros(3, 5, 0))
                torch.testing.assert_close(added, layer.fc2.bias.expand(3, 5, -1), rtol=0, atol=0)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_int8_weights_of_torch_still_translate(name: str, small, data: Path):
    model, task = loaded(small[name], data)
    settings = {"beam_size": 3, "max_len_b": 12}
    plain = found(SequenceGenerator([model], task.target_dictionary, **settings))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    attentions = [module for module in quantised.modules() if isinstance(module, PrunableAttention)]
    assert len(attentions) == 6
    assert not any(isinstance(attention.q_proj, nn.Linear) for attention in attentions if attention.num_heads)
    assert_empty_networks_add_their_bias(model, quantised)
    coarse = found(SequenceGenerator([quantised], task.target_dictionary, **settings))
    best = [[sentence[0][1] for sentence in part] for part in (plain, coarse)]
    assert best[0] == pytest.approx(best[1], abs=0.1)
    assert best[0] != best[1]  # or nothing was quantised
