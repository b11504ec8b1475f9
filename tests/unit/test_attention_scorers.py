"""Scorers that look at attention and at what heads add, against slow loops over sentences, heads, queries and keys."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import PAD, build_with, few_examples
from scored import (
    ALL,
    NETWORK,
    PAIRS,
    SOME,
    UNEVEN,
    batch_of,
    change_places,
    dense,
    sentence_of,
    subject_of,
    subject_over,
    subject_without_model,
)
from torch import Tensor

from fairseq_dsp.checkpoints.batches import words_of
from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.surgery import attentions, shrink_model
from fairseq_dsp.scoring import make_scorer
from fairseq_dsp.scoring.attention_maps import Maps
from fairseq_dsp.scoring.attention_statistics import STATISTICS
from fairseq_dsp.scoring.subject import Words
from fairseq_dsp.units.layout import Grid, Layout, Site

EOS = 2
SCORERS = [("attention-statistics", {"statistic": name}) for name in STATISTICS]
SCORERS += [("function-norm", {"norm": name}) for name in (None, "absolute", "relative")]


def score(name: str, options: dict[str, Any], subject: Any, live: Tensor | None = None) -> Tensor:
    return make_scorer(name, options).score(subject, torch.ones(subject.grid.total) if live is None else live)


def traced(model: Any, sentence: dict[str, Any]) -> dict[Site, dict[str, Any]]:
    """Inputs of every site's attention for one sentence without padding, and the stream, computed by hand."""
    found: dict[Site, dict[str, Any]] = {}
    handles = []
    for site, attention in attentions(model, model.layout.grid):

        def note(module: Any, args: Any, kwargs: Any, site: Site = site) -> None:
            found[site] = {"query": kwargs["query"][:, 0], "key": kwargs["key"][:, 0], "attention": module}

        handles.append(attention.register_forward_pre_hook(note, with_kwargs=True))
    with torch.no_grad():
        model(**sentence["net_input"])
    for handle in handles:
        handle.remove()
    return found


def slow_maps(model: Any, sentence: dict[str, Any]) -> list[tuple[Site, Tensor, Tensor, Any]]:
    """Site, attention map [T, S], context [T, d] and attention of every head, head by head."""
    rows = []
    for site, seen in traced(model, sentence).items():
        attention = seen["attention"]
        d = attention.head_dim
        for head in range(attention.num_heads):
            mine = slice(head * d, (head + 1) * d)
            q, k, v = (
                x @ projection.weight[mine].T + projection.bias[mine]
                for x, projection in (
                    (seen["query"], attention.q_proj), (seen["key"], attention.k_proj), (seen["key"], attention.v_proj),
                )
            )  # fmt: skip
            logits = q @ k.T / math.sqrt(d)
            if site.stack == "dec":
                logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -math.inf)
            weights = logits.softmax(dim=1).detach()
            rows.append((site, weights, (weights @ v).detach(), attention))
    order = model.layout.grid.sites
    return sorted(rows, key=lambda row: order.index(row[0]))


def slow_statistic(name: str, site: Site, weights: Tensor, keys: list[int]) -> tuple[float, int]:
    """Sum over the queries of one sentence and one head, and their number, from the definitions in the docstring."""
    T, S = weights.shape
    total, count = 0.0, 0
    seen = [[s for s in range(S) if site.stack != "dec" or s <= t] for t in range(T)]
    if name == "coverage":
        for s in range(S):
            even = sum(1 / len(seen[t]) for t in range(T) if s in seen[t])
            total += min(sum(float(weights[t, s]) for t in range(T)), even)
        return total, T
    for t in range(T):
        row = [float(weights[t, s]) for s in seen[t]]
        if name == "entropy" and len(row) > 1:
            total += 1 + sum(a * math.log(a) for a in row if a > 0) / math.log(len(row))
            count += 1
        if name == "confidence" and (words := [float(weights[t, s]) for s in seen[t] if keys[s] != EOS]):
            total += max(words)
            count += 1
        if name == "diagonal":
            own = (t + 0.5) * S / T - 0.5
            total += sum(float(weights[t, s]) for s in seen[t] if abs(s - own) <= 1)
            count += 1
    return total, count


