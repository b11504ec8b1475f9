"""The method `function-norm`: norms of a training pass against loops over positions and units, their mean, and what is kept by them."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any
from unittest import mock

import devices
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, build, build_gated, build_with, few_examples, scores
from scored import batch_of, change_places, subject_over
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairseq_dsp.config import PruningConfig
from fairseq_dsp.methods.function_norm import FunctionNorm
from fairseq_dsp.modules.streams import streams
from fairseq_dsp.modules.surgery import modules_at, shrink_state
from fairseq_dsp.modules.unit_norms import UnitNorms
from fairseq_dsp.plugin.task import TranslationDspTask
from fairseq_dsp.scoring import make_scorer
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.kinds import KIND_OF, STACK_OF
from fairseq_dsp.units.layout import Layout
from fairseq_dsp.units.norms import NORMS

EITHER_NORM = pytest.mark.parametrize("norm", NORMS)
EITHER_PLACE = pytest.mark.parametrize("before", [False, True], ids=["post-norm", "pre-norm"])


def choosing(kept: int = 7, **options: Any) -> Any:
    if options.get("prune") is not None:
        return build(head_selection="function-norm", budget=str(kept), **options).train()
    return build_gated("function-norm", kept, **options).train()


def passed(model: Any, *batches: dict[str, Any]) -> None:
    for batch in batches:
        model(**batch["net_input"])


def of_update(model: Any) -> Tensor:
    norms, seen = model.head_gates.norms.of_update(devices.device())
    assert seen.all()
    return norms


def slow_norms(model: Any, batch: dict[str, Any], relative: bool, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean lengths of vectors of C numbers, [n], with gradient to the weights of a twin without gates, and these weights."""
    twin = build_with(Layout.full(model.layout.grid), **options).train()
    twin.load_state_dict(shrink_state(model.state_dict(), model.layout))
    grid, computed, stream = model.head_gates.grid, {}, {}
    for site, module in modules_at(twin, grid).items():
        reader = module.get_submodule(KIND_OF[site.stack].readers[0])

        def note(_: Any, inputs: Any, site: Any = site) -> None:
            computed[site] = inputs[0]

        def note_stream(_: Any, inputs: Any, named: Any, site: Any = site) -> None:
            stream[site] = (inputs[0] if inputs else named["query"]).detach()

        reader.register_forward_pre_hook(note)
        streams(twin, grid)[site].register_forward_pre_hook(note_stream, prepend=True, with_kwargs=True)
    passed(twin, batch)
    found = []
    words = {"encoder": batch["net_input"]["src_tokens"], "decoder": batch["net_input"]["prev_output_tokens"]}
    for site, units in grid.counts:
        weight = modules_at(twin, grid)[site].get_submodule(KIND_OF[site.stack].readers[0]).weight
        width, there = weight.size(1) // units, words[STACK_OF[site.stack].side] != 1
        for unit in range(units):
            columns = slice(unit * width, (unit + 1) * width)
            lengths = []
            for sentence, position in there.nonzero().tolist():
                added = weight[:, columns] @ computed[site][position, sentence, columns]
                by = stream[site][position, sentence].norm() if relative else math.sqrt(12)
                lengths.append(torch.linalg.vector_norm(added) / by)
            found.append(sum(lengths) / len(lengths))
    return torch.stack(found), dict(twin.named_parameters())


def pay(model: Any, batch: dict[str, Any], slow: Tensor) -> None:
    """Runs a batch, and goes backward from a penalty of 0.3, both of which must be as slow loops say."""
    passed(model, batch)
    penalty = model.head_gates.penalty()
    assert_same(of_update(model), slow.detach())
    assert_same(penalty.detach(), 0.3 * slow.sum().detach())
    penalty.backward()


@EITHER_NORM
@EITHER_PLACE
@pytest.mark.parametrize(("group", "kinds"), [(None, None), (7, None), (14, "ffn"), (7, "sublayers")])
def test_norms_and_their_gradient_are_those_of_slow_loops(group, kinds, before, norm):
    options = {"encoder_normalize_before": before, "decoder_normalize_before": before, "ffn_group": group}
    model, batch = choosing(2, norm=norm, norm_penalty=0.3, prune=kinds, **options), batch_of()
    slow, weights = slow_norms(model, batch, norm == "relative", **options)
    pay(model, batch, slow)
    (0.3 * slow.sum()).backward()
    for name, weight in weights.items():
        ours = model.get_parameter(name).grad
        if weight.grad is None:
            assert ours is None or not ours.any()
        else:
            assert_same(ours, weight.grad)


@EITHER_NORM
@EITHER_PLACE
def test_what_a_unit_adds_at_padding_does_not_count_whatever_it_is(before, norm):
    """The stream is zero there before the first layer, and any number divided by nothing is too large to be told."""
    options = {"encoder_normalize_before": before, "decoder_normalize_before": before}
    model, batch = choosing(norm=norm, norm_penalty=0.3, **options), batch_of()
    with torch.no_grad():
        model.encoder.layers[0].self_attn.out_proj.weight.mul_(100)
    slow, _ = slow_norms(model, batch, norm == "relative", **options)
    pay(model, batch, slow)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@few_examples
