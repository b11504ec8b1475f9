"""Rescaling after a cut against least squares by the book, with an intercept, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import PAD, build_with, few_examples, layouts_of, sentences

from fairseq_dsp.checkpoints.rescaling import (
    Moments,
    cut_in_stages,
    input_moments,
    rescale_state,
    rescaled_projection,
)
from fairseq_dsp.modules.surgery import modules_at, shrink_state, site_name
from fairseq_dsp.units.floors import floors_of, top_k_above_floors
from fairseq_dsp.units.kind import unit_places
from fairseq_dsp.units.layout import Grid, Layout, Site

GRID = Grid.of_stacks(enc=(3, 3), dec=(3, 3), cross=(3, 3), ffn_enc=(7, 7), ffn_dec=(7, 7))
ALL = Layout.full(GRID)
HEADS_ALONE = Layout.full(Grid.of_heads((3, 3), (3, 3), (3, 3)))


def batch_of(seed: int) -> dict[str, Any]:
    source, lengths, previous = sentences(seed)
    for row, length in enumerate((4, 2, 3)):
        previous[row, length:] = PAD
    return {"net_input": {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}}


def contexts(model: Any, site: Site, batches: list[dict[str, Any]]) -> torch.Tensor:
    """What the site's output projection reads, a row a token that is no padding, collected sentence by sentence."""
    rows: list[torch.Tensor] = []
    caught: list[torch.Tensor] = []
    module = modules_at(model, GRID)[site]
    reader = module.fc2 if site.stack.startswith("ffn") else module.out_proj
    handle = reader.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    for batch in batches:
        inputs = batch["net_input"]
        model(**inputs)
        tokens = inputs["src_tokens" if site.stack in ("enc", "ffn-enc") else "prev_output_tokens"]
        context = caught.pop()
        for row in range(tokens.size(0)):
            rows += [context[place, row] for place in range(tokens.size(1)) if tokens[row, place] != PAD]
    handle.remove()
    return torch.stack(rows).double()


