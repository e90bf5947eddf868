"""The gates of a rank's heads, from the hidden states of the tokens that each rank of the group has."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ahn.base import Gates, MemoryCell
from pipeline.distributed.head_shares import Share
from pipeline.model.plan import DocumentPlan


@dataclass(frozen=True)
class GateExchange:
    """pipeline/ahn/base.py's RankExchange, by heads, for one forward of a sharded row.

    A rank's tokens are its part of the prefixes, where the plan has any, then its part of the row.
    """

    plan: DocumentPlan

    @property
    def heads(self) -> slice:
        shard = self.plan.shard
        return slice(*shard.heads.query[shard.group.rank])

    def recur(self, cell: MemoryCell, q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Tensor:
        return cell.recur(q, k, v, gates, self.heads, cu_seqlens=self.plan.cu_seqlens(q.device))[0]

    def to_writes(self, gate: Tensor) -> Tensor:
        """[1, n, Hq] -> [1, N, h] of the tokens that leave the window."""
        return candidates_to_heads(gate, self.plan.shard.heads.query, self.plan)

    def to_reads(self, gate: Tensor) -> Tensor:
        """[1, n, Hq] -> [1, E, h] of the tokens that read."""
        shard = self.plan.shard
        row = shard.numbers_to_heads(gate, shard.heads.query)
        return torch.cat([span.reading(span.take(row, 1)) for span in self.plan.spans], 1)

    def sum(self, x: Tensor) -> Tensor:
        return self.plan.shard.group.sum(x)


def candidates_to_heads(x: Tensor, shares: Sequence[Share], plan: DocumentPlan) -> Tensor:
    """Numbers a token and head, [1, n, H] of this rank's tokens (of the prefixes, then of the row) -> [1, N, h] of all
    spans' tokens that leave the window and this rank's share of the heads. Differentiable, collective."""
    if plan.prefixes is None:
        row = plan.shard.numbers_to_heads(x, shares)
        return torch.cat([span.candidates(span.take(row, 1)) for span in plan.spans], 1)
    num_before = x.shape[1] - plan.shard.own_count
    prefixes = plan.prefixes.shard.numbers_to_heads(x[:, :num_before], shares)
    row = plan.shard.numbers_to_heads(x[:, num_before:], shares)
    lengths = [document.num_before for document in plan.documents]
    wholes = [
        torch.cat([before, span.take(row, 1)], 1)
        for span, before in zip(plan.spans, prefixes.split(lengths, 1), strict=True)
    ]
    return torch.cat([span.candidates(whole) for span, whole in zip(plan.spans, wholes, strict=True)], 1)
