"""What a student need not compute again: the part of each document that fits the lossless budget.

A token within the budget sees all before it, so it is the same in the student as in the full-attention teacher, in
every layer, and no parameter of a memory has any influence on it. One pass without gradients (the teacher's, or one
over the prefixes alone) records each layer's keys, values and hidden states of these tokens; the student's row then
holds only the tokens behind them. Exact, and it saves the share W / L of the student's forward and backward.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.attention.received import received_mass
from pipeline.attention.window import Document
from pipeline.model.sequence_shard import SequenceShard


class Prefix(NamedTuple):
    """A document's first tokens in one layer."""

    keys: Tensor  # [1, Hkv, W, D]
    values: Tensor  # [1, Hkv, W, D]
    hidden: Tensor  # pre-normed hidden states [1, W, hidden]; of a sharded row those that this rank has
    received: Tensor | None = None  # mass [1, Hkv, W] that they receive from each other, where tokens are retained


class Recorder(Protocol):
    """Takes something from a forward as it passes."""

    def record(self, layer: int, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> None:
        """Of one layer queries, keys and values [B, H, T, D], pre-normed hidden states [B, T, hidden] and the factor on
        the attention scores."""


class PrefixStore:
    """Prefixes of documents, layer by layer.

    Args:
        documents: whole, as they lie in their row, each with its window; all evict something.
        starts: where each begins in the row of the forward that records, if that is another row.
        shard: of that row, if a group of ranks holds it.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        starts: Sequence[int] | None = None,
        shard: SequenceShard | None = None,
    ) -> None:
        self.documents = tuple(documents)
        starts = [d.start for d in documents] if starts is None else starts
        self._runs = [(s, s + d.window.lossless_budget) for d, s in zip(documents, starts, strict=True)]
        self._recorded_shard = shard
        self._layers: dict[int, list[Prefix]] = {}

    @cached_property
    def shard(self) -> SequenceShard:
        """Of a row of all prefixes: which rank has which of their hidden states."""
        return self._recorded_shard.regrouped(self._runs)

    def record(self, layer: int, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> None:
        """Copies the prefixes out of a layer's queries, keys and values [B, H, T, D] and hidden states
        [B, T, hidden]; `scale` is the attention's."""
        prefixes = []
        for d, run in zip(self.documents, self._runs, strict=True):
            rows, tokens = slice(d.row, d.row + 1), slice(*run)
            own = tokens if self._recorded_shard is None else self._recorded_shard.part(*run)
            parts = key[rows, :, tokens], value[rows, :, tokens], hidden[rows, own]
            received = None
            if d.window.num_retained_tokens:
                received = received_mass(query[rows, :, tokens], parts[0], d.window, scale=scale)
            prefixes.append(Prefix(*(x.detach().clone() for x in parts), received))
        self._layers[layer] = prefixes

    def of_layer(self, layer: int) -> list[Prefix]:
        return self._layers[layer]

    def suffix_documents(self) -> tuple[Document, ...]:
        """The documents in a row that holds only what comes after their prefixes."""
        documents, start = [], 0
        for d in self.documents:
            end = start + d.num_evicted
            documents.append(Document(0, start, end, d.window, num_before=d.window.lossless_budget))
            start = end
        return tuple(documents)

    def suffix_indices(self) -> Tensor:
        """Where that row's tokens lie in the documents' own row, int64."""
        return torch.cat([torch.arange(d.end - d.num_evicted, d.end) for d in self.documents])

    def check(self, documents: Sequence[Document]) -> None:
        """
        Raises:
            ValueError: `documents` are not those recorded here, in order.
        """
        recorded = [(d.window, d.num_evicted) for d in self.documents]
        if [(d.window, d.length) for d in documents] != recorded:
            raise ValueError("`documents` are not the suffixes of the documents in `prefixes`")
