"""Rows of other ranks, fetched over a sequence-parallel group: a window's halo, sinks, states that are handed on.

A row lies spread over the group, rank r holding the next counts[r] of it. Each rank needs runs of it that others hold;
one all-to-all brings each rank exactly those, and in the backward pass takes their gradients home, where what several
ranks did to one row is added up.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pipeline.distributed.ulysses import SequenceGroup

Run = tuple[int, int]
"""Rows [start, end)."""


def fetch_runs(x: Tensor, counts: Sequence[int], needed: Sequence[Sequence[Run]], group: SequenceGroup) -> Tensor:
    """The rows that this rank needs. Differentiable, collective; ranks that need none take part as well.

    Every rank must also take part in the backward pass: `x` must require gradients on all or on none, and each rank's
    loss must depend on its result, be it empty.

    Args:
        x: [n, F], n = counts[group.rank].
        counts: rows of each rank.
        needed: runs of the whole row for each rank; each rank's rise and do not overlap.

    Returns:
        [m, F], the rows of needed[group.rank] in order.
    """
    return _FetchRuns.apply(x, tuple(counts), tuple(map(tuple, needed)), group)


def _overlaps(counts: Sequence[int], owner: int, runs: Sequence[Run]) -> list[Run]:
    """The parts of `runs` that the owner has, counted from its first row."""
    end = sum(counts[: owner + 1])
    start = end - counts[owner]
    parts = ((max(start, first) - start, min(end, last) - start) for first, last in runs)
    return [(first, last) for first, last in parts if first < last]


def _num_rows(runs: Sequence[Run]) -> int:
    return sum(last - first for first, last in runs)


class _FetchRuns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, counts: tuple[int, ...], needed: tuple[tuple[Run, ...], ...], group: SequenceGroup
    ) -> Tensor:
        width, ranks = x.shape[1], range(group.size)
        ctx.group, ctx.shape = group, x.shape
        ctx.leaving = [_overlaps(counts, group.rank, needed[rank]) for rank in ranks]
        ctx.sent = [_num_rows(runs) * width for runs in ctx.leaving]
        ctx.received = [_num_rows(_overlaps(counts, rank, needed[group.rank])) * width for rank in ranks]
        send = torch.cat([x[:0], *(x[first:last] for runs in ctx.leaving for first, last in runs)])
        # Ranks hold rising parts of the row, so what comes rank after rank is in the order of the runs.
        return group.exchange(send.flatten(), ctx.sent, ctx.received).view(-1, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        width = ctx.shape[1]
        returned = ctx.group.exchange(gradient.reshape(-1), ctx.received, ctx.sent).view(-1, width)
        total = gradient.new_zeros(ctx.shape)
        runs = [run for runs in ctx.leaving for run in runs]
        ends = list(accumulate(last - first for first, last in runs))
        for (first, last), end in zip(runs, ends, strict=True):
            total[first:last] += returned[end - (last - first) : end]
        return total, None, None, None
