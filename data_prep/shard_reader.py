"""Reads samples of a finished folder by their place in it, for the tools that look at one. No torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.data.shard_format import DataError, Manifest, ShardEntry, sample_digest


@contextmanager
def open_tar(path: Path) -> Iterator[int]:
    """A file descriptor to read `path` at any offset."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_sample_bytes(descriptor: int, row: np.void, where: str) -> bytes:
    """One sample's byte range, checked against its index row (INDEX_DTYPE); `where` names it in errors.

    Raises:
        DataError: the bytes are not those that the index describes.
    """
    raw = os.pread(descriptor, int(row["length"]), int(row["offset"]))
    if not np.array_equal(sample_digest(raw), row["digest"]):
        raise DataError(f"{where} does not match its digest in the index")
    return raw


def locate_sample(manifest: Manifest, number: int) -> tuple[ShardEntry, int]:
    """The shard of the folder's sample `number` (0-based, in the manifest's order) and its number there.

    Raises:
        DataError: names the legal range.
    """
    total = sum(entry.num_samples for entry in manifest.shards)
    if not 0 <= number < total:
        legal = f"0 to {total - 1}" if total else "none, it is empty"
        raise DataError(f"there is no sample {number} in the folder; its samples are {legal}")
    for entry in manifest.shards:
        if number < entry.num_samples:
            break
        number -= entry.num_samples
    return entry, number
