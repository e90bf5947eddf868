"""What one forward pass needs to know about its documents; made once, shared by all layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.attention.window import Document, WindowSpec


@dataclass(frozen=True)
class Span:
    """Tokens [start, end) of batch rows [first_row, end_row), each row's part one document with this window."""

    first_row: int
    end_row: int
    start: int
    end: int
    window: WindowSpec | None

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def num_evicted(self) -> int:
        return 0 if self.window is None else self.window.num_evicted(self.length)

    @property
    def num_sink_tokens(self) -> int:
        return 0 if self.window is None else self.window.num_sink_tokens

    def rows(self) -> slice:
        return slice(self.first_row, self.end_row)


class DocumentPlan:
    """A forward without a cache: documents in a batch [B, T]. Tokens of no document are padding."""

    def __init__(self, documents: Sequence[Document], batch_size: int, length: int, use_memory: bool) -> None:
        """
        Raises:
            ValueError: documents that overlap, are empty or reach out of the batch.
        """
        self.batch_size, self.length, self.use_memory = batch_size, length, use_memory
        self.documents = sorted(documents, key=lambda d: (d.row, d.start))
        _check(self.documents, batch_size, length)

    @cached_property
    def spans(self) -> list[Span]:
        """One span over the whole batch where its rows are alike, so that one kernel call serves them; else one
        a document."""
        documents = self.documents
        whole = [d for d in documents if d.length == self.length and d.window == documents[0].window]
        if len(whole) == self.batch_size:
            return [Span(0, self.batch_size, 0, self.length, documents[0].window)]
        return [Span(d.row, d.row + 1, d.start, d.end, d.window) for d in documents]

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
            positions[d.row, d.start : d.end] = torch.arange(d.length, device=device)
        return positions


def _check(documents: list[Document], batch_size: int, length: int) -> None:
    row, end = -1, 0
    for d in documents:
        end = end if d.row == row else 0
        row = d.row
        if not (0 <= d.row < batch_size and end <= d.start < d.end <= length):
            raise ValueError(f"document {d} is empty, overlaps another or leaves the batch [{batch_size}, {length}]")
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
