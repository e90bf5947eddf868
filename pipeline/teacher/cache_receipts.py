"""What is known of a complete shard when the cache is finished: from its writer's receipt, or by reading it whole."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data.dataset import PackedDataset
from pipeline.data.file_reading import read_file, reading
from pipeline.data.shard_format import DataError, ShardEntry
from pipeline.data.shard_io import write_file
from pipeline.data.tar_members import npy_bytes
from pipeline.teacher.cache_format import REMEDY, WORK_FOLDER, TeacherInfo
from pipeline.teacher.cache_listing import entry_from_json, entry_to_json, load_cache_index
from pipeline.teacher.cache_samples import check_digest, decode_cached_sample, read_bytes

MAX_RECEIPT_BYTES = 1 << 16
_TEACHER = "teacher_json_sha256"
_CHUNK_BYTES = 1 << 20


def write_receipt(folder: Path, info: TeacherInfo, entry: ShardEntry) -> None:
    """Notes what a shard is going to be, before it gets its name.

    Args:
        folder: the cache.
        info: of the cache.
        entry: the cache's shard.
    """
    path = _receipt_path(folder, entry.name)
    path.parent.mkdir(exist_ok=True)
    write_file(path, json.dumps({_TEACHER: info.digest_key.hex(), **entry_to_json(entry)}).encode())


def describe_shard(folder: Path, info: TeacherInfo, dataset: PackedDataset, number: int) -> ShardEntry:
    """The cache's shard for the data's of that number, as its receipt says it if that is of these files; else as read.

    Raises:
        DataError: a shard without a receipt does not fit its index, this cache or the data.
    """
    entry = dataset.manifest.shards[number]
    written = _load_receipt(folder, info, entry.name)
    if written is not None:
        with reading(folder / entry.tar_name):
            same_tar = (folder / entry.tar_name).stat().st_size == written.size
            same_index = (folder / entry.index_name).stat().st_size == written.index_size
        if same_tar and same_index:
            raw_index = read_file(folder / entry.index_name, written.index_size)
            if hashlib.sha256(raw_index).hexdigest() == written.index_sha256:
                return written
    return read_shard(folder, info, dataset, number)


def _load_receipt(folder: Path, info: TeacherInfo, shard: str) -> ShardEntry | None:
    """The receipt, unless it is missing, damaged, or of another cache or shard."""
    try:
        fields = json.loads(read_file(_receipt_path(folder, shard), MAX_RECEIPT_BYTES))
        if fields.pop(_TEACHER) != info.digest_key.hex():
            return None
        written = entry_from_json(fields)
    except (DataError, TypeError, KeyError, AttributeError, ValueError, RecursionError):
        return None
    return written if written.name == shard else None


def read_shard(folder: Path, info: TeacherInfo, dataset: PackedDataset, number: int) -> ShardEntry:
    """The cache's shard with sizes and digests of the files as they are, once every sample is known to be the data's.

    Reads the whole shard, and the data's.

    Raises:
        DataError: the index does not fit, or a sample is damaged, of another cache, or not at its place.
    """
    entry, key = dataset.manifest.shards[number], info.digest_key
    index, path = load_cache_index(folder, entry.name, num_samples=entry.num_samples), folder / entry.tar_name
    first = sum(before.num_samples for before in dataset.manifest.shards[:number])
    for place, row in enumerate(index):
        where, sample = f"{path}: sample {place}", dataset[first + place]
        raw = read_bytes(path, row, info)
        check_digest(raw, row, key, where)
        found, positions, _ = decode_cached_sample(raw, info, int(row["tokens"]), where)
        if found != sample.key:
            raise DataError(f"{where} holds the signal of the sample {found}, the data has {sample.key}; {REMEDY}")
        if not np.array_equal(positions, info.positions.select(sample)):
            raise DataError(f"{where} has other positions than the data under the policy {info.positions}; {REMEDY}")
    raw_index, tar = npy_bytes(index), hashlib.sha256()
    with reading(path), open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            tar.update(chunk)
        size = file.tell()
    return replace(
        entry,
        source="",
        size=size,
        sha256=tar.hexdigest(),
        index_size=len(raw_index),
        index_sha256=hashlib.sha256(raw_index).hexdigest(),
        num_samples=len(index),
        num_tokens=int(index["tokens"].sum()),
    )


def _receipt_path(folder: Path, shard: str) -> Path:
    return folder / WORK_FOLDER / f"{shard}.json"
