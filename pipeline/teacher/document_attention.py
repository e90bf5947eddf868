"""The base's attention over packed documents, whole or a chunk at a time: what the offline teacher's forwards use.

transformers' attention modules call the function registered here in place of their own; its kernel is the base's, on
the slices on which the on-the-fly teacher calls it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.model.hybrid_attention import BASE_IMPLEMENTATION, attend_sliding, check_plain
from pipeline.model.sequence_shard import SequenceShard
from pipeline.model.supported import sliding_windows

IMPLEMENTATION = "documents"


@dataclass(frozen=True)
class Piece:
    """Tokens [start, end) of a sample, which go through the teacher in one forward: whole documents, or a chunk of one.

    `bounds`: where each document starts, and where the last one ends, within the sample; of a chunk's document the
    whole of it.
    """

    start: int
    end: int
    bounds: tuple[int, ...]

    @property
    def num_before(self) -> int:
        """Tokens of the document that earlier pieces have."""
        return self.start - self.bounds[0]

    @property
    def documents(self) -> list[tuple[int, int]]:
        """Each document's part [start, end) of the piece's tokens."""
        return list(pairwise(min(max(bound, self.start), self.end) - self.start for bound in self.bounds))

    def position_ids(self, device: torch.device) -> Tensor:
        """int64 [1, end - start]: from 0 in every document."""
        return torch.cat([torch.arange(e - s, device=device) for s, e in self.documents])[None] + self.num_before

    def mask(self, device: torch.device) -> Tensor | None:
        """bool [1, 1, T, num_before + T] of the keys that each of a chunk's T tokens sees; None: by the kernel."""
        num_tokens = self.end - self.start
        if self.num_before == 0 or num_tokens == 1:
            return None
        keys = torch.arange(self.num_before + num_tokens, device=device)
        return (keys <= keys[self.num_before :, None])[None, None]


class AttentionRecorder(Protocol):
    """Is shown the queries and keys of each layer with full attention, in a forward of one whole sample."""

    def record(self, query: Tensor, key: Tensor, documents: Sequence[tuple[int, int]], scale: float) -> None:
        """Of a layer's queries [1, Hq, T, D] and keys [1, Hkv, T, D] of documents [start, end)."""


def split_sample(cu_seqlens: Sequence[int], most: int | None) -> Iterator[Piece]:
    """The pieces of a sample, in order, each of at most `most` tokens (None: one piece).

    Documents that fit are whole, as many to a piece as fit; a longer one has its pieces to itself.

    Args:
        cu_seqlens: bounds of the documents, from 0 to the sample's length.
        most: at least 1.
    """
    if most is None:
        yield Piece(0, cu_seqlens[-1], tuple(cu_seqlens))
        return
    bounds: list[int] = []
    for start, end in pairwise(cu_seqlens):
        if bounds and end - bounds[0] > most:
            yield Piece(bounds[0], start, (*bounds, start))
            bounds = []
        if end - start > most:
            yield from (Piece(s, min(s + most, end), (start, end)) for s in range(start, end, most))
        else:
            bounds.append(start)
    if bounds:
        yield Piece(bounds[0], cu_seqlens[-1], (*bounds, cu_seqlens[-1]))


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    documents: Sequence[tuple[int, int]],
    shard: SequenceShard | None = None,
    record: AttentionRecorder | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention output [1, T, Hq, D]; query [1, Hq, T, D], key and value [1, Hkv, K, D].

    K is T, except in a chunk of a document, which comes alone. With a `shard` T are this rank's tokens, and `documents`
    lie in the whole row. Layers to which the base itself gives a sliding window keep it.

    Raises:
        ValueError: the base wants more of attention.
    """
    sliding_window = sliding_windows(module.config)[module.layer_idx]
    check_plain(module, kwargs, sliding_window)
    if record is not None and sliding_window is None:
        record.record(query, key, documents, kwargs["scaling"])

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if sliding_window is not None:
            return attend_sliding(module, q, k, v, kwargs["scaling"], sliding_window)
        return ALL_ATTENTION_FUNCTIONS[BASE_IMPLEMENTATION](module, q, k, v, mask, **kwargs)[0]

    if shard is not None:
        query, key, value = shard.to_heads(query, key, value)
    if len(documents) == 1:
        output = attend(query, key, value, attention_mask)
    else:
        outputs = [
            attend(query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], None)
            for start, end in documents
        ]
        output = torch.cat(outputs, 1)
    return output if shard is None else shard.to_tokens(output), None


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, document_attention)
