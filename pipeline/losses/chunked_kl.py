"""Exact forward KL(teacher || student) over the whole vocabulary without a positions x vocabulary tensor.

Teacher and student share a frozen head, so the loss is a function of two final hidden states, of which only the
student's needs a gradient.

    KL_i = sum_v p_i(v) (log p_i(v) - log q_i(v)),    d KL_i / d logits_q = q_i - p_i
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.losses.chunked import ChunkedLoss
from pipeline.losses.output_head import OutputHead


def chunked_forward_kl(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    head: OutputHead,
    position_weights: Tensor,
    chunk_size: int = 256,
) -> Tensor:
    """Weighted sum over positions of KL(teacher || student); differentiable in `student_hidden` only.

    Args:
        student_hidden: final normed hidden states [M, D], any float dtype.
        teacher_hidden: the same positions of the teacher [M, D].
        head: the shared frozen one.
        position_weights: [M]; 1/N for a mean over N positions.
        chunk_size: positions whose logits exist at one time.

    Returns:
        Scalar sum_i position_weights[i] * KL_i in nats, float32 (float64 for float64 inputs).
    """

    def loss_of(logits: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        chunk = _kl_of_chunk(logits, head.compute_logits(teacher_hidden[part]))
        return chunk.kl, lambda: chunk.student_log_probs.exp_().sub_(chunk.teacher_probs)

    return ChunkedLoss.apply(student_hidden, head, position_weights, chunk_size, loss_of)


class PositionScores(NamedTuple):
    """One value a position [M], in nats, at least float32."""

    kl: Tensor
    student_nll: Tensor
    teacher_nll: Tensor


@torch.no_grad()
def score_positions(
    student_hidden: Tensor, teacher_hidden: Tensor, targets: Tensor, head: OutputHead, chunk_size: int = 256
) -> PositionScores:
    """KL(teacher || student) and both negative log-likelihoods of `targets` int64 [M], from one pair of logits."""
    parts = []
    for student, teacher, target in zip(
        student_hidden.split(chunk_size), teacher_hidden.split(chunk_size), targets.split(chunk_size), strict=True
    ):
        chunk = _kl_of_chunk(head.compute_logits(student), head.compute_logits(teacher))
        log_q = chunk.student_log_probs.gather(-1, target[:, None]).squeeze(-1)
        log_ratio = chunk.log_ratio.gather(-1, target[:, None]).squeeze(-1)
        parts.append((chunk.kl, -log_q, -log_q - log_ratio))
    return PositionScores(*(torch.cat(values) for values in zip(*parts, strict=True)))


class _Chunk(NamedTuple):
    kl: Tensor  # [C]
    student_log_probs: Tensor  # [C, V]
    teacher_probs: Tensor  # [C, V]
    log_ratio: Tensor  # log p - log q [C, V]


def _kl_of_chunk(student_logits: Tensor, teacher_logits: Tensor) -> _Chunk:
    """Of logits [C, V] each, whose memory becomes the result's."""
    student_log_probs = student_logits.sub_(student_logits.logsumexp(-1, keepdim=True))
    log_ratio = teacher_logits.sub_(teacher_logits.logsumexp(-1, keepdim=True))
    teacher_probs = log_ratio.exp()
    log_ratio -= student_log_probs
    # vecdot would form the product [C, V] first.
    kl = torch.bmm(teacher_probs[:, None, :], log_ratio[:, :, None]).flatten()
    return _Chunk(kl, student_log_probs, teacher_probs, log_ratio)
