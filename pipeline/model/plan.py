"""What one forward pass needs to know about its documents; made once, shared by all layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pipeline.attention.window import Document, WindowSpec
from pipeline.model.halo_plan import HaloPlan
from pipeline.model.prefix import PrefixStore, Recorder
from pipeline.model.sequence_shard import SequenceShard


@dataclass(frozen=True)
class Span:
    """The part [document.start, document.end) of batch rows [row, row + num_rows), a document alike in each."""

    document: Document
    num_rows: int

    @property
    def num_evicted(self) -> int:
        return self.document.num_evicted

    def take(self, x: Tensor, dim: int) -> Tensor:
        """The span's part of a tensor [B, ..] with tokens along `dim`."""
        rows = x.narrow(0, self.document.row, self.num_rows)
        return rows.narrow(dim, self.document.start, self.document.length)

    def candidates(self, x: Tensor) -> Tensor:
        """The tokens that leave the window, of a tensor [rows, tokens, ..] that starts with the document; without
        retained tokens these are the evicted ones. None where nothing is evicted."""
        positions = self.candidate_positions
        return x[:, positions.start : positions.stop]

    @property
    def candidate_positions(self) -> range:
        """Of the candidates in their document."""
        first = self.document.window.num_sink_tokens if self.num_evicted else 0
        return range(first, first + self.num_candidates)

    @property
    def retains(self) -> bool:
        """Whether it has more candidates than are evicted."""
        return self.num_candidates > self.num_evicted

    @property
    def num_candidates(self) -> int:
        """Tokens that leave the window; 0 where nothing is evicted."""
        return self.num_evicted + self.document.window.num_held if self.num_evicted else 0

    def reading(self, x: Tensor) -> Tensor:
        """The tokens that read the memory, of a tensor [rows, tokens, ..] that ends with the document."""
        return x[:, x.shape[1] - self.num_evicted :]


class DocumentPlan:
    """A forward without a cache: documents in a batch [B, T]. Tokens of no document are padding."""

    def __init__(
        self,
        documents: Sequence[Document],
        batch_size: int,
        length: int,
        *,
        use_memory: bool,
        prefixes: PrefixStore | None = None,
        record: Recorder | None = None,
        shard: SequenceShard | None = None,
    ) -> None:
        """
        Args:
            documents: in order of row and start.
            batch_size, length: of the batch [B, T]; with a `shard` of the whole row.
            use_memory: False leaves the memory out.
            prefixes: what came before each document's tokens in the row, for documents with `num_before`.
            record: takes what it wants of each layer from this forward.
            shard: the forward's tokens are this rank's of a row that a group of ranks holds.

        Raises:
            ValueError: documents out of order, overlapping, empty or reaching out of the batch, without the prefix
                they need, or with retained tokens where ranks keep their tokens inside attention.
        """
        self.batch_size, self.length, self.use_memory = batch_size, length, use_memory
        self.documents, self.prefixes, self.record, self.shard = tuple(documents), prefixes, record, shard
        _check(self.documents, batch_size, length)
        keeps_tokens = shard is not None and shard.keeps_tokens
        if keeps_tokens and any(d.window is not None and d.window.num_retained_tokens for d in documents):
            raise ValueError("no tokens are retained where ranks keep their tokens inside attention (halo)")
        if prefixes is not None:
            prefixes.check(self.documents)
        elif any(d.num_before for d in self.documents):
            raise ValueError("documents with `num_before` need `prefixes`")

    @cached_property
    def spans(self) -> list[Span]:
        """One span over the whole batch where its rows are alike, so that one kernel call serves them; else one
        a document."""
        first = self.documents[0]
        alike = [d for d in self.documents if d == replace(first, row=d.row)]
        if len(alike) == self.batch_size and first.length == self.length and self.prefixes is None:
            return [Span(first, self.batch_size)]
        return [Span(document, 1) for document in self.documents]

    @cached_property
    def halo(self) -> HaloPlan:
        """Of a row whose ranks keep their tokens inside attention."""
        return HaloPlan(self.documents, self.shard.counts, self.shard.group.rank)

    def cu_seqlens(self, device: torch.device) -> Tensor | None:
        """Bounds of each document's evicted tokens when they are concatenated; None for a batch of rows."""
        lengths = [s.num_evicted for s in self.spans if s.num_evicted]
        if len(self.spans) == 1 or not lengths:
            return None
        return torch.tensor([0, *lengths], device=device).cumsum(0)

    def position_ids(self, device: torch.device) -> Tensor:
        """[B, T]: from 0 in every document; 0 for padding."""
        positions = torch.zeros(self.batch_size, self.length, dtype=torch.int64, device=device)
        for d in self.documents:
            positions[d.row, d.start : d.end] = torch.arange(d.num_before, d.num_before + d.length, device=device)
        return positions


def _check(documents: Sequence[Document], batch_size: int, length: int) -> None:
    row, end = -1, 0
    for d in documents:
        end = end if d.row == row else 0
        in_order, row = row <= d.row, d.row
        if not (in_order and d.row < batch_size and end <= d.start < d.end <= length):
            raise ValueError(
                f"document {d} is empty, out of order, overlaps another or leaves the batch [{batch_size}, {length}]"
            )
        end = d.end


def documents_of_mask(attention_mask: Tensor, window: WindowSpec) -> list[Document]:
    """One document a row from a mask [B, T] that is 1 on one unbroken run of tokens.

    Raises:
        ValueError: a row with nothing or with a hole.
    """
    mask = attention_mask.bool()
    counts = mask.sum(-1).tolist()
    starts = mask.int().argmax(-1).tolist()
    documents = [
        Document(row, start, start + count, window)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]
    for d in documents:
        if d.length == 0 or not bool(mask[d.row, d.start : d.end].all()):
            raise ValueError(f"attention_mask row {d.row} must be 1 on one unbroken, non-empty run of tokens")
    return documents
