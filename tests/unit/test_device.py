"""A model on a device: how often the host waits for it, and that no tensor stays behind on the CPU.

Counted on the pretended device of `devices`, so that a CPU shows it. Two kinds of fault: the host reads from the device where it
could go on (every read makes it wait for all that it has asked for), and tensors of two devices meet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import devices
import pytest
import torch
from models import build, build_gated, build_with, gradients, scores, sentences
from torch import Tensor

from fairseq_dsp.methods.dsp import RELAXATIONS
from fairseq_dsp.methods.method import noise_for
from fairseq_dsp.modules.gates import HeadGates
from fairseq_dsp.modules.surgery import (
    install_gates,
    layout_of_state,
    mask_heads,
    remove_gates,
    shrink_state,
)
from fairseq_dsp.units.budget import Budget
from fairseq_dsp.units.layout import Grid, Layout
from fairseq_dsp.units.subset import gumbel_noise, hard_top_k, projected_top_k

GRID = Grid.of_heads((3, 3), (3, 3), (3, 3))
SOME = Layout.parse("enc:100.011/dec:000.110/cross:010.100")
COOLDOWN, KEPT = 10, 7


@pytest.fixture(autouse=True)
def pretended() -> Iterator[None]:
    with devices.on(devices.PRETENDED):
        yield


def reads(of: Callable[[], Any]) -> list[str]:
    """What the host waited for."""
    with devices.reads_from_the_device() as found:
        of()
    return found


def test_the_pretended_device_counts_every_way_of_reading_and_refuses_to_be_mixed():
    x = torch.arange(4.0)
    ways: dict[str, Callable[[], Any]] = {
        "item": lambda: x[0].item(),
        "list": lambda: x.tolist(),
        "truth": lambda: bool((x > 9).any()),
        "number": lambda: int(x.sum()),
        "plain index": lambda: x[x.argmax()],
        "mask": lambda: x[x > 1],
        "mask written": lambda: x.clone().__setitem__(x > 1, 0.0),
        "nonzero": lambda: x.nonzero(),
        "equal": lambda: torch.equal(x, x),
        "to the host": lambda: x.cpu(),
        "into the host": lambda: torch.zeros(4, device="cpu").copy_(x),
        "repeated": lambda: x.repeat_interleave(x.long()),
    }
    for name, way in ways.items():
        assert reads(way), name
    assert reads(lambda: (x + 1).sum() * x[2:] + x.where(x > 1, 0.0).sort().values.cumsum(0)[:2]) == []
    with pytest.raises(RuntimeError, match="mixes"):
        x + torch.arange(4.0, device="cpu")


def gated(update: int = 3, **options: Any) -> Any:
    model = build_gated(options.pop("method", "dsp"), KEPT, cooldown_updates=COOLDOWN, **options)
    model.set_num_updates(update)
    return model


def training_pass(model: Any) -> Callable[[], Any]:
    """A pass and its gradients; masks are fairseq's own, which asks the device whether there is padding."""
    model.train()
    return lambda: gradients(model)


METHODS = [
    {},
    {"relaxation": "projection"},
    {"method": "ste"},
    {"method": "hard-concrete"},
    {"method": "function-norm"},
    {"method": "site-threshold"},
    {"checkpoint_activations": True},
]


def without_gates(options: dict[str, Any]) -> Any:
    return build_with(Layout.full(GRID), checkpoint_activations=options.get("checkpoint_activations", False))


@pytest.mark.parametrize("options", METHODS, ids=str)
class TestTraining:
    def test_a_draw_reads_nothing(self, options):
        gates: HeadGates = gated(**options).train().head_gates
        assert reads(lambda: gates.gates().sum().backward()) == []

    def test_a_pass_reads_no_more_than_one_without_gates(self, options):
        stock = reads(training_pass(without_gates(options)))
        assert reads(training_pass(gated(**options))) == stock

    def test_fixing_the_heads_reads_once_and_later_passes_nothing(self, options):
        model = gated(COOLDOWN, **options)
        stock = reads(training_pass(without_gates(options)))
        assert len(reads(training_pass(model))) == len(stock) + 1
        for update in (COOLDOWN, COOLDOWN + 1):
            model.set_num_updates(update)
            scores(model.eval())  # a validation in between is no reason to look again
            assert reads(training_pass(model)) == stock


@pytest.mark.parametrize("relaxation", RELAXATIONS.values())
def test_a_relaxation_reads_nothing_whatever_k(relaxation):
    for k in (0, 1, 7, 18):
        leaf = torch.linspace(-1, 1, 18).requires_grad_()
        assert reads(lambda k=k, leaf=leaf: relaxation(leaf, k, 0.1).sum().backward()) == []


