"""The sparse losses against autograd on whole logits, their limits, and the statistics of the sampled one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.losses.output_head import OutputHead
from pipeline.losses.sparse_kl import chunked_sampled_kl, chunked_topk_kl
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.signals import SampledSpec

HIDDEN = 6
SHAPES = [(1, 7), (63, 100), (64, 100), (65, 7), (100, 100), (3, 151_936)]
CHUNKS = [1, 7, 64]


def draw(num_positions, vocab_size, dtype=torch.float64, hidden_size=HIDDEN):
    torch.manual_seed(num_positions + vocab_size)
    student = torch.randn(num_positions, hidden_size, dtype=dtype, requires_grad=True)
    teacher = torch.randn(num_positions, hidden_size, dtype=dtype)
    head = OutputHead(torch.randn(vocab_size, hidden_size, dtype=dtype))
    return student, teacher, head, torch.rand(num_positions, dtype=dtype)


def top_k(teacher, head, k):
    log_p = F.log_softmax(teacher @ head.weight.T, -1)
    log_probs, ids = log_p.topk(k, -1)
    return ids, log_probs, log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)


def some_draws(teacher, head, num_draws):
    """Padded ids, counts and entropy as the loss takes them, and p^ over the whole vocabulary."""
    signal = extract_signal(SampledSpec(num_draws, 3, len(head.weight)), teacher, head, "key", np.arange(len(teacher)))
    ids, counts, entropy = map(torch.from_numpy, (*signal.padded(), signal.entropy))
    p_hat = torch.zeros(len(teacher), len(head.weight), dtype=teacher.dtype)
    return ids, counts, entropy, p_hat.scatter_add_(-1, ids, counts.to(teacher.dtype)) / num_draws


def naive_topk(student, head, ids, log_probs, log_tail, tail):
    q, p = F.softmax(student @ head.weight.T, -1), log_probs.exp()
    q_k = q.gather(-1, ids)
    if tail == "renormalise":
        p = p / p.sum(-1, keepdim=True)
        return (p * (p.log() - q_k.log())).sum(-1)
    rest = torch.ones_like(q).scatter(-1, ids, 0)
    q_tail, p_tail = (q * rest).sum(-1), log_tail.exp()
    return (p * (log_probs - q_k.log())).sum(-1) + p_tail * (log_tail - q_tail.log())


def assert_equal_to(actual, expected, student):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)
    grad, expected_grad = (torch.autograd.grad(3.0 * x, student)[0] for x in (actual, expected))
    assert expected_grad.abs().max() > 1e-3
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_top_k_loss_and_its_gradient_equal_those_of_whole_logits(shape, tail):
    student, teacher, head, weights = draw(*shape)
    for k in (1, 5):
        sparse = top_k(teacher, head, k)
        for chunk_size in CHUNKS:
            actual = chunked_topk_kl(student, *sparse, head, weights, chunk_size, tail)
            assert_equal_to(actual, (naive_topk(student, head, *sparse, tail) * weights).sum(), student)


@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_loss_and_its_gradient_equal_those_of_whole_logits(shape):
    student, teacher, head, weights = draw(*shape)
    ids, counts, entropy, p_hat = some_draws(teacher, head, 20)
    for chunk_size in CHUNKS:
        actual = chunked_sampled_kl(student, ids, counts, entropy, head, weights, chunk_size)
        log_q = F.log_softmax(student @ head.weight.T, -1)
        assert_equal_to(actual, -(((p_hat * log_q).sum(-1) + entropy) * weights).sum(), student)


def test_numerical_gradients():
    student, teacher, head, weights = draw(5, 9)
    sparse, sampled = top_k(teacher, head, 3), some_draws(teacher, head, 6)[:3]
    for tail in ("bucket", "renormalise"):
        assert torch.autograd.gradcheck(lambda s, t=tail: chunked_topk_kl(s, *sparse, head, weights, 2, t), student)
    assert torch.autograd.gradcheck(lambda s: chunked_sampled_kl(s, *sampled, head, weights, 2), student)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_the_whole_vocabulary_as_top_k_is_the_dense_kl(tail):
    student, teacher, head, weights = draw(65, 100)
    sparse = top_k(teacher, head, 100)
    assert (sparse[2] == -torch.inf).all()
    dense, actual = (chunked_forward_kl(student, teacher, head, weights),
                     chunked_topk_kl(student, *sparse, head, weights, tail=tail))  # fmt: skip
    assert actual.item() == pytest.approx(dense.item(), rel=1e-9)
    grads = [torch.autograd.grad(x, student)[0] for x in (actual, dense)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_bucket_rises_with_k_to_the_dense_kl_and_is_zero_for_equal_distributions():
    student, teacher, head, weights = draw(40, 100)
    dense = chunked_forward_kl(student, teacher, head, weights).item()
    losses = [chunked_topk_kl(student, *top_k(teacher, head, k), head, weights).item() for k in (1, 5, 20, 50, 99, 100)]
    assert losses == sorted(losses) and 0 < losses[0] < 0.9 * dense
    assert losses[-2] == pytest.approx(dense, rel=1e-12)  # a bucket of one token is that token
    own, sparse = teacher.clone().requires_grad_(), top_k(teacher, head, 5)
    bucket = chunked_topk_kl(own, *sparse, head, weights)
    assert bucket.abs() < 1e-13 and torch.autograd.grad(bucket, own)[0].abs().max() < 1e-13
    known_mass = sparse[1].exp().sum(-1)
    assert known_mass.max() < 0.999
    renormalised = chunked_topk_kl(own, *sparse, head, weights, tail="renormalise")
    assert renormalised.item() == pytest.approx(-(weights * known_mass.log()).sum().item())


def test_float16_log_probs_stay_near_the_exact_loss():
    student, teacher, head, weights = draw(100, 100, torch.float32)
    ids, log_probs, log_tail = top_k(teacher, head, 20)
    exact = chunked_topk_kl(student, ids, log_probs, log_tail, head, weights)
    rounded = chunked_topk_kl(student, ids, log_probs.half(), log_tail, head, weights)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-3)


def test_a_tail_whose_mass_underflows_has_a_finite_loss_and_gradient():
    """The student's logits differ by 400: the mass of its tail is below the smallest float32."""
    head = OutputHead(torch.tensor([[200.0], [190.0], [-200.0], [-201.0]]))
    student = torch.ones(1, 1, requires_grad=True)
    ids, log_probs = torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]]).log()
    loss = chunked_topk_kl(student, ids, log_probs, torch.tensor([0.1]).log(), head, torch.ones(1))
    exact = student.detach().double().requires_grad_()
    tail = torch.tensor([0.1]).log().double()
    double = naive_topk(exact, head.copy_to(torch.float64), ids, log_probs.double(), tail, "bucket")
    assert loss.item() == pytest.approx(double.item(), rel=1e-6) and loss.item() > 40
    (grad,), (expected,) = torch.autograd.grad(loss, student), torch.autograd.grad(double.sum(), exact)
    assert grad.item() == pytest.approx(expected.item(), rel=1e-5) and grad.item() > 40


