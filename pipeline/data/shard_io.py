"""Writes shards and the small files beside them so that each is there whole or not at all. numpy only.

A shard is a tar of samples and an index. It appears under its name only when it is complete and on disk, the index
after the tar: whoever finds an index finds the tar that it describes.
"""

import hashlib
import os
import secrets
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.data.shard_format import INDEX_DTYPE, ShardEntry, sample_digest
from pipeline.data.tar_members import BLOCK, npy_bytes

TEMPORARY_SUFFIX = ".tmp"
END_OF_TAR = bytes(2 * BLOCK)


def temporary_path(path: Path) -> Path:
    """Where `path` is written before it gets its name. Different on every call: a worker that outlives a killed run by
    a moment never writes into the next run's file.
    """
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def write_file(path: Path, content: bytes) -> None:
    """Writes `content` so that `path` is either absent, as it was, or complete, at any instant."""
    temporary = temporary_path(path)
    with open(temporary, "wb") as file:
        file.write(content)
        _sync(file)
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Renames a synced file into place and makes the rename itself durable."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


class OpenShard:
    """A shard that is being written under a temporary name: `append`s, then `close` and `publish`, or `abandon`.

    Args:
        folder: where.
        name: of the shard.
        source: of its samples.
        digest_key: of the samples' digests (`sample_digest`).
    """

    def __init__(self, folder: Path, name: str, source: str, digest_key: bytes = b"") -> None:
        self.name, self.source, self.size, self._digest_key = name, source, 0, digest_key
        self._path = folder / f"{name}.tar"
        self._temporary = temporary_path(self._path)
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by close or abandon)
        self._hash = hashlib.sha256()
        self._rows: list[tuple[int, int, int, np.ndarray]] = []
        self._raw_index = b""

    def append(self, raw: bytes, num_tokens: int) -> None:
        """Adds a sample; `num_tokens`: what the index's column `tokens` says of it."""
        self._rows.append((self.size, len(raw), num_tokens, sample_digest(raw, self._digest_key)))
        self._put(raw)

    def _put(self, raw: bytes) -> None:
        self._file.write(raw)
        self._hash.update(raw)
        self.size += len(raw)

    def abandon(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def close(self) -> ShardEntry:
        """Ends the tar and has it on disk, not yet under its name; returns what the shard is going to be."""
        index = np.array(self._rows, INDEX_DTYPE)
        self._raw_index = npy_bytes(index)
        self._put(END_OF_TAR)
        _sync(self._file)
        self._file.close()
        return ShardEntry(
            name=self.name,
            source=self.source,
            size=self.size,
            sha256=self._hash.hexdigest(),
            index_size=len(self._raw_index),
            index_sha256=hashlib.sha256(self._raw_index).hexdigest(),
            num_samples=len(index),
            num_tokens=int(index["tokens"].sum()),
        )

    def publish(self) -> None:
        """Gives the tar its name, then writes the index."""
        publish(self._temporary, self._path)
        write_file(self._path.with_name(f"{self.name}.idx.npy"), self._raw_index)
