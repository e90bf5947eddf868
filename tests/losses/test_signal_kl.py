"""One loss for every kind of signal, and none of it lost on the way from the teacher's hidden states."""

import numpy as np
import pytest
import torch

from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.losses.output_head import OutputHead
from pipeline.losses.signal_kl import chunked_signal_kl, hidden_tensor
from pipeline.teacher.extract import extract_signal
from pipeline.teacher.signals import HiddenSpec, SampledSpec, TopKSpec, signal_from_members

NUM_POSITIONS, HIDDEN, VOCABULARY = 65, 16, 211


def draw(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, OutputHead]:
    generator = torch.Generator().manual_seed(0)
    shapes = (NUM_POSITIONS, HIDDEN), (NUM_POSITIONS, HIDDEN), (VOCABULARY, HIDDEN)
    student, teacher, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return student, teacher, OutputHead(weight)


def read_back(spec, teacher, head):
    """The signal as it comes out of a file: arrays that nobody may write to."""
    signal = extract_signal(spec, teacher, head, "key", np.arange(len(teacher)))
    members = signal.to_members()
    for array in members.values():
        array.flags.writeable = False
    return signal_from_members(spec, members, len(teacher))


def loss_and_gradient(student, loss_of):
    student = student.clone().requires_grad_()
    loss = loss_of(student)
    return loss.item(), torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_teacher_in_bfloat16_loses_nothing(stored):
    """Loss and gradient of the same student are equal to the last bit."""
    student, teacher, head = draw(torch.bfloat16)
    weights = torch.rand(NUM_POSITIONS)
    signal = read_back(HiddenSpec(stored, HIDDEN), teacher, head)
    due, due_gradient = loss_and_gradient(student, lambda s: chunked_forward_kl(s, teacher, head, weights, 17))
    found, gradient = loss_and_gradient(student, lambda s: chunked_signal_kl(s, signal, head, weights, 17))
    assert due > 1 and found == due and torch.equal(gradient, due_gradient) and gradient.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("spec", "relative"),
    [
        (HiddenSpec("float32", HIDDEN), 1e-6),
        (HiddenSpec("float16", HIDDEN), 1e-3),
        (HiddenSpec("bfloat16", HIDDEN), 1e-2),
        (HiddenSpec("int8", HIDDEN), 2e-2),
        (TopKSpec(VOCABULARY, VOCABULARY), 5e-3),
        (SampledSpec(65_535, 0, VOCABULARY), 2e-2),
    ],
)
def test_a_teacher_in_float32_loses_what_the_signal_rounds(spec, relative):
    student, teacher, head = draw(torch.float32)
    weights = torch.full((NUM_POSITIONS,), 1 / NUM_POSITIONS)
    signal = read_back(spec, teacher, head)
    due, due_gradient = loss_and_gradient(student, lambda s: chunked_forward_kl(s, teacher, head, weights, 17))
    found, gradient = loss_and_gradient(student, lambda s: chunked_signal_kl(s, signal, head, weights, 17))
    assert found == pytest.approx(due, rel=relative)
    assert (gradient - due_gradient).norm() <= relative * due_gradient.norm()


def test_int8_hidden_states_are_those_of_the_signal():
    _, teacher, head = draw(torch.float32)
    signal = read_back(HiddenSpec("int8", HIDDEN), teacher, head)
    assert np.array_equal(hidden_tensor(signal, torch.device("cpu")).numpy(), signal.decode())