def with_ends(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, its sources ended and its previous words begun with the symbol for that, as fairseq does."""
    source, lengths = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]
    for row, length in enumerate(lengths.tolist()):
        source[row, length - 1] = EOS
    batch["net_input"]["prev_output_tokens"][:, 0] = EOS
    return batch


def sentences_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    return [sentence_of(batch, row) for row in range(3)]


def padded_left(batch: dict[str, Any], more: int) -> dict[str, Any]:
    """The same sentences, their sources aligned at the right behind `more` places of padding, as fairseq's own batches are."""
    source, lengths = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]
    moved = torch.full((3, source.size(1) + more), PAD)
    for row, length in enumerate(lengths.tolist()):
        moved[row, moved.size(1) - length :] = source[row, :length]
    return {**batch, "net_input": {**batch["net_input"], "src_tokens": moved}}


class TestStatistics:
    @pytest.mark.parametrize("layout", [ALL, SOME], ids=str)
    @pytest.mark.parametrize("statistic", STATISTICS)
    def test_are_the_means_over_queries_of_their_definitions(self, statistic, layout):
        model = dense(layout)
        batches = [with_ends(batch_of(seed)) for seed in (0, 1)]
        found = score("attention-statistics", {"statistic": statistic}, subject_over(model, batches))
        totals, counts = [0.0] * layout.count, [0] * layout.count
        for sentence in [each for batch in batches for each in sentences_of(batch)]:
            for head, (site, weights, _, _) in enumerate(slow_maps(model, sentence)):
                inputs = sentence["net_input"]
                keys = inputs["prev_output_tokens" if site.stack == "dec" else "src_tokens"][0].tolist()
                total, count = slow_statistic(statistic, site, weights, keys)
                totals[head] += total
                counts[head] += count
        wanted = [total / count for total, count in zip(totals, counts, strict=True)]
        assert found.tolist() == pytest.approx(wanted, rel=1e-9)
        assert len(set(found.tolist())) == layout.count

    @few_examples
    @given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
    def test_lie_from_0_to_1_whatever_the_attention(self, seed, heads, length, keys):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.softmax(
            9 * torch.randn(heads, 2, length, keys, generator=generator, dtype=torch.float64), dim=3
        )
        words = [Words(torch.ones(2, n, dtype=torch.bool), torch.zeros(2, n, dtype=torch.bool)) for n in (length, keys)]
        maps = Maps.of(weights, *words, causal=False)
        for statistic in STATISTICS.values():
            total, count = statistic(maps)
            assert (total >= -1e-9).all()
            assert (total <= count + 1e-9).all()

    def test_of_even_attention_are_those_of_a_head_that_looks_at_nothing(self):
        model = dense()
        with torch.no_grad():
            for _, attention in attentions(model, ALL.grid):
                attention.q_proj.weight.zero_()
                attention.q_proj.bias.zero_()
        subject = subject_of(model)
        assert score("attention-statistics", {"statistic": "entropy"}, subject).tolist() == pytest.approx(
            [0] * 18, abs=1e-9
        )
        assert score("attention-statistics", {"statistic": "coverage"}, subject).tolist() == pytest.approx([1] * 18)


