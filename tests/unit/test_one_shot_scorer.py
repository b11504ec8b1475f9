"""The scorer that is trained: its features against slow loops, its file, and that its training finds heads that matter."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, many_examples
from scored import ALL, NETWORK, PAIRS, SOME, batch_of, change_places, dense, sentence_of, subject_of, subject_over

from fairseq_dsp.checkpoints.batches import log_probs_of
from fairseq_dsp.errors import Refusal
from fairseq_dsp.modules.surgery import attentions
from fairseq_dsp.scoring import make_scorer, one_shot_training
from fairseq_dsp.scoring.attention_maps import attention_maps
from fairseq_dsp.scoring.map_features import FEATURES, map_features
from fairseq_dsp.scoring.one_shot import network
from fairseq_dsp.scoring.one_shot_training import Example, train_one_shot
from fairseq_dsp.scoring.passes import gated
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.marginals import exact_straight_through_top_k
from fairseq_dsp.units.scorer_model import read_scorer_model

# One encoder layer of 3 heads, three decoder layers of 2.
UNEVEN = {"encoder_layers": 1, "decoder_layers": 3, "decoder_attention_heads": 2}


def written(folder: Path, content: Any) -> str:
    path = folder / "scorer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def column(features: torch.Tensor, name: str) -> torch.Tensor:
    return features[:, FEATURES.index(name)]


def example_of(model: Any, seeds: tuple[int, ...] = (0, 1)) -> Example:
    return Example(subject_of(model.requires_grad_(False), seeds), partial(log_probs_of, model))


def layout_of(sizes: dict[str, int]) -> str:
    heads, layers = sizes["decoder_attention_heads"], sizes["decoder_layers"]
    return str(Layout.full(Grid.of_heads((3,) * sizes["encoder_layers"], (heads,) * layers, (heads,) * layers)))


class TestFeatures:
    def test_are_the_statistics_and_where_the_head_is(self):
        model = dense(SOME)
        found = map_features(subject_of(model), torch.ones(SOME.count))
        for name in ("entropy", "confidence", "coverage", "diagonal"):
            scorer = make_scorer("attention-statistics", {"statistic": name})
            torch.testing.assert_close(column(found, name), scorer.score(subject_of(model), torch.ones(SOME.count)))
        for site, span in SOME.surviving.spans():
            for stack in ("enc", "dec", "cross"):
                assert (column(found, stack)[span] == float(site.stack == stack)).all()
            assert (column(found, "depth")[span] == site.layer).all()

    def test_of_distance_ends_and_twins_are_those_of_slow_loops(self):
        model = dense()
        found = map_features(subject_of(model, (0,)), torch.ones(18))
        (maps_of,) = attention_maps(subject_of(model, (0,)), torch.ones(18))
        for site, span in ALL.grid.spans():
            maps = maps_of[site]
            rows = [(b, t) for b in range(3) for t in range(maps.visible.size(1)) if maps.visible[b, t].any()]
            for head in range(3):
                distance = ends = 0.0
                overlap = dict.fromkeys({0, 1, 2} - {head}, 0.0)
                for b, t in rows:
                    seen = maps.visible[b, t].nonzero().flatten().tolist()
                    for s in seen:
                        weight = float(maps.weights[head, b, t, s])
                        distance += weight * float(maps.diagonal[b, t, s]) / len(seen)
                        ends += weight * float(maps.ends[b, s])
                        for other in overlap:
                            overlap[other] += min(weight, float(maps.weights[other, b, t, s]))
                place = span.start + head
                assert float(column(found, "distance")[place]) == pytest.approx(distance / len(rows))
                assert float(column(found, "ends")[place]) == pytest.approx(ends / len(rows))
                assert float(column(found, "twin")[place]) == pytest.approx(max(overlap.values()) / len(rows))

    def test_of_a_head_that_is_there_twice_say_so(self):
        model = dense()
        with torch.no_grad():
            for projection in (model.encoder.layers[0].self_attn.q_proj, model.encoder.layers[0].self_attn.k_proj):
                projection.weight[4:8] = projection.weight[0:4]
                projection.bias[4:8] = projection.bias[0:4]
        twins = column(map_features(subject_of(model), torch.ones(18)), "twin")
        assert twins[:2].tolist() == pytest.approx([1.0, 1.0])
        assert (twins[2:] < 0.999).all()
        live = torch.ones(18)
        live[1] = 0
        assert column(map_features(subject_of(model), live), "twin")[0] < 0.999

    @pytest.mark.parametrize("uneven", [False, True])
    def test_do_not_see_padding_nor_how_sentences_are_put_into_batches(self, uneven):
        model = build(head_layout=layout_of(UNEVEN), **UNEVEN) if uneven else dense()
        live = torch.ones(model.layout.count)
        together = map_features(subject_over(model, [batch_of(0)]), live)
        apart = map_features(subject_over(model, [sentence_of(batch_of(0), row) for row in range(3)]), live)
        assert together.shape == (model.layout.count, len(FEATURES))
        torch.testing.assert_close(apart, together, rtol=1e-9, atol=1e-12)


class TestScorer:
    def test_is_the_network_over_standardised_features(self, tmp_path):
        subject = subject_of(dense())
        found = make_scorer("one-shot", {"scorer_model": written(tmp_path, NETWORK.text())}).score(
            subject, torch.ones(18)
        )
        for head, features in enumerate(map_features(subject, torch.ones(18)).tolist()):
            x = [
                (value - mean) / scale
                for value, mean, scale in zip(features, NETWORK.means, NETWORK.scales, strict=True)
            ]
            wanted = 0.0
            for row, bias, weight in zip(NETWORK.hidden, NETWORK.biases, NETWORK.output, strict=True):
                wanted += weight * float(torch.tensor(sum(a * b for a, b in zip(row, x, strict=True)) + bias).tanh())
            assert float(found[head]) == pytest.approx(wanted, rel=1e-5)

    def test_follows_the_heads_when_these_change_places(self, tmp_path):
        model, order = dense(), [2, 0, 1]
        scorer = make_scorer("one-shot", {"scorer_model": written(tmp_path, NETWORK.text())})
        found = scorer.score(subject_of(model), torch.ones(18))
        change_places(model, order)
        moved = scorer.score(subject_of(model), torch.ones(18))
        torch.testing.assert_close(moved.view(6, 3), found.view(6, 3)[:, order], rtol=1e-9, atol=1e-12)


class TestTraining:
    def test_is_a_function_of_its_seed_and_leaves_the_model_as_it_was(self):
        model = dense()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        runs = [train_one_shot([example_of(model)], 5, seed, lambda: None) for seed in (1, 1, 2)]
        assert runs[0] == runs[1] != runs[2]
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        replace(NETWORK, **runs[0])

    def test_draws_a_number_of_heads_anew_for_every_step(self, monkeypatch):
        drawn = []

        def top_k(scores, noise, kept):
            gates = exact_straight_through_top_k(scores, noise, kept)
            drawn.append((kept, gates.detach().tolist()))
            return gates

        monkeypatch.setattr(one_shot_training, "exact_straight_through_top_k", top_k)
        train_one_shot([example_of(dense())], 40, 1, lambda: None)
        assert all(sum(gates) == kept and set(gates) == {0.0, 1.0} for kept, gates in drawn)
        assert {1, 17} <= {kept for kept, _ in drawn} <= set(range(1, 18))
        assert len({kept for kept, _ in drawn}) > 10

    def test_counts_its_steps_and_takes_models_of_any_shape(self):
        done = []
        models = [dense(SOME), build(head_layout=layout_of(UNEVEN), **UNEVEN)]
        numbers = train_one_shot([example_of(model) for model in models], 7, 1, lambda: done.append(1))
        assert len(done) == 7
        assert len(numbers["means"]) == len(numbers["hidden"][0]) == len(FEATURES)

    def test_finds_the_stack_whose_heads_matter(self):
        """Heads of the encoder and of cross-attention are silenced: what is left to lose is the decoder's self-attention."""
        model = dense()
        with torch.no_grad():
            for site, attention in attentions(model, ALL.grid):
                attention.out_proj.weight.mul_(3.0 if site.stack == "dec" else 0.0)
        numbers = {
            name: torch.tensor(values, dtype=torch.float64)
            for name, values in train_one_shot([example_of(model)], 150, 3, lambda: None).items()
        }
        scores = network(map_features(subject_of(model), torch.ones(18)), **numbers)
        assert scores[6:12].min() > torch.cat([scores[:6], scores[12:]]).max()

    def test_gates_are_those_of_masked_heads(self):
        model = dense()
        subject = subject_of(model)
        marks = torch.tensor(SOME.kept).double()
        with torch.no_grad(), gated(subject, marks):
            found = log_probs_of(model, batch_of(0))
        with torch.no_grad():
            for (_, attention), (_, span) in zip(attentions(model, ALL.grid), ALL.grid.spans(), strict=True):
                attention.out_proj.weight.mul_(marks[span].repeat_interleave(4))
            wanted = log_probs_of(model, batch_of(0))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize(
        "layout", ["enc:000.000/dec:000.000/cross:000.000", "enc:000.000/dec:000.000/cross:010.000"]
    )
    def test_of_models_without_two_heads_is_refused(self, layout):
        with pytest.raises(Refusal, match="two heads or more|has attention heads"):
            train_one_shot([example_of(dense(Layout.parse(layout)))], 1, 1, lambda: None)

    def test_of_models_that_say_nothing_is_refused(self):
        model = dense()
        with torch.no_grad():
            model.decoder.layers[1].fc1.bias.fill_(float("nan"))
        with pytest.raises(Refusal, match="finite probabilities"):
            train_one_shot([example_of(model)], 1, 1, lambda: None)


