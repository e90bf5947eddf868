"""Next-token cross entropy from hidden states and a frozen head, `chunk_size` positions at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.losses.chunked import ChunkedLoss
from pipeline.losses.output_head import OutputHead


def chunked_cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    head: OutputHead,
    position_weights: Tensor,
    chunk_size: int = 256,
) -> Tensor:
    """Weighted sum over positions of -log softmax(head(hidden))[target]; differentiable in `hidden` only.

    Args:
        hidden: final normed hidden states [M, D].
        targets: token ids [M], int64.
        head: frozen.
        position_weights: [M].
        chunk_size: positions whose logits exist at one time.

    Returns:
        Scalar in nats, float32 (float64 for float64 inputs).
    """

    def loss_of(log_probs: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        log_probs -= log_probs.logsumexp(-1, keepdim=True)
        target = targets[part, None]

        def grad_logits() -> Tensor:
            return log_probs.exp_().scatter_add_(-1, target, -torch.ones_like(target, dtype=log_probs.dtype))

        return -log_probs.gather(-1, target).squeeze(-1), grad_logits

    return ChunkedLoss.apply(hidden, head, position_weights, chunk_size, loss_of)