class TestFunctionNorm:
    @pytest.mark.parametrize("norm", ["absolute", "relative"])
    @pytest.mark.parametrize("before", [False, True], ids=["post-norm", "pre-norm"])
    def test_is_the_mean_length_of_what_the_head_adds(self, before, norm):
        model = build_with(SOME, encoder_normalize_before=before, decoder_normalize_before=before)
        subject = subject_of(model)
        streams = slow_streams(model, subject.batches)
        found = score("function-norm", {"norm": norm}, subject)
        totals, positions = [0.0] * SOME.count, [0] * SOME.count
        for number, sentence in enumerate(each for batch in subject.batches for each in sentences_of(batch)):
            spans = {site: span.start for site, span in model.layout.surviving.spans()}
            for site, _, context, attention in slow_maps(model, sentence):
                head = spans[site]
                spans[site] += 1
                place = head - dict(model.layout.surviving.spans())[site].start
                columns = attention.out_proj.weight.detach()[:, place * 4 : place * 4 + 4]
                for t, c in enumerate(context):
                    length = float((columns @ c).norm())
                    length /= float(streams[number][site][t].norm()) if norm == "relative" else 12**0.5
                    totals[head] += length
                    positions[head] += 1
        assert found.tolist() == pytest.approx([a / b for a, b in zip(totals, positions, strict=True)], rel=1e-9)

    def test_is_absolute_where_nothing_is_said(self):
        subject = subject_of(dense())
        assert torch.equal(score("function-norm", {}, subject), score("function-norm", {"norm": "absolute"}, subject))

    def test_of_a_head_that_adds_nothing_is_zero(self):
        model = dense()
        with torch.no_grad():
            model.encoder.layers[1].self_attn.out_proj.weight[:, 4:8] = 0
        found = score("function-norm", {}, subject_of(model))
        assert (found == 0).nonzero().flatten().tolist() == [4]

    def test_of_no_heads_is_empty(self):
        assert score("function-norm", {}, subject_of(dense(Layout(ALL.grid, (False,) * 18)))).tolist() == []

    @pytest.mark.parametrize("norm", ["absolute", "relative"])
    @pytest.mark.parametrize("before", [False, True], ids=["post-norm", "pre-norm"])
    @pytest.mark.parametrize("layout", [PAIRS, UNEVEN], ids=["in groups", "uneven"])
    def test_of_neurons_is_that_of_what_their_group_adds(self, layout, before, norm):
        model = build_with(layout, encoder_normalize_before=before, decoder_normalize_before=before)
        subject = subject_of(model)
        found = score("function-norm", {"norm": norm}, subject)
        streams = slow_streams(model, subject.batches)
        for site, span in layout.surviving.spans():
            if not site.stack.startswith("ffn"):
                continue
            layer = (model.encoder if site.stack == "ffn-enc" else model.decoder).layers[site.layer]
            units = span.stop - span.start
            totals, positions = [0.0] * units, 0
            for stream in (each[site] for each in streams):
                for x in stream:
                    read = layer.final_layer_norm(x) if before else x
                    active = torch.relu(layer.fc1.weight @ read + layer.fc1.bias)
                    for unit in range(units):
                        width = len(active) // units
                        mine = slice(unit * width, (unit + 1) * width)
                        length = float((layer.fc2.weight[:, mine] @ active[mine]).norm().detach())
                        totals[unit] += length / (float(x.norm()) if norm == "relative" else 12**0.5)
                    positions += 1
            assert found[span].tolist() == pytest.approx([total / positions for total in totals], rel=1e-9)


def slow_streams(model: Any, batches: list[dict[str, Any]]) -> list[dict[Site, Tensor]]:
    """The stream [T, C] that every sublayer's output is added to, sentence by sentence, as fairseq's layers add it."""

    def added(found: dict[Site, Tensor], sites: list[Site], original: Any, x: Tensor, stream: Tensor) -> Tensor:
        found[sites.pop(0)] = stream[:, 0].detach()
        return original(x, stream)

    rows = []
    for sentence in [each for batch in batches for each in sentences_of(batch)]:
        found: dict[Site, Tensor] = {}
        with contextlib.ExitStack() as stack, torch.no_grad():
            for side, stacks in ((model.encoder, ["enc", "ffn-enc"]), (model.decoder, ["dec", "cross", "ffn-dec"])):
                for number, layer in enumerate(side.layers):
                    sites = [Site(name, number) for name in stacks]
                    note = partial(added, found, sites, layer.residual_connection)
                    stack.enter_context(mock.patch.object(layer, "residual_connection", note))
            model(**sentence["net_input"])
        rows.append(found)
    return rows