class TestFile:
    @many_examples
    @given(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3))
    def test_keeps_every_bit(self, tmp_path_factory, output):
        folder = tmp_path_factory.mktemp("file")
        model = replace(NETWORK, output=tuple(output))
        assert read_scorer_model(written(folder, model.text())) == model

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("", "must be whole JSON"),
            (NETWORK.text()[:-9], "must be whole JSON"),
            ("[" * 100_000, "must be whole JSON"),
            ("[]", "kind one-shot, format 1, but .* is of kind None"),
            ('{"format": 1, "version": "0.1.0", "scorer": "gradient"}', "is of kind None, format 1"),
            (NETWORK.text().replace('"one-shot"', '"convolution"'), "is of kind convolution"),
            (NETWORK.text().replace('"format": 1', '"format": 2'), "format 2"),
            (NETWORK.text().replace("-0.2", "-0.3"), "the checksum is not that of the rest"),
            (NETWORK.text().replace("-0.2", "NaN"), "`biases` must be a list of numbers"),
            (NETWORK.text().replace('"steps": 3', '"steps": 0'), "`steps` must be a whole number above 0"),
            (NETWORK.text().replace('"seed": 1,', ""), "`seed` is missing"),
            (replace(NETWORK, biases=(0.1,)).text(), "`biases` are not one for every number"),
            (replace(NETWORK, hidden=NETWORK.hidden[:2]).text(), "`hidden` has not a row"),
            (replace(NETWORK, means=(0.1,)).text(), "`means` are not one a feature"),
            (replace(NETWORK, scales=(0.0,) * len(FEATURES)).text(), "`scales` must be a list of numbers above 0"),
        ],
    )  # fmt: skip
    def test_of_another_kind_or_damaged_is_refused_in_a_sentence(self, content, sentence, tmp_path):
        with pytest.raises(Refusal, match=sentence) as refused:
            make_scorer("one-shot", {"scorer_model": written(tmp_path, content)})
        assert len(refused.value.reasons) == 1
        assert len(str(refused.value)) < 400

    def test_of_what_is_no_attention_is_refused(self, tmp_path):
        scorer = make_scorer("one-shot", {"scorer_model": written(tmp_path, NETWORK.text())})
        with pytest.raises(
            Refusal, match="`--scorer one-shot` must be given sites of attention, but encoder FFN is none"
        ):
            scorer.score(subject_of(dense(PAIRS)), torch.ones(PAIRS.count))

    def test_of_other_features_or_of_none_is_refused(self, tmp_path):
        other = replace(NETWORK, features=(*FEATURES[:-1], "colour"))
        with pytest.raises(Refusal, match="of the features of this version, .* but .*colour"):
            make_scorer("one-shot", {"scorer_model": written(tmp_path, other.text())})
        with pytest.raises(Refusal, match="`--scorer-model` must be given for `--scorer one-shot`"):
            make_scorer("one-shot", {})
        with pytest.raises(Refusal, match="cannot be read: No such file"):
            make_scorer("one-shot", {"scorer_model": str(tmp_path / "nowhere")})
