"""Next-token cross entropy from hidden states and a frozen head, `chunk_size` positions at a time.

The same scheme as chunked_kl: the gradient to the hidden state is formed while a chunk's logits exist.
"""

import torch
from torch import Tensor

from pipeline.losses.logits import compute_logits


def chunked_cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    lm_head_weight: Tensor,
    position_weights: Tensor,
    chunk_size: int = 256,
) -> Tensor:
    """Weighted sum over positions of -log softmax(hidden @ head)[target]; differentiable in `hidden` only.

    Args:
        hidden: final normed hidden states [M, D].
        targets: token ids [M], int64.
        lm_head_weight: [V, D], frozen.
        position_weights: [M].
        chunk_size: positions whose logits exist at one time.

    Returns:
        Scalar in nats, float32 (float64 for float64 inputs).
    """
    return _ChunkedCrossEntropy.apply(hidden, targets, lm_head_weight, position_weights, chunk_size)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        targets: Tensor,
        lm_head_weight: Tensor,
        position_weights: Tensor,
        chunk_size: int,
    ) -> Tensor:
        total = position_weights.new_zeros(())
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, hidden.shape[0], chunk_size):
            part = slice(start, start + chunk_size)
            weights = position_weights[part]
            nll, log_probs = _nll_of_chunk(hidden[part], targets[part], lm_head_weight)
            total += torch.dot(nll.to(weights.dtype), weights)
            if gradient is not None:
                grad_logits = log_probs.exp_()
                grad_logits[torch.arange(len(nll), device=nll.device), targets[part]] -= 1.0
                gradient[part] = grad_logits.mul_(weights[:, None]).to(lm_head_weight.dtype) @ lm_head_weight
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


def _nll_of_chunk(hidden: Tensor, targets: Tensor, lm_head_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods [C] and log-probabilities [C, V]."""
    log_probs = compute_logits(hidden, lm_head_weight)
    log_probs -= log_probs.logsumexp(-1, keepdim=True)
    return -log_probs.gather(-1, targets[:, None]).squeeze(-1), log_probs
