"""Which tokens each document of a forward without a cache retains, and the memory's inputs in the order of drops."""

import torch
from torch import Tensor

from pipeline.ahn.build import Memory
from pipeline.attention.received import received_mass
from pipeline.attention.retention import drop_order
from pipeline.model.plan import DocumentPlan, Span
from pipeline.model.prefix import Prefix

Parts = list[tuple[Tensor, Tensor, Tensor]]
"""Of each span queries, and keys and values from its document's first token on, [rows, H, tokens, D]."""


def drop_orders(
    memory: Memory | None, parts: Parts, hidden: list[Tensor] | None, plan: DocumentPlan, prefixes: list[Prefix] | None,
    scale: float,
) -> list[Tensor | None]:  # fmt: skip
    """For each span the candidates in the order in which its key-value heads drop them, int64 [rows, Hkv, E]; None
    where nothing is retained or evicted.

    Args:
        memory: the layer's; None in a layer with a sliding window.
        parts: of the spans.
        hidden: each span's hidden states from its document's first token on, [rows, tokens, hidden]; None where ranks
            share the row, which `DocumentPlan` refuses where tokens are retained.
        plan: of the forward.
        prefixes: of the spans, where the row does not hold them.
        scale: the attention's.

    Raises:
        ValueError: tokens are to be retained and the memory has no scorer.
    """
    if hidden is None:
        return [None] * len(plan.spans)
    orders: list[Tensor | None] = []
    for number, (span, (q, k, _), h) in enumerate(zip(plan.spans, parts, hidden, strict=True)):
        window = span.document.window
        if memory is None or not span.num_evicted or not window.num_retained_tokens:
            orders.append(None)
            continue
        if memory.retention is None:
            raise ValueError(f"{window} retains tokens, and the model has no scorer that chooses them")
        received = received_mass(q, k, window, scale=scale)
        if prefixes is not None:
            received[:, :, : span.document.num_before] += prefixes[number].received
        scores = memory.retention.score(span.candidates(h), span.candidates(received.transpose(1, 2)))
        orders.append(drop_order(scores.transpose(1, 2), window.num_retained_tokens, window.decision_interval))
    return orders


def dropped(span: Span, x: Tensor, order: Tensor | None) -> Tensor:
    """Keys or values [rows, Hkv, tokens, D] of a document's dropped tokens, each head's own: [rows, E, Hkv, D]."""
    candidates = span.candidates(x.transpose(1, 2))
    if order is None:
        return candidates
    return candidates.gather(1, order.transpose(1, 2)[..., None].expand(-1, -1, -1, x.shape[3]))


def write_order(orders: list[Tensor | None], plan: DocumentPlan) -> Tensor | None:
    """The orders of all spans together [B, E, Hkv], counted in their candidates together; None if none is retained."""
    like = next((order for order in orders if order is not None), None)
    if like is None:
        return None
    joined, first = [], 0
    for span, order in zip(plan.spans, orders, strict=True):
        if order is None:  # each evicted token in its turn
            order = torch.arange(span.num_evicted, device=like.device).expand(*like.shape[:2], -1)
        joined.append(order.transpose(1, 2) + first)
        first += span.num_candidates
    return torch.cat(joined, 1)