def test_noise_is_drawn_and_copied_once_an_update():
    importance = torch.zeros(18)
    first = noise_for(importance, gumbel_noise, 1, 2)
    assert noise_for(importance, gumbel_noise, 1, 2) is first
    assert torch.equal(first.cpu(), gumbel_noise(18, 1, 2).float())
    for other in ((gumbel_noise, 1, 3), (gumbel_noise, 2, 2)):
        assert not torch.equal(noise_for(importance, *other), first)
    assert noise_for(importance.double(), gumbel_noise, 1, 2).dtype == torch.float64


class TestEvaluation:
    @pytest.mark.parametrize("activations", [False, True])
    def test_reads_the_importance_at_most_once_in_the_encoder_and_in_the_decoder(self, activations):
        model, stock = gated(checkpoint_activations=activations), build_with(Layout.full(GRID))
        for _ in range(2):
            assert len(reads(lambda: scores(model))) <= len(reads(lambda: scores(stock))) + 2

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ["gated", "dense", "small"])
    def test_a_step_of_a_search_reads_at_most_once(self, kind):
        """Steps in which sentences stay, swap hypotheses, leave, or mix; the stock model's own reads do not count."""
        model = {"gated": gated, "dense": lambda: build_with(Layout.full(GRID)), "small": lambda: build_with(SOME)}
        ours, stock = model[kind](), build(arch="transformer")
        hypotheses = torch.arange(6)
        orders = [hypotheses, hypotheses.view(3, 2).flip(1).flatten(), hypotheses[2:], torch.tensor([0, 2, 1, 3])]
        found = [steps(each, orders) for each in (ours, stock)]
        assert len(found[0]) == 1 + len(orders)
        for mine, theirs in zip(*found, strict=True):
            assert mine <= theirs + 1


def steps(model: Any, orders: list[Tensor]) -> list[int]:
    """Reads of the decoder's steps of a search with two hypotheses a sentence, and of the reorderings before them."""
    source, lengths, _ = sentences()
    encoder_out = model.encoder(source.repeat_interleave(2, 0), lengths.repeat_interleave(2, 0))
    cache: dict[str, Any] = {}
    tokens = torch.full((6, 1), 2)
    counts = []
    for order in [None, *orders]:
        if order is not None:
            tokens = torch.cat([tokens, tokens[:, -1:] + 1], 1).index_select(0, order)
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)

        def step(order: Any = order, encoder_out: Any = encoder_out, tokens: Tensor = tokens) -> None:
            if order is not None:
                model.decoder.reorder_incremental_state_scripting(cache, order)
            model.decoder(tokens, encoder_out=encoder_out, incremental_state=cache)

        counts.append(len(reads(step)))
    return counts


class TestNothingIsMixed:
    """Each would raise where tensors of two devices meet."""

    def test_in_a_dense_state_that_a_smaller_model_loads(self):
        dense, small = build_with(Layout.full(GRID)), build_with(SOME)
        state = {name: value for name, value in dense.state_dict().items() if not name.endswith("kept_mask")}
        small.load_state_dict(state)
        dense.layout = Layout.full(GRID)
        mask_heads(dense, SOME, dense.layout)
        torch.testing.assert_close(scores(small), scores(dense))

    def test_in_a_shrunk_state_and_its_marks(self):
        dense = build_with(Layout.full(GRID))
        small = shrink_state(dense.state_dict(), SOME)
        assert {value.device for value in small.values()} == {devices.device()}
        name = next(name for name in small if name.endswith("kept_mask"))
        small[name] = small[name].cpu()  # a state of two devices, as one that was put together by hand
        assert layout_of_state(small, GRID) == SOME

    def test_in_gates_that_a_model_on_a_device_is_given(self):
        model = gated()
        gates = HeadGates(GRID, Budget.of_units(KEPT, GRID.total), model.head_gates.method)
        remove_gates(model, GRID)
        install_gates(model, GRID, gates)
        assert gates.importance.device == gates.fixed_mask.device == devices.device()
        assert gradients(model)["head_gates.importance"].any()
        scores(model.eval())

    def test_in_a_model_that_is_moved_with_its_gradient_baked_and_copied(self):
        model = gated(COOLDOWN)
        gradients(model)
        twin = copy.deepcopy(model).eval()
        twin.bake()
        torch.testing.assert_close(scores(twin), scores(model.eval()))


def test_the_bracket_of_the_projection_is_what_plain_indices_gave():
    generator = torch.Generator().manual_seed(1)
    for k in (1, 5, 17):
        scores_ = torch.randn(18, generator=generator)
        mask = projected_top_k(scores_, k, 0.05)
        assert mask.sum().item() == pytest.approx(k, abs=1e-5)
        assert (hard_top_k(mask, k) == hard_top_k(scores_, k)).all()