@given(st.integers(0, 999), st.sampled_from(NORMS), st.integers(1, 4))
def test_neither_padding_nor_micro_batches_nor_processes_change_the_norms_of_an_update(seed, norm, longer):
    model, batches = choosing(norm=norm), [batch_of(seed), batch_of(seed + 1)]
    passed(model, *batches)
    together = of_update(model)

    def padded(batch: dict[str, Any]) -> dict[str, Any]:
        pad = partial(torch.nn.functional.pad, pad=(0, longer), value=1)
        inputs = batch["net_input"]
        return {"net_input": {**inputs, **{name: pad(inputs[name]) for name in ("src_tokens", "prev_output_tokens")}}}

    passed(model, *map(padded, batches))
    assert_same(of_update(model), together)
    others = copy.deepcopy(model)
    passed(model, batches[0])
    passed(others, batches[1])
    theirs = torch.stack(others.head_gates.norms._sums)
    distributed = {"is_initialized": lambda: True, "all_reduce": lambda both: both.add_(theirs)}
    with mock.patch.multiple(torch.distributed, **distributed):
        assert_same(of_update(model), together)


def test_norms_of_heads_that_change_places_change_places():
    model, order = choosing(18), [2, 0, 1]
    passed(model, batch_of())
    before = of_update(model)
    change_places(model, order)
    passed(model, batch_of())
    assert_same(of_update(model), torch.cat([site[order] for site in before.split(3)]))


