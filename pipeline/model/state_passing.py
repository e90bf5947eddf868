"""A memory handed from rank to rank, without any rank waiting for the one before it.

Each rank finds out what its run of writes does to any state (pipeline/ahn/passage.py), the ranks exchange that once,
and each puts together the state that reaches it. For a document that goes on from the rank before, the recurrence of
the delta rules costs 1.7 to 1.8 times as much (values of twice the width), Mamba2's 1.2 times.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.ahn.base import ALL_HEADS, Gates, MemoryCell
from pipeline.ahn.passage import Passage, pass_through
from pipeline.distributed.halo import Run, fetch_runs
from pipeline.model.halo_plan import HaloPlan
from pipeline.model.sequence_shard import SequenceShard


@dataclass(frozen=True)
class StatePassing:
    """pipeline/ahn/base.py's RankExchange, by tokens, for one layer of a sharded row."""

    plan: HaloPlan
    shard: SequenceShard
    heads: ClassVar[slice] = ALL_HEADS

    def to_writes(self, gate: Tensor) -> Tensor:
        """[1, n, Hq] of this rank's tokens -> [1, E, Hq] of those that its tokens evict, of ranks before first."""
        fetched = fetch_runs(gate[0], self.shard.counts, self.plan.evicted_runs, self.shard.group)
        return torch.cat([fetched[None], *(self._part(gate, s.own_writes) for s in self.plan.segments)], 1)

    def to_reads(self, gate: Tensor) -> Tensor:
        """[1, n, Hq] of this rank's tokens -> [1, E, Hq] of those that read."""
        return torch.cat([self._part(gate, s.reads) for s in self.plan.segments], 1)

    def _part(self, gate: Tensor, run: Run) -> Tensor:
        return gate[:, self.shard.part(*run)]

    def sum(self, x: Tensor) -> Tensor:
        return x  # of all heads: they are all here

    def recur(self, cell: MemoryCell, q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Tensor:
        """Outputs [1, E, Hq, D]: first of the document that goes on, if one does, then of those that begin here."""
        plan, passage, state, outputs = self.plan, None, None, []
        num_entered = plan.first.num_reads if plan.enters else 0
        num_beginning, cu_seqlens = self._beginning(q.device)

        def of(reads: slice) -> tuple[Tensor, Tensor, Tensor, Gates]:
            return q[:, reads], k[:, reads], v[:, reads], {name: gate[:, reads] for name, gate in gates.items()}

        if plan.enters:
            passage = cell.passage(*of(slice(num_entered)))
        if num_beginning or not plan.enters:
            options = {"output_final_state": True, "cu_seqlens": cu_seqlens}
            output, state = cell.recur(*of(slice(num_entered, None)), ALL_HEADS, **options)
            outputs.append(output)
        handed = self._handed_on(passage, state)
        # With nothing to hand on, still part of the graph: the exchange's backward pass needs every rank.
        handed = torch.cat([next(iter(gates.values())).flatten()[:0], *(x.flatten() for x in handed)])
        arrived = self._exchange(handed, cell, q)
        if passage is None:
            return outputs[0] + arrived.sum()  # nothing arrived; tied as above
        return torch.cat([passage.read(self._fold(arrived, cell, q)), *outputs], 1)

    def _beginning(self, device: torch.device) -> tuple[int, Tensor | None]:
        """How many documents that begin here are read, and the bounds of their reads; None for one."""
        segments = self.plan.segments[1:] if self.plan.enters else self.plan.segments
        lengths = [s.num_reads for s in segments if s.num_reads]
        bounds = torch.tensor([0, *accumulate(lengths)], device=device) if len(lengths) > 1 else None
        return len(lengths), bounds

    def _handed_on(self, passage: Passage | None, state: Tensor | None) -> tuple[Tensor, ...]:
        """What the next ranks need to know of the writes of this one."""
        if not self.plan.leaves(self.plan.rank):
            return ()
        return (passage.transition, passage.increment) if self.plan.passes(self.plan.rank) else (state[-1],)

    def _exchange(self, handed: Tensor, cell: MemoryCell, q: Tensor) -> Tensor:
        """What the ranks before hand on to this one, flat, in their order."""
        ranks = range(self.shard.group.size)
        counts = [sum(self._sizes(rank, cell, q)) for rank in ranks]
        bounds = (0, *accumulate(counts))
        needed = [[(bounds[s.start], bounds[s.stop])] for s in map(self.plan.sources, ranks)]
        return fetch_runs(handed[:, None], counts, needed, self.shard.group)[:, 0]

    def _sizes(self, rank: int, cell: MemoryCell, q: Tensor) -> list[int]:
        """Numbers of elements of the tensors that a rank hands on."""
        num_heads, head_dim = q.shape[2:]
        state, transition = num_heads * head_dim**2, num_heads * (1 if cell.scalar_transition else head_dim**2)
        if self.plan.passes(rank):
            return [transition, state]
        return [state] if self.plan.leaves(rank) else []

    def _fold(self, arrived: Tensor, cell: MemoryCell, q: Tensor) -> Tensor:
        """The state [Hq, D, D] that this rank's first document begins with."""
        sources = self.plan.sources(self.plan.rank)
        sizes = [size for rank in sources for size in self._sizes(rank, cell, q)]
        first, *rest = (x.unflatten(0, (q.shape[2], -1)) for x in arrived.split(sizes))
        edge = 1 if cell.scalar_transition else q.shape[3]
        state = first.unflatten(1, (q.shape[3], -1))
        for transition, increment in zip(rest[::2], rest[1::2], strict=True):
            state = pass_through(state, transition.unflatten(1, (edge, -1)), increment.view_as(state))
        return state
