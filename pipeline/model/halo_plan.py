"""Who needs what of whom when each rank keeps its own tokens inside attention, with all heads. Arithmetic only.

A rank's share of the row is cut into segments at the documents' bounds. Only its first one can begin inside a
document, and so need anything of the ranks before: keys and values of the sinks and of the window's reach, write gates
of the tokens that its queries evict, and the state of the document's memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from pipeline.attention.window import Document, WindowSpec
from pipeline.distributed.halo import Run


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of the row, of one document; all runs are of the row."""

    document: Document
    start: int
    end: int

    @property
    def window(self) -> WindowSpec:
        return self.document.window

    @property
    def reads(self) -> Run:
        """The tokens that read the memory."""
        return max(self.start, min(self.end, self.document.start + self.window.lossless_budget)), self.end

    @property
    def num_reads(self) -> int:
        return self.reads[1] - self.reads[0]

    @property
    def own_writes(self) -> Run:
        """Those of its tokens that its readers evict."""
        first, end = (token - self.window.window_size for token in self.reads)
        return max(self.start, first), max(self.start, end)

    @property
    def earlier_writes(self) -> Run:
        """The tokens before it that its readers evict."""
        first, end = (token - self.window.window_size for token in self.reads)
        return min(self.start, first), min(self.start, end)

    @property
    def enters(self) -> bool:
        """Whether tokens before it have read, so that it begins with a memory that is not empty."""
        return self.start > self.document.start + self.window.lossless_budget

    @property
    def sinks(self) -> Run:
        """Sinks before it that its window's reach does not hold."""
        first = self.document.start
        return first, min(first + self.window.num_sink_tokens, self.reach[0])

    @property
    def reach(self) -> Run:
        """The tokens before it that its queries see or evict."""
        return max(self.document.start, self.start - self.window.window_size), self.start

    @property
    def num_skipped(self) -> int:
        """Tokens of its document between its sinks and its reach."""
        return self.reach[0] - self.sinks[1]


class HaloPlan:
    """The segments of every rank, and what follows from them.

    Args:
        documents: in order, each with a window and all its tokens in the row. Tokens of none are padding.
        counts: tokens of each rank, none without one.
        rank: of this process in its group.
    """

    def __init__(self, documents: Sequence[Document], counts: Sequence[int], rank: int) -> None:
        ends, starts = [0, *(d.end for d in documents)], [*(d.start for d in documents), sum(counts)]
        padding = [_padding(first, last) for first, last in zip(ends, starts, strict=True) if first < last]
        documents = sorted([*documents, *padding], key=lambda d: d.start)
        self.rank = rank
        self._by_rank = [
            [Segment(d, max(d.start, first), min(d.end, last)) for d in documents if d.start < last and first < d.end]
            for first, last in pairwise((0, *accumulate(counts)))
        ]

    @property
    def segments(self) -> list[Segment]:
        """This rank's, which make up its tokens."""
        return self._by_rank[self.rank]

    @property
    def first(self) -> Segment:
        return self.segments[0]

    @cached_property
    def kept_runs(self) -> list[list[Run]]:
        """For each rank, the tokens before its own whose keys and values it needs."""
        return [[own[0].sinks, own[0].reach] for own in self._by_rank]

    @cached_property
    def evicted_runs(self) -> list[list[Run]]:
        """For each rank, the tokens before its own whose write gates it needs."""
        return [[own[0].earlier_writes] for own in self._by_rank]

    @property
    def enters(self) -> bool:
        """Whether this rank's first document has a memory already."""
        return self.first.enters

    def leaves(self, rank: int) -> bool:
        """Whether the next rank's first document has a memory already."""
        return rank + 1 < len(self._by_rank) and self._by_rank[rank + 1][0].enters

    def passes(self, rank: int) -> bool:
        """Whether a memory comes to this rank, grows, and goes on."""
        return self._by_rank[rank][0].enters and self.leaves(rank) and len(self._by_rank[rank]) == 1

    def sources(self, rank: int) -> range:
        """The ranks before this one whose writes are in the memory that comes to it, in order."""
        if not self._by_rank[rank][0].enters:
            return range(rank, rank)
        first = rank - 1
        while self.passes(first):
            first -= 1
        return range(first, rank)


def _padding(start: int, end: int) -> Document:
    """A document that evicts nothing, so that all tokens belong to one."""
    return Document(0, start, end, WindowSpec(0, end - start))
