"""Distillation from a part of the teacher's distribution: the K most probable tokens, or draws from it.

Only the sparse targets and one chunk of the student's logits exist at a time. With q the student's distribution over
the whole vocabulary and p the teacher's, of which p_k are known, the losses of a position are

    bucket:       sum_k p_k (log p_k - log q_k) + p_tail (log p_tail - log q_tail),   q_tail = sum of q over the rest
    renormalise:  sum_k p'_k (log p'_k - log q_k),                                   p' = p_k / sum_k p_k
    sampled:      -sum_i p^_i log q_i - H(p),                                        p^_i = count_i / num_draws

with H(p) the teacher's entropy, and their gradients to the student's logits

    bucket:       q_k - p_k on the known tokens, (q_tail - p_tail) q_v / q_tail on the rest
    renormalise:  q - p',   sampled:  q - p^.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pipeline.losses.chunked import ChunkedLoss
from pipeline.losses.output_head import OutputHead

Tail = Literal["bucket", "renormalise"]


def chunked_topk_kl(
    student_hidden: Tensor,
    ids: Tensor,
    log_probs: Tensor,
    log_tail: Tensor,
    head: OutputHead,
    position_weights: Tensor,
    chunk_size: int = 256,
    tail: Tail = "bucket",
) -> Tensor:
    """Weighted sum over positions of a KL from the teacher's K most probable tokens; differentiable in the student.

    `bucket` is the exact forward KL between both distributions once all tokens outside the K are merged into one: a
    lower bound of the dense KL, which says how much mass the rest gets but not where within the rest. It is rescaled
    to a total of 1, which undoes the rounding of `log_probs`. `renormalise` is the forward KL from the teacher cut
    down to its K tokens to the student's whole distribution: it drives the student's mass out of the rest, and at
    student = teacher it is -log sum_k p_k and not 0; for comparison with other work.

    Args:
        student_hidden: final normed hidden states [M, D], any float dtype.
        ids: the teacher's K tokens, int64 [M, K], distinct within a position.
        log_probs: their log-probabilities [M, K], any float dtype; -inf allowed.
        log_tail: log of the teacher's remaining mass [M], any float dtype; -inf for none, as with K = V.
        head: the shared frozen one.
        position_weights: [M]; 1/N for a mean over N positions.
        chunk_size: positions whose logits exist at one time.
        tail: what becomes of the remaining mass.

    Returns:
        Scalar in nats, float32 (float64 for float64 inputs).
    """

    def loss_of(logits: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        log_q = logits.sub_(logits.logsumexp(-1, keepdim=True))
        known, rest = log_probs[part].to(log_q.dtype), log_tail[part, None].to(log_q.dtype)
        if tail == "bucket":
            return _bucket_loss(log_q, ids[part], torch.cat([known, rest], 1).log_softmax(-1))
        return _cross_entropy(log_q, ids[part], known.softmax(-1), known.log_softmax(-1))

    return ChunkedLoss.apply(student_hidden, head, position_weights, chunk_size, loss_of)


def chunked_sampled_kl(
    student_hidden: Tensor,
    ids: Tensor,
    counts: Tensor,
    entropy: Tensor,
    head: OutputHead,
    position_weights: Tensor,
    chunk_size: int = 256,
) -> Tensor:
    """Weighted sum over positions of a KL estimated from tokens drawn from the teacher; differentiable in the student.

    A position's is -sum_i p^_i log q_i - H(p): the cross entropy to the draws, less the teacher's own entropy. Over
    the draws its mean is exactly the dense KL, and the mean of its gradient that of the dense KL (arXiv 2503.16870,
    with the teacher itself as the proposal); one value may be negative. The entropy must be that of the whole
    distribution, which has no part in the gradient: estimated from the draws it would bias the value.

    Args:
        student_hidden: final normed hidden states [M, D], any float dtype.
        ids: drawn tokens, int64 [M, L]; rows are padded with any id of count 0.
        counts: how often each was drawn [M, L], integers; each row has at least one draw.
        entropy: of the teacher's whole distribution [M], in nats, any float dtype.
        head: the shared frozen one.
        position_weights: [M]; 1/N for a mean over N positions.
        chunk_size: positions whose logits exist at one time.

    Returns:
        Scalar in nats, float32 (float64 for float64 inputs).
    """

    def loss_of(logits: Tensor, part: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        log_q = logits.sub_(logits.logsumexp(-1, keepdim=True))
        drawn = counts[part].to(log_q.dtype)
        p_hat = drawn / drawn.sum(-1, keepdim=True)
        losses, grad_logits = _cross_entropy(log_q, ids[part], p_hat, torch.zeros_like(p_hat))
        return losses - entropy[part], grad_logits

    return ChunkedLoss.apply(student_hidden, head, position_weights, chunk_size, loss_of)


def _dot_log_ratio(probs: Tensor, log_probs: Tensor, log_q: Tensor) -> Tensor:
    """Sum over the last axis of p (log p - log q), 0 where p is 0 whatever the logarithms."""
    return torch.where(probs > 0, probs * (log_probs - log_q), 0).sum(-1)


def _cross_entropy(log_q: Tensor, ids: Tensor, probs: Tensor, log_probs: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    losses = _dot_log_ratio(probs, log_probs, log_q.gather(-1, ids))
    # scatter_add and not scatter: padding may repeat an id
    return losses, lambda: log_q.exp_().scatter_add_(-1, ids, -probs)


def _bucket_loss(log_q: Tensor, ids: Tensor, log_probs: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """`log_probs` [C, K + 1] with the tail last. The tail's mass is summed, never 1 - sum: it may be far below 1e-7."""
    known = log_q.gather(-1, ids)
    rest = log_q.scatter_(-1, ids, -torch.inf)
    log_q_tail = rest.logsumexp(-1, keepdim=True)  # -inf iff K = V; its exponential may underflow, it does not
    log_q_all, probs = torch.cat([known, log_q_tail], 1), log_probs.exp()

    def grad_logits() -> Tensor:
        difference = log_q_all.exp() - probs
        within_tail = rest.sub_(log_q_tail).exp_()  # finite where q_tail underflows; nan with K = V, all overwritten
        return within_tail.mul_(difference[:, -1:]).scatter_(-1, ids, difference[:, :-1])

    return _dot_log_ratio(probs, log_probs, log_q_all), grad_logits
