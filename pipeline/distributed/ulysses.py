"""Ulysses sequence parallelism: ranks hold tokens outside attention, and heads inside it.

Each rank of a group holds a run of a row's tokens with all heads. `to_heads` turns that into all tokens of the row
with the rank's share of the heads, in one all-to-all; `to_tokens` turns it back. Each is the other's gradient, with
what several ranks did to one key-value head added up. Source: arXiv 2309.14509.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pipeline.distributed.clock import PhaseClock
from pipeline.distributed.head_shares import Share


@dataclass
class SequenceGroup:
    """The ranks that hold one sample together.

    `rank` and `size` are within the group. `bytes_sent` counts what this rank has sent to the others, forward and
    backward; `clock` the time of the exchanges, as its phase `comm`.
    """

    rank: int
    size: int
    process_group: dist.ProcessGroup | None
    clock: PhaseClock = field(default_factory=PhaseClock, compare=False)
    bytes_sent: int = field(default=0, compare=False)

    def exchange(self, send: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]) -> Tensor:
        """All-to-all of a flat tensor's consecutive parts: part i goes to rank i. Collective.

        Returns:
            Flat: what came from rank 0, from rank 1 and so on.
        """
        received = send.new_empty(sum(receive_counts))
        if self.size == 1:
            return received.copy_(send)
        with self.clock.phase("comm"):
            dist.all_to_all_single(received, send, list(receive_counts), list(send_counts), group=self.process_group)
        self.bytes_sent += (send.numel() - send_counts[self.rank]) * send.element_size()
        return received

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, differentiable. Collective."""
        return _Sum.apply(x, self)


def even_counts(num_tokens: int, size: int) -> tuple[int, ...]:
    """Tokens of each rank: runs of a row of `num_tokens`, as equal as can be, longer ones first."""
    return tuple((num_tokens + size - 1 - rank) // size for rank in range(size))


def to_heads(x: Tensor, counts: Sequence[int], shares: Sequence[Share], group: SequenceGroup) -> Tensor:
    """Tokens of this rank with all heads -> all tokens with this rank's heads. Differentiable, collective.

    Args:
        x: [n, H, F], n = counts[group.rank].
        counts: tokens of each rank.
        shares: heads [first, end) of each rank; they may overlap, as when a key-value head is used by several.

    Returns:
        [sum(counts), h, F], tokens in rank order, h the number of this rank's heads.
    """
    return _ToHeads.apply(x, tuple(counts), tuple(shares), group)


def to_tokens(x: Tensor, counts: Sequence[int], shares: Sequence[Share], group: SequenceGroup) -> Tensor:
    """The inverse of `to_heads`, for shares that cover each head once: [N, h, F] -> [n, H, F]."""
    return _ToTokens.apply(x, tuple(counts), tuple(shares), group)


def redistribute(x: Tensor, before: Sequence[int], after: Sequence[int], group: SequenceGroup) -> Tensor:
    """Rows that lie in rank order with before[r] on rank r -> the same with after[r]. Not differentiable, collective.

    Args:
        x: [before[group.rank], F].
    """
    starts, width = [(0, *accumulate(counts)) for counts in (before, after)], x.shape[1]

    def overlap(r: int, s: int) -> int:  # rows that go from rank r to rank s
        first, last = max(starts[0][r], starts[1][s]), min(starts[0][r + 1], starts[1][s + 1])
        return max(0, last - first) * width

    ranks = range(group.size)
    sent, received = [overlap(group.rank, s) for s in ranks], [overlap(r, group.rank) for r in ranks]
    return group.exchange(x.reshape(-1), sent, received).view(-1, width)


def add_heads(x: Tensor, before: Sequence[Share], after: Sequence[Share], group: SequenceGroup) -> Tensor:
    """Brings numbers a head from the ranks that have them to those that shall: [N, h] -> [N, h']. What several ranks
    have for a head is added up in rank order, so that all who get it get the same bits. Not differentiable, collective.

    Args:
        x: of this rank's heads before[group.rank]; N is the same on all ranks.
        before, after: heads [first, end) of each rank.
    """
    (first, _), (first_after, end_after) = before[group.rank], after[group.rank]
    sent = [_common(before[group.rank], share) for share in after]
    received = [_common(share, after[group.rank]) for share in before]
    sizes = [[len(x) * (end - start) for start, end in shares] for shares in (sent, received)]
    send = torch.cat([x[:, start - first : end - first].reshape(-1) for start, end in sent])
    output = x.new_zeros(len(x), end_after - first_after)
    for part, (start, end) in zip(group.exchange(send, *sizes).split(sizes[1]), received, strict=True):
        output[:, start - first_after : end - first_after] += part.view(len(x), end - start)
    return output


def _common(one: Share, other: Share) -> Share:
    """The heads that both have; where none, an empty share within the first."""
    start = min(max(one[0], other[0]), one[1])
    return start, max(start, min(one[1], other[1]))


def _scatter_heads(x: Tensor, counts: Sequence[int], shares: Sequence[Share], group: SequenceGroup) -> Tensor:
    num_tokens, _, width = x.shape
    send = torch.cat([x[:, first:end].reshape(-1) for first, end in shares])
    own = shares[group.rank][1] - shares[group.rank][0]
    received = group.exchange(
        send,
        [num_tokens * (end - first) * width for first, end in shares],
        [count * own * width for count in counts],
    )
    return received.view(sum(counts), own, width)


def _gather_heads(
    x: Tensor, counts: Sequence[int], shares: Sequence[Share], group: SequenceGroup, num_heads: int
) -> Tensor:
    """The transpose of `_scatter_heads`."""
    num_tokens, own, width = counts[group.rank], x.shape[1], x.shape[2]
    received_counts = [num_tokens * (end - first) * width for first, end in shares]
    received = group.exchange(x.reshape(-1), [count * own * width for count in counts], received_counts)
    output = x.new_zeros(num_tokens, num_heads, width)
    for part, (first, end) in zip(received.split(received_counts), shares, strict=True):
        output[:, first:end] += part.view(num_tokens, end - first, width)
    return output


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, counts: tuple[int, ...], shares: tuple[Share, ...], group: SequenceGroup
    ) -> Tensor:
        ctx.layout, ctx.num_heads = (counts, shares, group), x.shape[1]
        return _scatter_heads(x, *ctx.layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _gather_heads(gradient, *ctx.layout, ctx.num_heads), None, None, None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, counts: tuple[int, ...], shares: tuple[Share, ...], group: SequenceGroup
    ) -> Tensor:
        ctx.layout = counts, shares, group
        return _gather_heads(x, *ctx.layout, num_heads=max(end for _, end in shares))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _scatter_heads(gradient, *ctx.layout), None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _all_reduce(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        # Every rank's loss depends on the sum.
        return _all_reduce(gradient, ctx.group), None


def _all_reduce(x: Tensor, group: SequenceGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    if group.size > 1:
        with group.clock.phase("comm"):
            dist.all_reduce(total, group=group.process_group)
        group.bytes_sent += 2 * total.numel() * total.element_size() * (group.size - 1) // group.size  # a ring's
    return total
