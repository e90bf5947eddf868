"""Exact forward KL(teacher || student) over the whole vocabulary without a positions x vocabulary tensor.

Teacher and student share a frozen lm_head, so the loss is a function of two final hidden states and only the
student's needs a gradient. Logits exist for `chunk_size` positions at a time; the gradient to the student's
hidden state is formed in the forward pass, while they do, and kept (positions x hidden).

    KL_i = sum_v p_i(v) (log p_i(v) - log q_i(v)),    d KL_i / d logits_q = q_i - p_i
"""

import torch
from torch import Tensor

from pipeline.losses.logits import compute_logits


def chunked_forward_kl(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    lm_head_weight: Tensor,
    position_weights: Tensor,
    chunk_size: int = 256,
) -> Tensor:
    """Weighted sum over positions of KL(teacher || student); differentiable in `student_hidden` only.

    Args:
        student_hidden: final normed hidden states [M, D], any float dtype.
        teacher_hidden: the same positions of the teacher [M, D].
        lm_head_weight: the shared frozen head [V, D].
        position_weights: [M]; 1/N for a mean over N positions.
        chunk_size: positions whose logits exist at one time.

    Returns:
        Scalar sum_i position_weights[i] * KL_i in nats, float32 (float64 for float64 inputs).
    """
    return _ChunkedForwardKL.apply(student_hidden, teacher_hidden, lm_head_weight, position_weights, chunk_size)


@torch.no_grad()
def per_position_kl(
    student_hidden: Tensor, teacher_hidden: Tensor, lm_head_weight: Tensor, chunk_size: int = 256
) -> Tensor:
    """KL(teacher || student) of each position [M], without gradient; arguments as `chunked_forward_kl`."""
    parts = [
        _kl_of_chunk(student, teacher, lm_head_weight)[0]
        for student, teacher in zip(student_hidden.split(chunk_size), teacher_hidden.split(chunk_size), strict=True)
    ]
    return torch.cat(parts)


class _ChunkedForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        student_hidden: Tensor,
        teacher_hidden: Tensor,
        lm_head_weight: Tensor,
        position_weights: Tensor,
        chunk_size: int,
    ) -> Tensor:
        total = position_weights.new_zeros(())
        gradient = torch.empty_like(student_hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, student_hidden.shape[0], chunk_size):
            part = slice(start, start + chunk_size)
            weights = position_weights[part]
            kl, student_log_probs, teacher_probs = _kl_of_chunk(
                student_hidden[part], teacher_hidden[part], lm_head_weight
            )
            total += torch.dot(kl.to(weights.dtype), weights)
            if gradient is not None:
                grad_logits = student_log_probs.exp_().sub_(teacher_probs).mul_(weights[:, None])
                gradient[part] = grad_logits.to(lm_head_weight.dtype) @ lm_head_weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_total: Tensor
    ) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (
            (None if gradient is None else gradient * grad_total.to(gradient.dtype)),
            None,
            None,
            None,
            None,
        )


def _kl_of_chunk(student: Tensor, teacher: Tensor, lm_head_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL [C], student log-probabilities [C, V] and teacher probabilities [C, V]: three C x V tensors in all."""
    student_log_probs = compute_logits(student, lm_head_weight)
    student_log_probs -= student_log_probs.logsumexp(-1, keepdim=True)
    difference = compute_logits(teacher, lm_head_weight)
    difference -= difference.logsumexp(-1, keepdim=True)
    teacher_probs = difference.exp()
    difference -= student_log_probs
    return torch.linalg.vecdot(teacher_probs, difference), student_log_probs, teacher_probs
