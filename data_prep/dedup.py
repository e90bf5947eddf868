"""Finds documents whose text an earlier one already has, with memory that does not grow with the corpus.

Each work unit leaves the hashes of its documents, sorted, in a file. The hashes are then compared range by range:
each range of hash values is small enough to be sorted in memory, and holds all copies of a text. The result is a
file with one byte for each document in canonical order (units in order, documents in the order they are read): 1
where an earlier document has the same text.
"""

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.data.shard_format import DataError
from pipeline.data.shard_io import temporary_path, write_file
from pipeline.data.tar_members import npy_bytes

HASH_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u4")])
RANGE_HASHES = 2 << 20
RESULT_NAME = "duplicates.npy"


class ContentHash:
    """128-bit hash of one document; documents of different kinds never have the same."""

    def __init__(self, kind: Literal["text", "messages", "unreadable"]) -> None:
        self._hash = hashlib.blake2b(digest_size=16, person=kind.encode())

    def update(self, text: str) -> None:
        self._hash.update(text.encode())

    def digest(self) -> bytes:
        return self._hash.digest()


def hash_messages(messages: list[dict], *beside: object) -> bytes:
    """The hash of a conversation: its messages and what else of it is JSON."""
    content_hash = ContentHash("messages")
    content_hash.update(json.dumps([messages, *beside], sort_keys=True))
    return content_hash.digest()


def hash_unreadable(document_id: str) -> bytes:
    """For a document that cannot be read to its end: no copy of any other."""
    content_hash = ContentHash("unreadable")
    content_hash.update(document_id)
    return content_hash.digest()


def save_hashes(folder: Path, unit: int, digests: bytes) -> None:
    """Writes a unit's hashes, sorted; `digests` holds 16 bytes a document, in the order in which they are read."""
    values = np.frombuffer(digests, "<u8").reshape(-1, 2)
    rows = np.empty(len(values), HASH_DTYPE)
    rows["high"], rows["low"], rows["document"] = values[:, 0], values[:, 1], np.arange(len(values))
    rows.sort(order=("high", "low", "document"))
    write_file(hashes_path(folder, unit), npy_bytes(rows))


def hashes_path(folder: Path, unit: int) -> Path:
    return folder / f"{unit:05d}.hashes.npy"


@dataclass(frozen=True)
class Duplicates:
    """Where the marks of one unit's documents lie."""

    path: Path
    start: int
    end: int

    def load(self) -> np.ndarray:
        """uint8 [documents of the unit]: 1 where an earlier document of the folder has the same text."""
        return np.array(np.load(self.path, mmap_mode="r")[self.start : self.end])


def mark_duplicates(folder: Path, num_units: int) -> list[Duplicates]:
    """Compares the hashes of all units and writes the result.

    Raises:
        DataError: a file of hashes that is damaged.
    """
    lengths = [len(_open(folder, unit)) for unit in range(num_units)]
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    num_ranges = -(-int(starts[-1]) // RANGE_HASHES) or 1
    edges = np.array([(1 << 64) * n // num_ranges for n in range(num_ranges)], np.uint64)
    cuts = [np.append(np.searchsorted(_open(folder, unit)["high"], edges), lengths[unit]) for unit in range(num_units)]
    path = folder / RESULT_NAME
    temporary = temporary_path(path)
    marks = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(int(starts[-1]),))
    for number in range(num_ranges):
        # One file open at a time: there may be more units than a process may have files.
        rows = [np.array(_open(folder, unit)[cut[number] : cut[number + 1]]) for unit, cut in enumerate(cuts)]
        _mark_repeats(rows, starts, marks)
    marks.flush()
    temporary.replace(path)
    return [Duplicates(path, int(a), int(b)) for a, b in pairwise(starts)]


def _open(folder: Path, unit: int) -> np.ndarray:
    path = hashes_path(folder, unit)
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); delete {folder} and run again") from error
    if table.dtype != HASH_DTYPE:
        raise DataError(f"{path} is damaged; delete {folder} and run again")
    return table


def _mark_repeats(tables: list[np.ndarray], starts: np.ndarray, marks: np.ndarray) -> None:
    """Marks the later copies among the units' documents of one range of hash values."""
    place = np.concatenate([start + rows["document"] for rows, start in zip(tables, starts, strict=False)])
    rows = np.concatenate(tables)
    order = np.lexsort((place, rows["low"], rows["high"]))
    rows, place = rows[order], place[order]
    repeats = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    marks[place[1:][repeats]] = 1