def test_a_unit_that_adds_nothing_has_norm_zero_and_gives_no_gradient():
    model = choosing(7, ffn_group=1)
    with torch.no_grad():
        model.encoder.layers[0].fc1.bias[:5] = -1e3  # never active
        model.decoder.layers[1].self_attn.out_proj.weight[:, 4:8] = 0
    passed(model, batch_of())
    model.head_gates.penalty().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    norms = of_update(model)
    grid = model.layout.grid
    spans = {f"{site.stack}{site.layer}": span for site, span in grid.spans()}
    assert not norms[spans["ffn-enc0"]][:5].any()
    assert norms[spans["dec1"]][1] == 0
    assert (norms > 0).sum() > 40


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that is computed within."""

    numbers = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = call(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(each.numel() for each in tree_leaves(found) if isinstance(each, Tensor))])
        return found


def test_no_vector_of_the_stream_is_made_for_a_unit():
    """Neither of the 12 heads of 4, nor of the 14 neurons, in 48 dimensions, nor of the gradient; by method and by scorer."""
    sizes: dict[str, Any] = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("embed_dim", 48), ("attention_heads", 12))}  # fmt: skip
    model, batch = choosing(7, **sizes, ffn_group=1), batch_of()
    positions = min(batch["net_input"][name].numel() for name in ("src_tokens", "prev_output_tokens"))
    with Largest() as training:
        passed(model, batch)
        model.head_gates.penalty().backward()
    subject = subject_over(build_with(Layout.full(model.layout.grid), **sizes), [batch])
    with torch.no_grad(), Largest() as scoring:
        make_scorer("function-norm", {}).score(subject, torch.ones(subject.grid.total))
    for measured in (training, scoring):
        assert 48 * 48 <= measured.numbers < positions * 12 * 48


def test_the_mean_is_of_all_updates_at_first_and_then_forgets():
    method = FunctionNorm(0.1, 10).of_sites([2, 1])
    own, generator = method.records(), torch.Generator().manual_seed(3)
    slow, updates = [0.0] * 3, [0] * 3
    for update in range(130):
        norms = torch.rand(3, generator=generator, dtype=torch.float64)
        seen = torch.tensor([True, update % 3 == 0, update != 5])
        method.note(norms, seen, **own)
        for unit in range(3):
            if seen[unit]:
                updates[unit] += 1
                slow[unit] += (float(norms[unit]) - slow[unit]) / min(updates[unit], 100)
    assert own["mean_norms"].tolist() == pytest.approx(slow, rel=1e-4)
    assert own["norm_updates"].tolist() == updates


@EITHER_NORM
def test_the_dummy_batch_of_a_process_that_has_no_other_is_no_batch_of_the_update(norm):
    """fairseq gives it one where the batches do not suffice for all processes, and takes no gradient of it."""
    model, task = choosing(norm=norm), object.__new__(TranslationDspTask)
    task._learns_heads, optimizer = True, mock.Mock(spec=["backward"])

    def criterion(model: Any, batch: dict[str, Any]) -> tuple[Tensor, int, dict[str, Any]]:
        return model(**batch["net_input"])[0].sum() + model.head_gates.penalty(), 1, {}

    with mock.patch("fairseq_dsp.plugin.task.dsp_adam_of"):
        task.train_step(batch_of(), model, criterion, optimizer, 0)
        alone = of_update(model)
        for batch, is_dummy in ((batch_of(), False), (batch_of(1), True)):
            task.train_step(batch, model, criterion, optimizer, 1, is_dummy)
    assert_same(of_update(model), alone)


def test_a_process_that_has_measured_nothing_asks_the_others_all_the_same():
    model, theirs = choosing(), torch.ones(2, 18, dtype=torch.float64)
    distributed = {"is_initialized": lambda: True, "all_reduce": lambda both: both.add_(theirs)}
    with mock.patch.multiple(torch.distributed, **distributed):
        model.head_gates.end_update()
    assert model.head_gates.mean_norms.tolist() == [1.0] * 18


def test_norms_that_are_not_finite_count_as_none():
    norms = UnitNorms(build_with(Layout.parse("enc:111/dec:1/cross:1"), encoder_layers=1, decoder_layers=1, decoder_attention_heads=1).layout.grid, False)  # fmt: skip
    sums = torch.tensor([1.0, math.inf, math.nan, 4.0, 0.0]).double(), torch.tensor([2.0, 2, 2, 2, 0]).double()
    norms._sums = sums
    means, seen = norms.of_update(devices.device())
    assert means.tolist() == [0.5, 0, 0, 2, 0]
    assert seen.tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("kept", [1, 7, 17])
def test_the_units_of_the_largest_norms_are_kept_once_the_cooldown_is_over(kept):
    model = choosing(kept, cooldown_updates=2)
    gates = model.head_gates
    for update in range(2):
        model.set_num_updates(update)
        assert gates.budget_now.count == 18
        passed(model, batch_of(update))
        assert (gates.gates() == 1).all()
        gates.end_update()
    norms = gates.mean_norms.clone()
    model.set_num_updates(2)
    passed(model, batch_of(2))
    assert gates.norms._sums is None
    assert gates.penalty() is None
    largest = sorted(range(18), key=lambda head: -norms[head])[:kept]
    assert gates.fixed_mask.nonzero().flatten().tolist() == sorted(largest)
    gates.end_update()
    assert torch.equal(gates.mean_norms, norms)


def test_a_training_that_starts_on_the_state_of_another_one_measures_anew():
    start, model = choosing(norm="relative"), choosing()
    for update in range(3):
        start.set_num_updates(update)
        passed(start, batch_of(update))
        start.head_gates.end_update()
    model.adopts_dense_state = True
    model.load_state_dict(copy.deepcopy(start.state_dict()))
    for update in range(2):
        model.set_num_updates(update)
        for micro in range(2):
            passed(model, batch_of(2 * update + micro))
        model.head_gates.end_update()
    assert model.head_gates.norm_updates.tolist() == [2.0] * 18
    alone = choosing()
    alone.load_state_dict(start.state_dict() | alone.head_gates.state_dict(prefix="head_gates."))
    passed(alone, *map(batch_of, range(2)))
    first = of_update(alone)
    passed(alone, *map(batch_of, range(2, 4)))
    assert_same(model.head_gates.mean_norms, ((first + of_update(alone)) / 2).float(), 1e-6)


def test_nothing_is_measured_in_evaluation_nor_by_other_methods():
    model = choosing().eval()
    scores(model)
    assert model.head_gates.norms._sums is None
    assert build_gated("ste").head_gates.norms is None


def test_a_copy_made_in_the_middle_of_a_pass_measures_for_itself_and_a_small_model_nothing():
    model = choosing(norm="relative")
    passed(model, batch_of())
    twin = copy.deepcopy(model)
    expected = of_update(model)
    twin.head_gates.norms.of_update(devices.device())
    passed(twin, batch_of())
    assert model.head_gates.norms._sums is None
    assert_same(of_update(twin), expected)
    twin.eval().bake()
    assert not any(module._forward_pre_hooks for module in twin.modules())
    passed(twin.train(), batch_of())


def test_without_a_penalty_norms_are_measured_all_the_same():
    model = choosing(norm_penalty=0.0)
    passed(model, batch_of())
    assert model.head_gates.penalty() is None
    model.head_gates.end_update()
    assert (model.head_gates.mean_norms > 0).all()


def test_a_budget_of_unequal_costs_is_filled_from_the_largest_norm_down():
    method = FunctionNorm(0.1, 10).of_sites([3])
    budget = Budget("parameters", 5, (3.0, 1.0, 2.0))
    assert method.budget_at(budget, 0).limit == 6
    own = {"mean_norms": torch.tensor([1.0, 3.0, 2.0]), "norm_updates": torch.ones(3)}
    assert method.ranking(torch.zeros(3), **own).tolist() == [1, 3, 2]


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_penalty_that_is_none_is_refused(value):
    (reason,) = FunctionNorm.objections(PruningConfig(norm_penalty=value))
    assert reason == f"`--norm-penalty` must be a number of at least 0, but is {value}."


def test_heads_that_are_fixed_before_any_norm_is_measured_are_refused():
    (reason,) = FunctionNorm.objections(PruningConfig(cooldown_updates=0))
    assert reason.startswith("`--cooldown-updates` must be at least 1 for `--head-selection function-norm`")
    assert reason.endswith("but is 0.")
    (reason,) = FunctionNorm.objections(PruningConfig(cooldown_updates=-1))


def test_defaults():
    assert FunctionNorm.from_config(PruningConfig(cooldown_updates=9)) == FunctionNorm(0.03, 9, "absolute")
