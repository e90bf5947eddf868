"""Follows every document of a folder through the samples that its pieces lie in."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from pipeline.data.shard_format import DataError

ID_DIGEST_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8")])


@dataclass
class _CutDocument:
    tokens: int
    where: str
    pieces: list[tuple[int, int]] = field(default_factory=list)
    covered: int = 0
    """Tokens of the pieces so far."""


class PieceLedger:
    """Checks that every id begins once in its source and that the pieces of a document, in any order, cover it once.

    Memory: 16 bytes a document, and the pieces of the cut documents that are not complete yet.
    """

    def __init__(self) -> None:
        self._ids = bytearray()  # a digest of every source and id that began
        self._begun_until: list[tuple[int, str]] = []  # how many ids had begun when a shard ended
        self._open: defaultdict[str, dict[str, _CutDocument]] = defaultdict(dict)  # by source and id

    def add(self, source: str, piece: dict, where: str) -> None:
        """Takes in one entry of a meta.json.

        Raises:
            DataError: it contradicts the document's other pieces.
        """
        if piece["start"] == 0:
            name = f"{source}\0{piece['id']}".encode()
            self._ids += hashlib.blake2b(name, digest_size=ID_DIGEST_DTYPE.itemsize).digest()
        if (piece["start"], piece["end"]) == (0, piece["tokens"]):
            return
        document = self._open[source].setdefault(piece["id"], _CutDocument(piece["tokens"], where))
        document.pieces.append((piece["start"], piece["end"]))
        document.covered += piece["end"] - piece["start"]
        if document.tokens != piece["tokens"]:
            raise DataError(
                f"{where}: document {piece['id']} has {piece['tokens']} tokens, {document.where} says {document.tokens}"
            )
        if document.covered >= document.tokens:
            _check_contiguous(document, piece["id"], where)
            del self._open[source][piece["id"]]

    def end_shard(self, name: str) -> None:
        """All samples of shard `name` were added."""
        self._begun_until.append((len(self._ids) // ID_DIGEST_DTYPE.itemsize, name))

    def finish(self, dropped_tokens: dict[str, int]) -> None:
        """To be called after the last sample; `dropped_tokens` is the number of tokens left out, by source.

        Raises:
            DataError: an id that began twice, or a document that lacks more tokens than were dropped.
        """
        self._check_ids()
        for source, documents in self._open.items():
            lacking = sum(document.tokens - document.covered for document in documents.values())
            if lacking > dropped_tokens.get(source, 0):
                name, document = next(iter(documents.items()))
                raise DataError(
                    f"{document.where}: only {document.covered} of the {document.tokens} tokens of document {name} "
                    f"are in the folder, and its manifest does not say that the others were dropped"
                )

    def _check_ids(self) -> None:
        ids = np.frombuffer(self._ids, ID_DIGEST_DTYPE)
        order = np.lexsort((ids["low"], ids["high"]))
        repeats = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        if len(repeats):
            ends = np.array([end for end, _ in self._begun_until])
            pair = np.searchsorted(ends, order[repeats[0] : repeats[0] + 2], side="right")
            shards = " and ".join(sorted({self._begun_until[place][1] for place in pair}))
            raise DataError(f"{shards}: two documents of one source and with the same id begin there")


def _check_contiguous(document: _CutDocument, name: str, where: str) -> None:
    expected = 0
    for start, end in sorted(document.pieces):
        if start != expected:
            raise DataError(f"{where}: the pieces of document {name} do not join: {start} follows {expected}")
        expected = end
    if expected != document.tokens:
        raise DataError(f"{where}: the pieces of document {name} reach {expected} of its {document.tokens} tokens")
