"""Writes samples as webdataset tars with an index beside each, byte for byte the same on every run.

Time, owner and mode of every member are constants, members have a fixed order, and shard names come from the
work unit. A shard appears under its name only when it and its index are complete and on disk.
"""

import json
from pathlib import Path
from types import TracebackType

from data_prep.packing import Pack
from pipeline.data.shard_format import PackedSample, ShardEntry
from pipeline.data.shard_io import END_OF_TAR, OpenShard
from pipeline.data.tar_members import npy_bytes, tar_member


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
    return b"".join(tar_member(f"{sample.key}.{name}", content) for name, content in parts.items())


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
        self._shard: OpenShard | None = None

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
            self._shard = OpenShard(self._folder, shard_name(self._unit, len(self.entries)), self._source)
        self._shard.append(raw, len(pack.input_ids))
        self._num_written += 1
        ends = (piece for piece in pack.documents if piece["end"] == piece["tokens"])
        self.num_cut_documents += sum(piece["start"] > 0 for piece in ends)

    def _finish_shard(self) -> None:
        assert self._shard is not None
        entry = self._shard.close()
        self._shard.publish()
        self.entries.append(entry)
        self._shard = None
