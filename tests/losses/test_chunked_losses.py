"""The chunked losses against autograd on whole logits, and their memory."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from pipeline.losses.chunked_ce import chunked_cross_entropy
from pipeline.losses.chunked_kl import chunked_forward_kl, score_positions
from pipeline.losses.output_head import OutputHead

HIDDEN, VOCAB = 12, 57
CHUNKS = [1, 7, 64]


def draw(num_positions, dtype=torch.float64):
    torch.manual_seed(num_positions)
    student = torch.randn(num_positions, HIDDEN, dtype=dtype, requires_grad=True)
    teacher = torch.randn(num_positions, HIDDEN, dtype=dtype)
    head = OutputHead(torch.randn(VOCAB, HIDDEN, dtype=dtype))
    weights = torch.rand(num_positions, dtype=dtype)
    return student, teacher, head, weights


@pytest.mark.parametrize("num_positions", [1, 63, 64, 65])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_kl_and_its_gradient_equal_those_of_whole_logits(num_positions, chunk_size):
    student, teacher, head, weights = draw(num_positions)
    log_q, log_p = F.log_softmax(student @ head.weight.T, -1), F.log_softmax(teacher @ head.weight.T, -1)
    each = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    expected = (each * weights).sum()
    actual = chunked_forward_kl(student, teacher, head, weights, chunk_size)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    grad, expected_grad = (torch.autograd.grad(3.0 * x, student)[0] for x in (actual, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-13)
    targets = torch.randint(VOCAB, (num_positions,))
    scores = score_positions(student, teacher, targets, head, chunk_size)
    torch.testing.assert_close(scores.kl, each, rtol=1e-12, atol=0)
    for nll, hidden in ((scores.student_nll, student), (scores.teacher_nll, teacher)):
        torch.testing.assert_close(nll, F.cross_entropy(hidden @ head.weight.T, targets, reduction="none"))


@pytest.mark.parametrize("num_positions", [1, 63, 64, 65])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_cross_entropy_and_its_gradient_equal_those_of_whole_logits(num_positions, chunk_size):
    student, _, head, weights = draw(num_positions)
    targets = torch.randint(VOCAB, (num_positions,))
    each = F.cross_entropy(student @ head.weight.T, targets, reduction="none")
    expected = (each * weights).sum()
    actual = chunked_cross_entropy(student, targets, head, weights, chunk_size)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    grad, expected_grad = (torch.autograd.grad(3.0 * x, student)[0] for x in (actual, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-13)


def test_numerical_gradient():
    student, teacher, head, weights = draw(5)
    assert torch.autograd.gradcheck(lambda s: chunked_forward_kl(s, teacher, head, weights, 2), student)
    targets = torch.randint(VOCAB, (5,))
    assert torch.autograd.gradcheck(lambda s: chunked_cross_entropy(s, targets, head, weights, 2), student)


def test_kl_of_equal_distributions_is_zero_and_never_negative():
    student, teacher, head, weights = draw(40)
    assert chunked_forward_kl(teacher.clone(), teacher, head, weights).abs() < 1e-14
    assert (score_positions(student.detach(), teacher, torch.zeros(40, dtype=torch.int64), head).kl > 0).all()


def test_no_positions_give_zero_and_a_zero_gradient():
    student, teacher, head, weights = draw(0)
    for loss in (
        chunked_forward_kl(student, teacher, head, weights),
        chunked_cross_entropy(student, torch.zeros(0, dtype=torch.int64), head, weights),
    ):
        assert loss.item() == 0
        assert torch.autograd.grad(loss, student)[0].shape == (0, HIDDEN)


def test_bf16_base_gives_a_float32_loss_near_the_float32_one():
    student, teacher, head, weights = draw(50, torch.float32)
    exact = chunked_forward_kl(student, teacher, head, weights)
    rounded = chunked_forward_kl(student.bfloat16(), teacher.bfloat16(), head.copy_to(torch.bfloat16), weights)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


MEASURE = """
import sys, torch
from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.losses.output_head import OutputHead
torch.set_num_threads(1)
peak = lambda: next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")) * 1024
head = OutputHead(torch.randn(49152, 64))
student, teacher = torch.randn(4096, 64, requires_grad=True), torch.randn(4096, 64)
chunked_forward_kl(student[:1], teacher[:1], head, torch.ones(1)).backward()
before = peak()
chunked_forward_kl(student, teacher, head, torch.full((4096,), 1 / 4096)).backward()
print(peak() - before)
"""


@pytest.mark.slow
def test_peak_memory_is_under_an_eighth_of_the_two_full_logit_tensors():
    grown = int(subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, timeout=120).stdout)
    print(f"peak grew by {grown / 2**20:.0f} MiB; two full logit tensors: {2 * 4096 * 49152 * 4 / 2**20:.0f} MiB")
    assert grown < 2 * 4096 * 49152 * 4 / 8
