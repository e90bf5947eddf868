"""What the chunked losses share: a weighted sum over positions whose logits exist for one chunk at a time.

The head is frozen, so only the hidden state needs a gradient; it is formed in the forward pass while a chunk's logits
exist, and kept (positions x hidden).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pipeline.losses.output_head import OutputHead

ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Callable[[], Tensor]]]
"""Logits [C, V] of positions, and which these are -> their losses [C], and a function that gives their gradients to
the logits [C, V]. Both may reuse the logits' memory."""


class ChunkedLoss(torch.autograd.Function):
    """sum_i position_weights[i] * loss_i, differentiable in `hidden` [M, D] only."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        head: OutputHead,
        position_weights: Tensor,
        chunk_size: int,
        loss_of: ChunkLoss,
    ) -> Tensor:
        total = position_weights.new_zeros(())
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], chunk_size):
            part = slice(start, start + chunk_size)
            logits = head.compute_logits(hidden[part])
            slopes = None if gradient is None else head.slopes(logits)
            losses, grad_logits = loss_of(logits, part)
            weights = position_weights[part]
            total += torch.dot(losses.to(weights.dtype), weights)
            if gradient is not None:
                gradient[part] = head.pull_back(grad_logits().mul_(weights[:, None]), slopes)
            del logits, slopes, grad_logits  # before the next chunk's are made
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_total: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else gradient * grad_total.to(gradient.dtype)), None, None, None, None