@few_examples
@given(layouts_of(GRID), st.integers(0, 50))
def test_every_site_that_lost_a_unit_gets_the_least_squares_solution_and_no_other_changes(layout, seed):
    model = build_with(ALL)
    batches = [batch_of(seed + each) for each in range(30)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    small = shrink_state(state, layout)
    before = {name: value.clone() for name, value in small.items()}
    rescale_state(state, small, layout, ALL, input_moments(model, batches, GRID.sites))
    touched = set()
    for site in GRID.sites:
        if len(layout.units(site)) == GRID.size(site):
            continue
        neurons = site.stack.startswith("ffn")
        name = f"{site_name(site)}.{'fc2' if neurons else 'out_proj'}"
        touched |= {f"{name}.weight", f"{name}.bias"}
        rows = contexts(model, site, batches)
        wanted = rows @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        kept = rows[:, unit_places(layout.units(site), 2 if neurons else 4)]
        design = torch.cat([kept, torch.ones(len(kept), 1, dtype=torch.float64)], dim=1)
        solution = torch.linalg.lstsq(design, wanted, driver="gelsd").solution  # dead neurons: columns of zeros
        found = kept @ small[f"{name}.weight"].T + small[f"{name}.bias"]
        torch.testing.assert_close(found, design @ solution, rtol=1e-6, atol=1e-8)
    assert all(torch.equal(before[name], small[name]) for name in small if name not in touched)
    assert {name: value.shape for name, value in small.items()} == {name: value.shape for name, value in before.items()}


def test_a_feed_forward_network_without_neurons_says_what_it_said_on_average():
    model = build_with(ALL)
    batches, site = [batch_of(1)], Site("ffn-dec", 0)
    layout = Layout.parse(str(ALL).replace("ffn-dec:1111111", "ffn-dec:0000000"))
    state = dict(model.state_dict())
    small = shrink_state(state, layout)
    rescale_state(state, small, layout, ALL, input_moments(model, batches, [site]))
    name = site_name(site)
    mean = (contexts(model, site, batches) @ state[f"{name}.fc2.weight"].T + state[f"{name}.fc2.bias"]).mean(dim=0)
    torch.testing.assert_close(small[f"{name}.fc2.bias"], mean)
    assert small[f"{name}.fc2.weight"].shape == (12, 0)


def test_a_sublayer_without_heads_says_what_it_said_on_average():
    model = build_with(ALL)
    batches, site = [batch_of(1)], Site("cross", 1)
    layout = Layout.parse(f"enc:111.111/dec:111.111/cross:111.000/{'/'.join(str(ALL).split('/')[3:])}")
    state = dict(model.state_dict())
    small = shrink_state(state, layout)
    rescale_state(state, small, layout, ALL, input_moments(model, batches, GRID.sites))
    name = f"{site_name(site)}.out_proj"
    mean = (contexts(model, site, batches) @ state[f"{name}.weight"].T + state[f"{name}.bias"]).mean(dim=0)
    torch.testing.assert_close(small[f"{name}.bias"], mean)
    assert small[f"{name}.weight"].shape == (12, 0)


def test_contexts_that_never_vary_are_no_reason_to_fail():
    moments = Moments(torch.ones(4, dtype=torch.float64) * 5, torch.ones(4, 4, dtype=torch.float64) * 5, 5)
    weight, bias = torch.randn(3, 4), torch.randn(3)
    kept, offset = rescaled_projection(weight, bias, moments, torch.tensor([0, 1]))
    assert torch.isfinite(kept).all()
    torch.testing.assert_close(kept.sum(dim=1) + offset, weight.sum(dim=1) + bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_keep_their_precision(dtype):
    moments = Moments(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64), 1)
    kept, offset = rescaled_projection(
        torch.ones(3, 4, dtype=dtype), torch.ones(3, dtype=dtype), moments, torch.tensor([2])
    )
    assert (kept.dtype, offset.dtype) == (dtype, dtype)
    assert kept.tolist() == [[1.0]] * 3


@few_examples
@given(st.integers(0, 18), st.integers(1, 5), st.integers(0, 50))
def test_a_cut_in_stages_is_score_cut_and_fit_one_after_the_other(k, stages, seed):
    """Each stage by hand, on a state: the parts that `fairseq-dsp-prune --scores --rescale` has."""
    model, batches, sizes = build_with(HEADS_ALONE), [batch_of(seed + each) for each in range(6)], []
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(18, generator=generator, dtype=torch.float64) for _ in range(stages)]
    state, layout = {name: value.clone() for name, value in model.state_dict().items()}, HEADS_ALONE
    for stage in range(stages):
        goal = k if stage + 1 == stages else round(18 * (k / 18) ** ((stage + 1) / stages))
        here = build_with(layout)
        here.load_state_dict(state)
        left = layout.surviving
        chosen = top_k_above_floors(drawn[stage][: left.total], goal, floors_of(left, 1) if k else ())
        smaller = layout.narrow(chosen)
        small = shrink_state(state, smaller, layout)
        rescale_state(state, small, smaller, layout, input_moments(here, batches, layout.grid.sites))
        state, layout = small, smaller
        sizes.append(layout.count)
    scores = iter(drawn)
    cut_in_stages(model, batches, k, stages, lambda left: next(scores)[: left.layout.count], 1)
    assert model.layout == layout
    assert sizes[-1] == k
    assert sizes == sorted(sizes, reverse=True)
    assert k == 0 or layout.by_type()["cross"][0] >= 1
    found = model.state_dict()
    for name, value in state.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)


def test_a_model_without_heads_stays_as_it_is_in_any_number_of_stages():
    model = build_with(Layout.parse("enc:000.000/dec:000.000/cross:000.000"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cut_in_stages(model, [batch_of(0)], 0, 3, lambda left: pytest.fail("there is nothing to score"), 1)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
