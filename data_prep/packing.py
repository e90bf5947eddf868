"""Packs tokenised documents into samples, and records which tokens of which document each one holds.

Concatenation: the documents of one work unit form one stream that is cut every `seq_len` tokens. Every token
is in exactly one sample, in order, and nothing is padded, so the last sample of a unit may be shorter. A
document that is cut goes on in the next sample as a document of its own (attention, positions and memory
start again there).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenisedDocument:
    """`input_ids` uint32 [n], n >= 1; `origin` says where the text lies (JSON types only)."""

    id: str
    origin: dict
    input_ids: np.ndarray


@dataclass(frozen=True)
class Pack:
    """One sample to be: `input_ids` uint32 [T], `cu_seqlens` int32 [n+1], meta.json's entry of each piece."""

    input_ids: np.ndarray
    cu_seqlens: np.ndarray
    documents: list[dict]


def pack_concat(documents: Iterable[TokenisedDocument], seq_len: int) -> Iterator[Pack]:
    """Cuts the concatenation of `documents` every `seq_len` tokens; see the module's docstring."""
    pieces: list[tuple[TokenisedDocument, int, int]] = []
    room = seq_len
    for document in documents:
        start, length = 0, len(document.input_ids)
        while start < length:
            end = min(length, start + room)
            pieces.append((document, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield _join(pieces)
                pieces, room = [], seq_len
    if pieces:
        yield _join(pieces)


def _join(pieces: list[tuple[TokenisedDocument, int, int]]) -> Pack:
    bounds = np.cumsum([0] + [end - start for _, start, end in pieces], dtype=np.int32)
    entries = [
        {"id": d.id, "start": start, "end": end, "tokens": len(d.input_ids), "origin": d.origin}
        for d, start, end in pieces
    ]
    return Pack(np.concatenate([d.input_ids[start:end] for d, start, end in pieces]), bounds, entries)