@pytest.mark.parametrize("log_tail", [-torch.inf, -60.0])
def test_a_teacher_without_or_almost_without_a_tail_or_with_impossible_tokens(log_tail):
    student, _, head, weights = draw(4, 9)
    ids, log_probs = torch.arange(3).repeat(4, 1), torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    loss = chunked_topk_kl(student, ids, log_probs.repeat(4, 1), torch.full((4,), log_tail), head, weights)
    expected = -(F.log_softmax(student @ head.weight.T, -1)[:, :2].mean(-1) + np.log(2)) @ weights
    assert_equal_to(loss, expected, student)


def test_no_positions_give_zero_and_a_zero_gradient():
    student, teacher, head, weights = draw(0, 7)
    for loss in (
        chunked_topk_kl(student, *top_k(teacher, head, 3), head, weights),
        chunked_sampled_kl(student, *some_draws(teacher, head, 3)[:3], head, weights),
    ):
        assert loss.item() == 0
        assert torch.autograd.grad(loss, student)[0].shape == (0, HIDDEN)


def test_order_and_company_of_positions_do_not_matter():
    student, teacher, head, weights = draw(65, 100)
    sparse, draws = top_k(teacher, head, 5), some_draws(teacher, head, 20)[:3]
    order = torch.randperm(65)

    def gradient(hidden, weights, rows):
        hidden = hidden.detach().requires_grad_()
        topk = chunked_topk_kl(hidden, *(t[rows] for t in sparse), head, weights, 16)
        sampled = chunked_sampled_kl(hidden, *(t[rows] for t in draws), head, weights, 16)
        return torch.stack([torch.autograd.grad(loss, hidden)[0] for loss in (topk, sampled)])

    whole = gradient(student, weights, torch.arange(65))
    torch.testing.assert_close(gradient(student[order], weights[order], order), whole[:, order], rtol=1e-12, atol=1e-15)


def test_a_teacher_with_one_token_gives_its_dense_kl_at_every_draw():
    head = OutputHead(torch.eye(5, dtype=torch.float64) * 900)
    torch.manual_seed(0)
    student, weights = torch.rand(4, 5, dtype=torch.float64, requires_grad=True), torch.rand(4, dtype=torch.float64)
    teacher = torch.eye(5, dtype=torch.float64)[:4]
    ids, counts, entropy, _ = some_draws(teacher, head, 7)
    assert ids.flatten().tolist() == [0, 1, 2, 3] and entropy.tolist() == [0.0] * 4
    dense = chunked_forward_kl(student, teacher, head, weights)
    assert dense.item() > 100
    assert_equal_to(chunked_sampled_kl(student, ids, counts, entropy, head, weights), dense, student)


