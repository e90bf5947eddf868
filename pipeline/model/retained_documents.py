"""Which tokens each document of a forward without a cache retains, and the memory's inputs in the order of drops."""

import torch
from torch import Tensor

from pipeline.ahn.build import Memory
from pipeline.attention.received import received_mass
from pipeline.attention.retention import drop_order
from pipeline.model.plan import DocumentPlan, Span
from pipeline.model.prefix import Prefix
from pipeline.model.score_exchange import HeadScores

Parts = list[tuple[Tensor, Tensor, Tensor]]
"""Of each span queries, and keys and values from its document's first token on, [rows, H, tokens, D]."""


def drop_orders(
    memory: Memory | None, parts: Parts, written: Tensor, plan: DocumentPlan, prefixes: list[Prefix] | None,
    scale: float,
) -> list[Tensor | None]:  # fmt: skip
    """For each span the candidates in the order in which its key-value heads drop them, int64 [rows, Hkv, E]; None
    where nothing is retained or evicted. Collective where ranks share the row; the heads are then this rank's.

    Args:
        memory: the layer's; None in a layer with a sliding window.
        parts: of the spans.
        written: hidden states of the candidates of all spans, [rows, N, hidden]; of a shared row those of this rank's
            tokens, prefixes first [1, n, hidden].
        plan: of the forward.
        prefixes: of the spans, where the row does not hold them.
        scale: the attention's.

    Raises:
        ValueError: tokens are to be retained and the memory has no scorer.
    """
    orders: list[Tensor | None] = [None] * len(plan.spans)
    retaining = [span.document.window for span in plan.spans if span.retains]
    if memory is None or not retaining:
        return orders
    if memory.retention is None:
        raise ValueError(f"{retaining[0]} retains tokens, and the model has no scorer that chooses them")
    received = [
        _received(span, q, k, None if prefixes is None else prefixes[number], scale)
        for number, (span, (q, k, _)) in enumerate(zip(plan.spans, parts, strict=True))
    ]
    exchange = None if plan.shard is None else HeadScores(plan)
    ranges = [span.candidate_positions for span in plan.spans]
    positions = torch.cat([torch.arange(r.start, r.stop, device=written.device) for r in ranges])
    scores = memory.retention.score(written, torch.cat(received, 1), positions, exchange).transpose(1, 2)
    of_spans = scores.split([len(r) for r in ranges], 2)
    return [_drop_order(span, score) for span, score in zip(plan.spans, of_spans, strict=True)]


def _drop_order(span: Span, scores: Tensor) -> Tensor | None:
    if not span.retains:
        return None
    window = span.document.window
    return drop_order(scores, window.num_retained_tokens, window.decision_interval)


def _received(span: Span, q: Tensor, k: Tensor, prefix: Prefix | None, scale: float) -> Tensor:
    """Mass of a span's candidates [rows, N, Hkv]; zeros where it retains none, as its scores mean nothing."""
    if not span.retains:
        return k.new_zeros(k.shape[0], span.num_candidates, k.shape[1])
    received = received_mass(q, k, span.document.window, scale=scale)
    if prefix is not None:
        received[:, :, : span.document.num_before] += prefix.received
    return span.candidates(received.transpose(1, 2))


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
