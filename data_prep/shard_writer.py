"""Writes samples as webdataset tars with an index beside each, byte for byte the same on every run.

Time, owner and mode of every member are constants, members have a fixed order, and shard names come from the
work unit. A shard appears under its name only when it and its index are complete and on disk.
"""

import hashlib
import io
import json
import os
import secrets
import tarfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from data_prep.packing import Pack
from pipeline.data.shard_format import INDEX_DTYPE, PackedSample, ShardEntry, sample_digest

TEMPORARY_SUFFIX = ".tmp"
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


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
    _publish(temporary, path)


def sample_key(unit: int, number: int) -> str:
    """Key of a unit's sample: unique over the folder, no dot (webdataset splits names at the first one)."""
    return f"{unit:05d}-{number:06d}"


def shard_name(unit: int, number: int) -> str:
    """Stem of a unit's shard."""
    return f"shard-{unit:05d}-{number:03d}"


def encode_sample(sample: PackedSample) -> bytes:
    """The sample's tar members, in the order input_ids, cu_seqlens, loss_mask (if any), meta."""
    parts = {"input_ids.npy": npy_bytes(sample.input_ids), "cu_seqlens.npy": npy_bytes(sample.cu_seqlens)}
    if sample.loss_mask is not None:
        parts["loss_mask.npy"] = npy_bytes(sample.loss_mask)
    parts["meta.json"] = json.dumps(sample.meta, sort_keys=True, ensure_ascii=False).encode()
    return b"".join(_tar_member(f"{sample.key}.{name}", content) for name, content in parts.items())


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as an .npy file, the same bytes for the same array."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _tar_member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # TarInfo's own defaults: mtime, uid and gid 0, no names
    info.size, info.mode = len(content), 0o644
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + padding


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _publish(temporary: Path, path: Path) -> None:
    """Renames a synced file into place and makes the rename itself durable."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class ShardWriter:
    """Writes one work unit's samples; a new shard begins when the next sample would pass `shard_bytes`.

    Use as a context manager: leaving it normally finishes the last shard, leaving it by an error removes what there
    is of that shard. `entries` are the finished shards, `num_cut_documents` counts documents in several samples, once
    each.
    """

    def __init__(self, folder: Path, unit: int, shard_bytes: int, source: str) -> None:
        self.entries: list[ShardEntry] = []
        self.num_cut_documents = 0
        self._folder, self._unit, self._shard_bytes, self._source = folder, unit, shard_bytes, source
        self._num_written = 0
        self._shard: _OpenShard | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None and kind is None:
            self._finish_shard()
        elif self._shard is not None:
            self._shard.abandon()

    def write(self, pack: Pack) -> None:
        """Appends one sample."""
        key = sample_key(self._unit, self._num_written)
        meta = {"documents": pack.documents}
        raw = encode_sample(PackedSample(key, pack.input_ids, pack.cu_seqlens, pack.loss_mask, meta))
        if self._shard is not None and self._shard.size + len(raw) + len(END_OF_TAR) > self._shard_bytes:
            self._finish_shard()
        if self._shard is None:
            self._shard = _OpenShard(self._folder, shard_name(self._unit, len(self.entries)), self._source)
        self._shard.append(raw, len(pack.input_ids))
        self._num_written += 1
        ends = (piece for piece in pack.documents if piece["end"] == piece["tokens"])
        self.num_cut_documents += sum(piece["start"] > 0 for piece in ends)

    def _finish_shard(self) -> None:
        assert self._shard is not None
        self.entries.append(self._shard.finish())
        self._shard = None


class _OpenShard:
    """A tar that is being written under its temporary name."""

    def __init__(self, folder: Path, name: str, source: str) -> None:
        self.name, self.source, self.size = name, source, 0
        self._path = folder / f"{name}.tar"
        self._temporary = temporary_path(self._path)
        self.file = open(self._temporary, "wb")  # noqa: SIM115 (closed by finish or by the writer's __exit__)
        self._hash = hashlib.sha256()
        self._rows: list[tuple[int, int, int, np.ndarray]] = []

    def append(self, raw: bytes, num_tokens: int) -> None:
        self._rows.append((self.size, len(raw), num_tokens, sample_digest(raw)))
        self._put(raw)

    def _put(self, raw: bytes) -> None:
        self.file.write(raw)
        self._hash.update(raw)
        self.size += len(raw)

    def abandon(self) -> None:
        self.file.close()
        self._temporary.unlink(missing_ok=True)

    def finish(self) -> ShardEntry:
        index = np.array(self._rows, INDEX_DTYPE)
        raw_index = npy_bytes(index)
        self._put(END_OF_TAR)
        _sync(self.file)
        self.file.close()
        write_file(self._path.with_name(f"{self.name}.idx.npy"), raw_index)
        _publish(self._temporary, self._path)
        return ShardEntry(
            name=self.name,
            source=self.source,
            size=self.size,
            sha256=self._hash.hexdigest(),
            index_size=len(raw_index),
            index_sha256=hashlib.sha256(raw_index).hexdigest(),
            num_samples=len(index),
            num_tokens=int(index["tokens"].sum()),
        )
