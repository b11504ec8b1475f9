"""Our label-smoothed loss against fairseq's, value and gradient."""

from __future__ import annotations

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from hypothesis import given
from hypothesis import strategies as st
from models import assert_same, few_examples
from torch import Tensor

from fairseq_dsp.modules.label_smoothing import distilled_nll, label_smoothed_nll

PAD = 1


def fairseqs(logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return label_smoothed_nll_loss(log_probs, target, smoothing, ignore_index=PAD)


@few_examples
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(1, 9),
    words=st.integers(2, 12),
    smoothing=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_loss_and_gradient_are_fairseq_s(seed, tokens, words, smoothing, scale):
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(tokens, words, generator=draw, dtype=torch.float64)
    target = torch.randint(words, (tokens,), generator=draw)  # padding among them
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = label_smoothed_nll(ours, target, smoothing, PAD), fairseqs(theirs, target, smoothing)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, 1e-9)
    assert not found[1].requires_grad
    (3 * found[0]).backward()
    (3 * expected[0]).backward()
    assert_same(ours.grad, theirs.grad, 1e-9)


def test_the_gradient_may_be_asked_for_twice():
    logits = torch.randn(4, 6, requires_grad=True)
    loss, _ = label_smoothed_nll(logits, torch.tensor([0, 1, 2, 5]), 0.1, PAD)
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, logits)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    logits = torch.randn(300, 40, dtype=dtype, requires_grad=True)
    target = torch.randint(2, 40, (300,))
    loss, nll = label_smoothed_nll(logits, target, 0.1, PAD)
    assert loss.dtype == nll.dtype == torch.float32
    loss.backward()
    other = logits.detach().clone().requires_grad_()
    fairseqs(other, target, 0.1)[0].backward()
    assert logits.grad.dtype == dtype
    assert_same(logits.grad, other.grad, 1e-2)


def test_padding_counts_nothing_whatever_its_logits():
    logits = torch.randn(2, 5)
    logits[1, PAD] = -torch.inf
    logits.requires_grad_()
    loss, nll = label_smoothed_nll(logits, torch.tensor([3, PAD]), 0.0, PAD)
    assert loss.isfinite()
    assert_same(nll, -torch.log_softmax(logits.detach()[0], -1)[3])
    loss.backward()
    assert logits.grad[1].eq(0).all()


class TestTeacher:
    @few_examples
    @given(
        seed=st.integers(0, 2**32 - 1),
        tokens=st.integers(1, 9),
        words=st.integers(2, 12),
        smoothing=st.sampled_from([0.0, 0.1]),
        share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        scale=st.sampled_from([1.0, 30.0]),
    )
    def test_loss_and_gradient_are_those_of_the_formula(self, seed, tokens, words, smoothing, share, scale):
        draw = torch.Generator().manual_seed(seed)
        logits, teacher = (scale * torch.randn(tokens, words, generator=draw, dtype=torch.float64) for _ in range(2))
        target = torch.randint(words, (tokens,), generator=draw)  # padding among them
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        teacher.requires_grad_()
        found, nll, divergence = distilled_nll(ours, target, smoothing, PAD, teacher, share)
        log_probs = theirs.log_softmax(-1)
        apart = log_probs.new_zeros(())
        for token, word in enumerate(target.tolist()):
            if word != PAD:
                for q, log_q, log_p in zip(
                    *(x[token] for x in (teacher.detach().softmax(-1), teacher.detach().log_softmax(-1), log_probs)),
                    strict=True,
                ):
                    apart = apart + q * (log_q - log_p)
        hard, expected_nll = fairseqs(theirs, target, smoothing)
        expected = (1 - share) * hard + share * apart
        for one, other in ((found, expected), (nll, expected_nll), (divergence, apart)):
            assert_same(one, other, 1e-9)
        assert not nll.requires_grad
        assert not divergence.requires_grad
        (3 * found).backward()
        (3 * expected).backward()
        assert_same(ours.grad, theirs.grad, 1e-9)
        assert teacher.grad is None

    def test_that_says_what_the_student_says_pulls_nowhere(self):
        logits = torch.randn(4, 6, requires_grad=True)
        loss, _, divergence = distilled_nll(logits, torch.tensor([0, 2, 3, 5]), 0.1, PAD, logits.detach(), 1.0)
        loss.backward()
        assert divergence.abs() < 1e-6
        assert logits.grad.abs().max() < 1e-6

    def test_may_find_words_impossible_and_counts_nothing_on_padding(self):
        logits, teacher = torch.randn(2, 5), torch.randn(2, 5)
        teacher[:, 2] = -torch.inf
        logits[1, PAD] = -torch.inf
        logits.requires_grad_()
        loss, _, divergence = distilled_nll(logits, torch.tensor([3, PAD]), 0.0, PAD, teacher, 0.5)
        assert loss.isfinite()
        assert divergence.isfinite()
        loss.backward()
        assert logits.grad[0].isfinite().all()
        assert logits.grad[1].eq(0).all()

    def test_in_half_precision_is_summed_in_float32(self):
        logits, teacher = (torch.randn(300, 40, dtype=torch.float16) for _ in range(2))
        logits.requires_grad_()
        target = torch.randint(2, 40, (300,))
        loss, _, divergence = distilled_nll(logits, target, 0.1, PAD, teacher, 0.5)
        assert loss.dtype == divergence.dtype == torch.float32
        loss.backward()
        other = logits.detach().float().requires_grad_()
        distilled_nll(other, target, 0.1, PAD, teacher.float(), 0.5)[0].backward()
        assert logits.grad.dtype == torch.float16
        assert_same(logits.grad.float(), other.grad, 1e-2)
