"""Packs tokenised documents into samples, and records which tokens of which document each one holds.

Three ways, all without padding; every token is in exactly one sample:
- concat: the documents of a work unit form one stream that is cut every `seq_len` tokens. The last sample of a
  unit may be shorter.
- best_fit: a document is cut only where it is longer than `seq_len`: its full pieces are samples of their own, and
  what remains is packed with others by best-fit decreasing (arXiv 2404.10830), a bounded buffer at a time.
- none: every document is a sample of its own, a longer one as many as it needs.

The pieces of a cut document do not overlap, and each is a document of its own to the model: attention, positions
and memory start again there.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

MIN_BUFFER_TOKENS = 4 << 20
MIN_BUFFER_SAMPLES = 16
FULL_SHARE = 0.998  # a best-fit sample this full is written at once; emptier ones are packed again later
MAX_LEFTOVER_SAMPLES = 16  # that a work unit hands on to be packed again with other units' leftovers


@dataclass(frozen=True, eq=False)
class TokenisedDocument:
    """`input_ids` uint32 [n], n >= 1; `loss_mask` uint8 [n] or None; `origin` says where the text lies (JSON types)."""

    id: str
    origin: dict
    input_ids: np.ndarray
    loss_mask: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Piece:
    """A document or a part of one: its tokens, its loss mask (or None), and its entry in meta.json."""

    input_ids: np.ndarray
    loss_mask: np.ndarray | None
    entry: dict

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, eq=False)
class Pack:
    """One sample to be: `input_ids` uint32 [T], `cu_seqlens` int32 [n+1], `loss_mask` uint8 [T] or None, and
    meta.json's entry of each piece.
    """

    input_ids: np.ndarray
    cu_seqlens: np.ndarray
    loss_mask: np.ndarray | None
    documents: list[dict]


def join(pieces: list[Piece]) -> Pack:
    """Lays pieces end to end."""
    bounds = np.cumsum([0] + [len(piece) for piece in pieces], dtype=np.int32)
    masked = pieces[0].loss_mask is not None
    return Pack(
        np.concatenate([piece.input_ids for piece in pieces]),
        bounds,
        np.concatenate([piece.loss_mask for piece in pieces]) if masked else None,
        [piece.entry for piece in pieces],
    )


def split(pack: Pack) -> Iterator[Piece]:
    """What `join` laid end to end."""
    for entry, start, end in zip(pack.documents, pack.cu_seqlens[:-1], pack.cu_seqlens[1:], strict=True):
        yield Piece(pack.input_ids[start:end], None if pack.loss_mask is None else pack.loss_mask[start:end], entry)


def _cut(document: TokenisedDocument, start: int, end: int) -> Piece:
    entry = {
        "id": document.id,
        "start": start,
        "end": end,
        "tokens": len(document.input_ids),
        "origin": document.origin,
    }
    mask = document.loss_mask
    return Piece(document.input_ids[start:end], None if mask is None else mask[start:end], entry)


def _cut_every(document: TokenisedDocument, seq_len: int) -> Iterator[Piece]:
    length = len(document.input_ids)
    for start in range(0, length, seq_len):
        yield _cut(document, start, min(length, start + seq_len))


def pack_concat(documents: Iterable[TokenisedDocument], seq_len: int) -> Iterator[Pack]:
    """Cuts the concatenation of `documents` every `seq_len` tokens."""
    pieces: list[Piece] = []
    room = seq_len
    for document in documents:
        start, length = 0, len(document.input_ids)
        while start < length:
            end = min(length, start + room)
            pieces.append(_cut(document, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield join(pieces)
                pieces, room = [], seq_len
    if pieces:
        yield join(pieces)


def pack_none(documents: Iterable[TokenisedDocument], seq_len: int) -> Iterator[Pack]:
    """One sample for every `seq_len` tokens of a document."""
    for document in documents:
        for piece in _cut_every(document, seq_len):
            yield join([piece])


def cut_long(documents: Iterable[TokenisedDocument], seq_len: int) -> Iterator[Piece]:
    """Whole documents, and the pieces of `seq_len` tokens and the remainder of longer ones."""
    for document in documents:
        yield from _cut_every(document, seq_len)


@dataclass(eq=False)
class _Bin:
    number: int
    pieces: list[tuple[int, Piece]] = field(default_factory=list)  # with their order of arrival
    size: int = 0

    def pack(self) -> Pack:
        return join([piece for _, piece in sorted(self.pieces, key=lambda numbered: numbered[0])])


class BestFit:
    """Best-fit decreasing over a bounded buffer.

    When the buffer is full it is packed: samples filled to FULL_SHARE are given out, the pieces of emptier ones stay
    and are packed again with what comes. Memory: the buffer, max(MIN_BUFFER_TOKENS, MIN_BUFFER_SAMPLES x seq_len)
    tokens, and one document.

    After `pack` was exhausted `leftovers` holds the pieces of the emptiest samples, at most `max_leftover_samples`.
    """

    def __init__(self, seq_len: int, max_leftover_samples: int = 0) -> None:
        self.leftovers: list[Piece] = []
        self._seq_len, self._max_leftover_samples = seq_len, max_leftover_samples
        self._buffer_tokens = max(MIN_BUFFER_TOKENS, MIN_BUFFER_SAMPLES * seq_len)

    def pack(self, pieces: Iterable[Piece]) -> Iterator[Pack]:
        """Packs pieces of at most `seq_len` tokens each."""
        buffer: list[Piece] = []
        size = 0
        for piece in pieces:
            if len(piece) == self._seq_len:
                yield join([piece])
                continue
            # A copy: a slice would keep the whole of a long document in memory.
            mask = None if piece.loss_mask is None else np.array(piece.loss_mask)
            buffer.append(Piece(np.array(piece.input_ids), mask, piece.entry))
            size += len(piece)
            if size >= self._buffer_tokens:
                # Emptier samples keep at most half of the buffer, or it would be packed over and over.
                kept = yield from self._give_out(buffer, self._buffer_tokens // 2 // self._seq_len)
                buffer, size = kept, sum(map(len, kept))
        self.leftovers = yield from self._give_out(buffer, self._max_leftover_samples)

    def _give_out(self, pieces: list[Piece], max_kept_samples: int):  # noqa: ANN202 (a generator that returns)
        bins = best_fit_decreasing(pieces, self._seq_len)
        open_bins = sorted((b for b in bins if b.size < FULL_SHARE * self._seq_len), key=lambda b: (b.size, b.number))
        kept = {b.number for b in open_bins[:max_kept_samples]}
        for packed in bins:
            if packed.number not in kept:
                yield packed.pack()
        numbered = sorted((n, piece) for b in bins if b.number in kept for n, piece in b.pieces)
        return [piece for _, piece in numbered]


def best_fit_decreasing(pieces: list[Piece], seq_len: int) -> list[_Bin]:
    """Puts every piece, longest first, where it leaves the least room; a new sample where it fits nowhere."""
    bins: list[_Bin] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted; full bins are left out
    for order in sorted(range(len(pieces)), key=lambda n: -len(pieces[n])):
        length = len(pieces[order])
        place = bisect_left(room, (length, -1))
        if place < len(room):
            target = bins[room.pop(place)[1]]
        else:
            target = _Bin(len(bins))
            bins.append(target)
        target.pieces.append((order, pieces[order]))
        target.size += length
        if target.size < seq_len:
            insort(room, (seq_len - target.size, target.number))
    return bins
