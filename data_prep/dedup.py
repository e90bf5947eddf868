"""Finds documents whose text an earlier one already has, with memory that does not grow with the corpus.

Each work unit leaves the hashes of its documents, sorted, in a file. The hashes are then compared range by range:
each range of hash values is small enough to be sorted in memory, and holds all copies of a text. The result is a
file with one byte for each document in canonical order (units in order, documents in the order they are read): 1
where an earlier document has the same text.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data_prep.shard_writer import npy_bytes, temporary_path, write_file

HASH_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u4")])
RANGE_HASHES = 2 << 20
RESULT_NAME = "duplicates.npy"


class ContentHash:
    """128-bit hash of one document's text, chunk by chunk, or of its messages."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def pass_on(self, chunks: Iterable[str]) -> Iterator[str]:
        """The same chunks, hashed on their way."""
        for chunk in chunks:
            self._hash.update(chunk.encode())
            yield chunk

    def add_messages(self, messages: list[dict]) -> None:
        self._hash.update(json.dumps(messages, sort_keys=True).encode())

    def digest(self) -> bytes:
        return self._hash.digest()


def save_hashes(folder: Path, unit: int, digests: list[bytes]) -> None:
    """Writes a unit's hashes, sorted; `digests` are in the order in which its documents are read."""
    values = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    rows = np.empty(len(digests), HASH_DTYPE)
    rows["high"], rows["low"], rows["document"] = values[:, 0], values[:, 1], np.arange(len(digests))
    rows.sort(order=("high", "low", "document"))
    write_file(hashes_path(folder, unit), npy_bytes(rows))


def hashes_path(folder: Path, unit: int) -> Path:
    return folder / f"{unit:05d}.hashes.npy"


def mark_duplicates(folder: Path, num_units: int) -> "Duplicates":
    """Compares the hashes of all units and writes the result."""
    tables = [np.load(hashes_path(folder, unit), mmap_mode="r") for unit in range(num_units)]
    starts = np.concatenate([[0], np.cumsum([len(table) for table in tables], dtype=np.int64)])
    path = folder / RESULT_NAME
    temporary = temporary_path(path)
    marks = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(int(starts[-1]),))
    num_ranges = -(-int(starts[-1]) // RANGE_HASHES) or 1
    edges = np.array([(1 << 64) * n // num_ranges for n in range(num_ranges)], np.uint64)
    cuts = [np.append(np.searchsorted(table["high"], edges), len(table)) for table in tables]
    for number in range(num_ranges):
        rows = [np.asarray(table[cut[number] : cut[number + 1]]) for table, cut in zip(tables, cuts, strict=True)]
        _mark_repeats(rows, starts, marks)
    marks.flush()
    temporary.replace(path)
    return Duplicates(folder, starts)


def _mark_repeats(tables: list[np.ndarray], starts: np.ndarray, marks: np.ndarray) -> None:
    """Marks the later copies among the units' documents of one range of hash values."""
    place = np.concatenate([start + rows["document"] for rows, start in zip(tables, starts, strict=False)])
    rows = np.concatenate(tables)
    order = np.lexsort((place, rows["low"], rows["high"]))
    rows, place = rows[order], place[order]
    repeats = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    marks[place[1:][repeats]] = 1


class Duplicates:
    """The marks, by unit. `starts`: int64 [units + 1], canonical number of each unit's first document."""

    def __init__(self, folder: Path, starts: np.ndarray) -> None:
        self._path, self._starts = folder / RESULT_NAME, starts

    def of_unit(self, unit: int) -> np.ndarray:
        """uint8 [documents of the unit]: 1 where an earlier document of the folder has the same text."""
        marks = np.load(self._path, mmap_mode="r")
        return np.array(marks[self._starts[unit] : self._starts[unit + 1]])
