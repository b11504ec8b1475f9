"""What units own of tensors: for every kind, the slices of a site's units are its tensors, once each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, few_examples, layouts_of

from fairseq_dsp.modules.slicing import keep_units, owned_by_unit
from fairseq_dsp.modules.surgery import marks_name, shrink_state, site_name, widen_state
from fairseq_dsp.units.kind import Slice, unit_places
from fairseq_dsp.units.kinds import KIND_OF, KINDS
from fairseq_dsp.units.layout import STACKS, Grid, Layout

GRID = Grid.of_heads((3, 3), (3, 3), (3, 3))
BOTH = Grid.of_stacks(enc=(3, 3), dec=(3, 3), cross=(3, 3), ffn_enc=(7, 7), ffn_dec=(7, 7))
WIDTHS = {site: 4 if site.stack in ("enc", "dec", "cross") else 2 for site in BOTH.sites}


def test_kinds_have_the_stacks_of_a_grid_in_its_order():
    assert tuple(stack.name for kind in KINDS for stack in kind.stacks) == STACKS
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@given(st.lists(st.integers(0, 9), unique=True).map(sorted), st.integers(1, 5))
def test_places_of_units_lie_side_by_side(units, width):
    assert unit_places(units, width).tolist() == [unit * width + i for unit in units for i in range(width)]


@given(st.integers(0, 4), st.integers(1, 4), st.integers(1, 3), st.sampled_from([0, 1]))
def test_a_tensor_by_unit_holds_what_index_select_takes(units, width, other, dim):
    shape = [other, other]
    shape[dim] = units * width
    tensor = torch.randn(shape)
    rows = Slice("any", dim, width).by_unit(tensor)
    assert rows.shape == (units, width * other if units else 0)
    for unit in range(units):
        taken = tensor.index_select(dim, unit_places([unit], width))
        assert sorted(rows[unit].tolist()) == sorted(taken.flatten().tolist())


@pytest.mark.parametrize("stack", STACKS)
class TestOfAModel:
    def site(self, stack):
        model = build(arch="transformer")
        site = next(site for site in BOTH.sites if site.stack == stack)
        return model.get_submodule(site_name(site)), KIND_OF[stack].slices(WIDTHS[site]), BOTH.size(site)

    def test_the_units_own_all_numbers_of_the_site_but_the_biases_and_norms_behind_it(self, stack):
        module, slices, units = self.site(stack)
        owned = {part.name for part in slices}
        assert owned < {name for name, _ in module.named_parameters()}
        counted = sum(part.numel() for part in owned_by_unit(module, slices))
        assert counted == sum(value.numel() for name, value in module.named_parameters() if name in owned)
        assert all(len(part) == units for part in owned_by_unit(module, slices))

    def test_keeping_some_keeps_what_they_own(self, stack):
        module, slices, units = self.site(stack)
        before = [part.clone() for part in owned_by_unit(module, slices)]
        keep_units(module, slices, kept := list(range(0, units, 2)))
        after = list(owned_by_unit(module, slices))
        assert all(torch.equal(part, whole[kept]) for part, whole in zip(after, before, strict=True))
        keep_units(module, slices, [])
        assert not any(module.get_parameter(part.name).requires_grad for part in slices)


@few_examples
@given(layouts_of(BOTH), st.data())
def test_a_state_widened_again_has_what_was_kept_and_zeros_elsewhere(layout, data):
    state = build(arch="transformer").state_dict()
    small = shrink_state(state, layout)
    assert {marks_name(site) for site in BOTH.sites} == small.keys() - state.keys()
    wide = widen_state(small, layout, WIDTHS)
    assert wide.keys() == state.keys()
    assert all(value.shape == state[name].shape for name, value in wide.items())
    again = shrink_state(wide, layout)
    assert all(torch.equal(value, again[name]) for name, value in small.items())
    fewer = data.draw(st.lists(st.booleans(), min_size=layout.count, max_size=layout.count).map(layout.narrow))
    assert all(torch.equal(v, shrink_state(state, fewer)[n]) for n, v in shrink_state(small, fewer, layout).items())


def test_a_full_layout_changes_no_tensor():
    state = build(arch="transformer").state_dict()
    wide = widen_state(shrink_state(state, Layout.full(GRID)), Layout.full(GRID), WIDTHS)
    assert all(torch.equal(value, state[name]) for name, value in wide.items())
