"""Which shards a teacher cache has, and where their samples lie: shards.json, its mark, and the indexes."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.file_reading import read_file, reading
from pipeline.data.shard_format import INDEX_DTYPE, DataError, Manifest, ShardEntry
from pipeline.data.shard_io import END_OF_TAR
from pipeline.data.tar_members import BLOCK, npy_bytes
from pipeline.teacher.cache_format import CACHE_FORMAT_VERSION, REMEDY, TEACHER_NAME, TeacherInfo

LISTING_NAME = "shards.json"
LISTING_DIGEST_NAME = "shards.json.sha256"
ENTRY_FIELDS = ("name", "size", "sha256", "index_size", "index_sha256", "num_samples", "num_positions")
MAX_LISTING_BYTES = 1 << 26
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_INDEX_HEADER_BYTES = len(npy_bytes(np.empty(0, INDEX_DTYPE)))


@dataclass(frozen=True)
class Listing:
    """shards.json: the shards in the data's order; an entry's `num_tokens` are positions, its `source` is "".

    `teacher_sha256` is that of the file teacher.json, so that the two cannot be of different caches.
    """

    teacher_sha256: str
    shards: list[ShardEntry]

    def to_bytes(self) -> bytes:
        fields = {
            "format_version": CACHE_FORMAT_VERSION,
            "teacher_json_sha256": self.teacher_sha256,
            "shards": [entry_to_json(entry) for entry in self.shards],
        }
        return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def load(cls, folder: Path) -> "Listing | None":
        """The listing of a finished cache; None for one that is not.

        Raises:
            DataError: it was altered, is of another version, cannot be read, lists what the writer did not write, or
                only one of the two files is there.
        """
        path, mark = folder / LISTING_NAME, folder / LISTING_DIGEST_NAME
        with reading(path):
            if not mark.is_file():
                return None
            if not path.is_file():
                raise DataError(f"{path} is missing though {LISTING_DIGEST_NAME} is there; {REMEDY}")
        raw = read_file(path, MAX_LISTING_BYTES)
        if read_file(mark, MAX_LISTING_BYTES) != listing_mark(raw):
            raise DataError(f"{path} does not match {LISTING_DIGEST_NAME}: one was altered after it was written")
        try:  # it may be a stranger's, mark and all
            fields = json.loads(raw)
            version = fields["format_version"]
            listing = cls(fields["teacher_json_sha256"], [entry_from_json(entry) for entry in fields["shards"]])
        except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
            raise DataError(f"{path} is not a listing of shards ({error})") from error
        if version != CACHE_FORMAT_VERSION:
            raise DataError(f"{path} has format version {version!r}, this code reads {CACHE_FORMAT_VERSION}")
        return listing


def listing_mark(listing: bytes) -> bytes:
    """Content of shards.json.sha256, in the format that `sha256sum --check` reads."""
    return f"{hashlib.sha256(listing).hexdigest()}  {LISTING_NAME}\n".encode()


def entry_to_json(entry: ShardEntry) -> dict:
    """A cache's shard as shards.json and the writer's receipt list it."""
    return {name: getattr(entry, "num_tokens" if name == "num_positions" else name) for name in ENTRY_FIELDS}


def entry_from_json(fields: dict) -> ShardEntry:
    """The inverse of `entry_to_json`.

    Raises:
        ValueError: a name that is no file name, or a digest that is none.
        TypeError, KeyError: another field is missing or of another type.
    """
    if fields.keys() != set(ENTRY_FIELDS) or not isinstance(fields["name"], str):
        raise TypeError(f"a shard has the fields {sorted(fields)}")
    digests = (fields["sha256"], fields["index_sha256"])
    if not _NAME.fullmatch(fields["name"]) or not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise ValueError(f"lists a shard {fields['name']!r} that the cache's writer did not name")  # parts of paths
    if not all(type(fields[name]) is int for name in ("size", "index_size", "num_samples", "num_positions")):
        raise TypeError(f"a size of {fields['name']} is not a whole number")
    counts = dict(fields)
    return ShardEntry(source="", num_tokens=counts.pop("num_positions"), **counts)


def is_complete(folder: Path, name: str) -> bool:
    """Whether the shard is there: its index, which is written last, and its tar.

    Raises:
        DataError: the folder cannot be looked into.
    """
    path = folder / f"{name}.idx.npy"
    with reading(path):
        return path.is_file() and (folder / f"{name}.tar").is_file()


def load_cache_index(
    folder: Path, name: str, listed: ShardEntry | None = None, num_samples: int | None = None
) -> np.ndarray:
    """One shard's index, INDEX_DTYPE [num_samples], whose samples follow each other and end where the tar does.

    It must be what the writer writes, byte for byte, and fit the tar's size, with or without a listing. Its size is
    looked at before it is read.

    Args:
        folder: the cache.
        name: of the shard.
        listed: what the listing says of it, if there is one.
        num_samples: that it must have, if that is known.

    Raises:
        DataError: names the file that is missing, cannot be read or does not fit.
    """
    path, tar = folder / f"{name}.idx.npy", folder / f"{name}.tar"
    with reading(path):
        for file in (path, tar):
            if not file.is_file():
                raise DataError(f"{file} is missing; {REMEDY}")
        size, tar_size = path.stat().st_size, tar.stat().st_size
    length, rest = divmod(size - _INDEX_HEADER_BYTES, INDEX_DTYPE.itemsize)
    if length < 0 or rest:
        raise DataError(f"{path} has {size} bytes, which is no index; {REMEDY}")
    if num_samples is not None and length != num_samples:
        raise DataError(f"{path} has {length} samples, {num_samples} are due; {REMEDY}")
    if length * BLOCK > tar_size:
        raise DataError(f"{path} has {length} samples, for which {tar} has no room; {REMEDY}")
    raw = read_file(path, size)
    if listed is not None and hashlib.sha256(raw).hexdigest() != listed.index_sha256:
        raise DataError(f"{path} does not match its sha256 in {LISTING_NAME}; {REMEDY}")
    if len(raw) != size:
        raise DataError(f"{path} changed while it was read; {REMEDY}")
    index = np.frombuffer(raw, INDEX_DTYPE, length, _INDEX_HEADER_BYTES)
    ends = np.cumsum(index["length"])
    follows = (index["offset"] == ends - index["length"]).all()
    sizes_fit = ((index["length"] > 0) & (index["length"] <= tar_size)).all()
    if npy_bytes(index) != raw or not follows or not sizes_fit or (index["tokens"] < 0).any():
        raise DataError(f"{path} is damaged: not an index of samples that follow each other in the tar; {REMEDY}")
    end = (int(ends[-1]) if length else 0) + len(END_OF_TAR)
    if tar_size != end:
        raise DataError(f"{tar} has {tar_size} bytes, its index says {end}; {REMEDY}")
    return index


def check_mirrors(found: list[ShardEntry], manifest: Manifest, where: str) -> None:
    """Raises DataError unless the listed shards are those of the data, in order and sample for sample."""
    names, due = [entry.name for entry in found], [entry.name for entry in manifest.shards]
    if names != due:
        odd = sorted(set(names) ^ set(due))
        what = f"{odd[0]} is in one of the two only" if odd else "in another order"
        raise DataError(f"{where} does not list the data's {len(due)} shards: {what}")
    for entry, data in zip(found, manifest.shards, strict=True):
        if entry.num_samples != data.num_samples:
            raise DataError(f"{where}: {entry.name} has {entry.num_samples} samples, the data's {data.num_samples}")


def check_listing(folder: Path, listing: Listing, info: TeacherInfo, manifest: Manifest | None) -> None:
    """Raises DataError unless the listing is of this teacher.json, and mirrors the data if `manifest` is given."""
    path = folder / LISTING_NAME
    if listing.teacher_sha256 != hashlib.sha256(info.to_bytes()).hexdigest():
        raise DataError(f"{path} was not written for the {TEACHER_NAME} beside it; restore the two of one cache")
    if manifest is not None:
        check_mirrors(listing.shards, manifest, str(path))
