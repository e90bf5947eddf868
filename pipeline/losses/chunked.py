"""What the chunked losses share: a weighted sum over positions whose logits exist for one chunk at a time.

The head is frozen, so only the hidden state needs a gradient; it is formed in the forward pass while a chunk's logits
exist, and kept (positions x hidden).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

ChunkLoss = Callable[[slice], tuple[Tensor, Callable[[], Tensor]]]
"""Positions -> their losses [C], and a function that gives their gradients to the logits [C, V] (may reuse memory)."""


def compute_logits(hidden: Tensor, lm_head_weight: Tensor) -> Tensor:
    """Logits [C, V] in at least float32, from a product in the head's own dtype as the base computes them."""
    logits = hidden.to(lm_head_weight.dtype) @ lm_head_weight.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class ChunkedLoss(torch.autograd.Function):
    """sum_i position_weights[i] * loss_i, differentiable in `hidden` [M, D] only."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        lm_head_weight: Tensor,
        position_weights: Tensor,
        chunk_size: int,
        loss_of: ChunkLoss,
    ) -> Tensor:
        total = position_weights.new_zeros(())
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], chunk_size):
            part = slice(start, start + chunk_size)
            losses, grad_logits = loss_of(part)
            weights = position_weights[part]
            total += torch.dot(losses.to(weights.dtype), weights)
            if gradient is not None:
                gradient[part] = grad_logits().mul_(weights[:, None]).to(lm_head_weight.dtype) @ lm_head_weight
            del grad_logits  # and with it this chunk's logits, before the next chunk's are made
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_total: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else gradient * grad_total.to(gradient.dtype)), None, None, None, None
