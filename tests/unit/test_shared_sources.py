"""fairseq's beam search with keys and values kept once a sentence, against the same search with nothing shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.search import LexicallyConstrainedBeamSearch
from fairseq.sequence_generator import SequenceGenerator
from fairseq.token_generation_constraints import pack_constraints
from hypothesis import given
from hypothesis import strategies as st
from models import PAD, WORDS, build_gated, build_with, few_examples

from fairseq_dsp.benchmark.candidates import dictionaries_of
from fairseq_dsp.units.layout import Grid, Layout

FULL = Layout.full(Grid.of_heads((3, 3), (3, 3), (3, 3)))
ALONE = "fairseq_dsp.modules.shared_sources.equal_neighbours", lambda key, mask: 1


def sources(data: st.DataObject) -> dict[str, Any]:
    """Sentences padded on the left, some of them equal."""
    words = st.lists(st.integers(4, WORDS["encoder"] - 1), min_size=1, max_size=5)
    few = data.draw(st.lists(words, min_size=1, max_size=3))
    chosen = data.draw(st.lists(st.sampled_from(few), min_size=1, max_size=5))
    longest = max(map(len, chosen))
    tokens = torch.tensor([[PAD] * (longest - len(one)) + one + [2] for one in chosen])
    return {"net_input": {"src_tokens": tokens, "src_lengths": torch.tensor([len(one) + 1 for one in chosen])}}


def search(models: list[Any], beam: int, **options: Any) -> SequenceGenerator:
    words: Dictionary = dictionaries_of(models[0])[1]
    if options.pop("constrained", False):
        options["search_strategy"] = LexicallyConstrainedBeamSearch(words, "ordered")
    return SequenceGenerator(models, words, beam_size=beam, max_len_a=0, max_len_b=6, **options)


def translations(
    generator: SequenceGenerator, sample: dict[str, Any], **given: Any
) -> list[list[tuple[list[int], float]]]:
    found = generator.generate(generator.model.models, sample, **given)
    return [[(one["tokens"].tolist(), float(one["score"])) for one in sentence] for sentence in found]


def assert_same_translations(found: Any, expected: Any) -> None:
    assert [[words for words, _ in one] for one in found] == [[words for words, _ in one] for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-5)


MODELS = {
    "gated": lambda: [build_gated("dsp", 7)],
    "dense": lambda: [build_with(FULL)],
    "ensemble": lambda: [build_gated("dsp", 5), build_with(FULL)],
}


@pytest.mark.parametrize("kind", MODELS)
@few_examples
@given(data=st.data())
def test_searches_find_the_same(kind, data):
    """Beams of any size, one generator after another over the same models, sentences that end early, given beginnings."""
    models = MODELS[kind]()
    beams = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=3))
    generators = [search(models, beam) for beam in beams]  # all are built before the first runs
    for generator in generators:
        sample, given = sources(data), {}
        if data.draw(st.booleans()):
            sentences = len(sample["net_input"]["src_tokens"])
            begin = data.draw(st.lists(st.integers(4, WORDS["decoder"] - 1), min_size=sentences, max_size=sentences))
            given["prefix_tokens"] = torch.tensor(begin).unsqueeze(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*ALONE)
            expected = translations(generator, sample, **given)
        assert_same_translations(translations(generator, sample, **given), expected)


@few_examples
@given(data=st.data())
def test_constrained_searches_find_the_same(data):
    models = MODELS["gated"]()
    generator, sample = search(models, data.draw(st.integers(2, 4)), constrained=True), sources(data)
    wanted = [[torch.tensor([data.draw(st.integers(4, 8))])] for _ in sample["net_input"]["src_tokens"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*ALONE)
        expected = translations(generator, sample, constraints=pack_constraints(wanted))
    assert_same_translations(translations(generator, sample, constraints=pack_constraints(wanted)), expected)


def test_a_search_computes_them_once_a_sentence(monkeypatch):
    model, rows = build_with(FULL), []
    projection = model.decoder.layers[0].encoder_attn.k_proj
    projection.register_forward_hook(lambda module, given, result: rows.append(result.size(1)))
    tokens = torch.tensor([[4, 5, 2], [6, 7, 2]])
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": torch.tensor([3, 3])}}
    translations(search([model], 5), sample)
    assert rows == [2]