@pytest.mark.parametrize(
    ("name", "options"), [*SCORERS, ("one-shot", {"scorer_model": "scorer.json"})], ids=lambda value: str(value)
)
class TestAll:
    @pytest.fixture(autouse=True)
    def with_a_trained_scorer(self, tmp_path, monkeypatch):
        (tmp_path / "scorer.json").write_text(NETWORK.text())
        monkeypatch.chdir(tmp_path)

    def test_do_not_see_padding_nor_how_sentences_are_put_into_batches(self, name, options):
        model = dense()
        batch = with_ends(batch_of(0))
        found = score(name, options, subject_over(model, [batch]))
        for batches in (sentences_of(batch), [padded_left(batch, 0)], [padded_left(batch, 4)]):
            torch.testing.assert_close(score(name, options, subject_over(model, batches)), found, rtol=1e-9, atol=1e-12)

    def test_follow_the_heads_when_these_change_places(self, name, options):
        model, order = dense(), [2, 0, 1]
        found = score(name, options, subject_of(model))
        change_places(model, order)
        moved = score(name, options, subject_of(model))
        torch.testing.assert_close(moved.view(6, 3), found.view(6, 3)[:, order], rtol=1e-9, atol=1e-12)

    def test_of_what_is_left_are_those_of_the_model_without_the_rest(self, name, options):
        model = dense()
        live = torch.tensor(SOME.kept).double()
        found = score(name, options, subject_of(model), live)
        assert (found[live == 0] == 0).all()
        shrink_model(model, SOME)
        model.layout = SOME
        torch.testing.assert_close(found[live > 0], score(name, options, subject_of(model)), rtol=1e-9, atol=1e-12)

    def test_leave_the_model_as_it_was_and_take_no_gradient(self, name, options):
        model = dense()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        score(name, options, subject_of(model))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert hooked == [m for m in dense().modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_of_what_is_no_attention_are_refused(statistic):
    options = {"statistic": statistic}
    grid = Grid.of_stacks(enc=(2,), dec=(2,), cross=(2,), ffn_enc=(3,), ffn_dec=(3,))
    with pytest.raises(
        Refusal, match="attention-statistics` must be given sites of attention, but encoder FFN is none"
    ):
        score("attention-statistics", options, subject_without_model(grid))
    with pytest.raises(Refusal, match="attention-statistics` must be given a model that has attention heads"):
        score("attention-statistics", options, subject_of(dense(Layout(ALL.grid, (False,) * 18))))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("attention-statistics", {}, "`--statistic` must be one of entropy, .*, but is not given"),
        ("attention-statistics", {"statistic": "variance"}, "`--statistic` must be one of .*, but is variance"),
        ("function-norm", {"norm": "spectral"}, "`--norm` must be absolute or relative, but is spectral"),
    ],
)
def test_what_there_is_none_of_is_refused(name, options, sentence):
    with pytest.raises(Refusal, match=sentence):
        make_scorer(name, options)


@pytest.mark.parametrize("words", [4, 1])
def test_attention_to_two_sentences_at_once_is_refused_by_what_looks_at_it(words, tmp_path):
    model, batch = build_with(ALL, cross_self_attention=True), batch_of()
    batch["net_input"]["prev_output_tokens"] = batch["net_input"]["prev_output_tokens"][:, :words]
    batch["target"] = batch["target"][:, :words]
    (tmp_path / "scorer.json").write_text(NETWORK.text())
    subject = subject_over(model, [batch])
    for name, options in (
        ("attention-statistics", {"statistic": "entropy"}),
        ("one-shot", {"scorer_model": str(tmp_path / "scorer.json")}),
    ):
        with pytest.raises(Refusal, match="must attend to one sentence at a time, but .* attends to two"):
            score(name, options, subject)
    assert (score("function-norm", {}, subject) > 0).all()


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("encoder", ["tgt", None])
def test_a_token_of_a_language_in_the_place_of_an_end_is_an_end(encoder, decoder):
    languages = {"task": "translation_multi_simple_epoch", "lang_pairs": "de-en", "lang_tok_replacing_bos_eos": True}
    model = build_with(ALL, encoder_langtok=encoder, decoder_langtok=decoder, **languages)
    batch, token = batch_of(), 9
    source, previous = (batch["net_input"][name] for name in ("src_tokens", "prev_output_tokens"))
    last = (source != PAD).sum(dim=1) - 1
    source[torch.arange(len(source)), last] = previous[:, 0] = EOS
    expected = words_of(build_with(ALL), batch)
    assert [int(ends.sum()) for _, ends in expected.values()] == [3, 3]
    if encoder:
        source[torch.arange(len(source)), last] = token
    if decoder:
        previous[:, 0] = token
    for side, found in words_of(model, batch).items():
        assert all(torch.equal(*each) for each in zip(found, expected[side], strict=True))