def test_the_mean_loss_and_gradient_over_draws_converge_to_the_dense_ones():
    """One position drawn again and again, N draws each time. The squared error of the mean of R gradients has the
    mean trace(Cov) / (R N), Cov being that of one draw's row of the head; that of the mean of R losses has the
    mean Var(log q) / (R N)."""
    num_draws, vocab_size, hidden_size = 50, 60, 16
    student, teacher, head, _ = draw(1, vocab_size, hidden_size=hidden_size)
    teacher *= 0.25  # flat enough to have a tail
    dense_kl = chunked_forward_kl(student, teacher, head, torch.ones(1, dtype=torch.float64))
    dense = torch.autograd.grad(dense_kl, student)[0][0]
    p = F.softmax(teacher @ head.weight.T, -1)[0]
    trace = (p @ head.weight.square().sum(1) - (p @ head.weight).square().sum()).item()
    repeats = 10_000
    spec = SampledSpec(num_draws, 0, vocab_size)
    signal = extract_signal(spec, teacher.expand(repeats, -1), head, "key", np.arange(repeats))
    repeated = student.detach().repeat(repeats, 1).requires_grad_()
    sampled = [torch.from_numpy(array) for array in (*signal.padded(), signal.entropy)]
    loss = chunked_sampled_kl(repeated, *sampled, head, torch.ones(repeats, dtype=torch.float64), 1000)
    grads = torch.autograd.grad(loss, repeated)[0]

    for averaged in (1, 10, 100, 1000, 10_000):
        means = grads.view(-1, averaged, hidden_size).mean(1)
        squared = (means - dense).square().sum(1).mean().item()
        ratio = squared / (trace / (averaged * num_draws))
        print(f"mean of {averaged} x {num_draws} draws: relative error {squared**0.5 / dense.norm():.4f}, "
              f"squared error / expected {ratio:.2f}")  # fmt: skip
        assert 0.1 < ratio < 3 if averaged > 1000 else 0.5 < ratio < 1.6
    log_q = F.log_softmax(student @ head.weight.T, -1)[0]
    variance = (p @ log_q.square() - (p @ log_q).square()).item()
    deviations = (loss.item() / repeats - dense_kl.item()) / (variance / (repeats * num_draws)) ** 0.5
    print(f"mean loss {loss.item() / repeats:.5f}, dense KL {dense_kl.item():.5f}: {deviations:.2f} deviations off")
    assert abs(deviations) < 3
    plug_in = torch.special.entr(sampled[1] / num_draws).sum(-1).mean().item()
    assert signal.entropy[0] - plug_in > 20 * (variance / (repeats * num_draws)) ** 0.5, "no bias would be seen"

    biased = chunked_topk_kl(student, *top_k(teacher, head, 10), head, torch.ones(1), tail="renormalise")
    error = (torch.autograd.grad(biased, student)[0][0] - dense).square().sum()
    assert error > 10 * trace / (repeats * num_draws), "the bound above would not see a bias"


MEASURE = r"""
import re, numpy as np, torch
from pipeline.losses.output_head import OutputHead
from pipeline.losses.sparse_kl import chunked_sampled_kl, chunked_topk_kl
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.signals import SampledSpec, TopKSpec
torch.set_num_threads(1)
def peak():  # of this process alone: getrusage's begins at its parent's size
    return int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) * 1024
head, teacher = OutputHead(torch.randn(49152, 16)), torch.randn(1024, 16)
def distil(count):
    student, weights, positions = torch.randn(count, 16, requires_grad=True), torch.ones(count), np.arange(count)
    topk = extract_signal(TopKSpec(50, 49152), teacher[:count], head, "key", positions, 32)
    ids = torch.from_numpy(topk.ids.astype(np.int64))
    log_probs, log_tail = torch.from_numpy(topk.log_probs), torch.from_numpy(topk.log_tail)
    chunked_topk_kl(student, ids, log_probs, log_tail, head, weights, 32).backward()
    sampled = extract_signal(SampledSpec(50, 0, 49152), teacher[:count], head, "key", positions, 32)
    draws = map(torch.from_numpy, (*sampled.padded(), sampled.entropy))
    chunked_sampled_kl(student, *draws, head, weights, 32).backward()
distil(1)
before = peak()
distil(1024)
print(peak() - before)
"""


@pytest.mark.slow
def test_extraction_and_losses_never_hold_positions_by_vocabulary():
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # freed blocks go back at once: no fragments are counted
    run = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, timeout=120, env=exact)
    grown, one_tensor = int(run.stdout), 1024 * 49152 * 4
    print(f"peak grew by {grown / 2**20:.0f} MiB; one full logit tensor: {one_tensor / 2**20:.0f} MiB")
    assert grown < one_tensor / 4
