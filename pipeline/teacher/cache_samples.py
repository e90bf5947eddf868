"""One sample of a teacher cache as the tar members that cache_format.py describes: written, and read without trust.

numpy and zstandard only.
"""

import re
from pathlib import Path

import numpy as np

from pipeline.data.file_reading import reading
from pipeline.data.shard_format import DataError, sample_digest
from pipeline.data.tar_members import BLOCK, split_members, tar_member
from pipeline.teacher.cache_format import REMEDY, TeacherInfo
from pipeline.teacher.cache_members import SUFFIXES, Compression, decode_member, encode_member, most_stored_bytes
from pipeline.teacher.signals import Members, SignalSpec

POSITIONS_NAME = "positions.npy"
MAX_UNPACKED_BYTES = 1 << 32  # of one compressed sample, so that a stranger's cannot take all memory
_MEMBER = re.compile(rb"[A-Za-z0-9_-]+\.[a-z_]+\.npy(\.zst)?")


def member_bytes(signal: SignalSpec, num_positions: int) -> dict[str, int]:
    """Names of a sample's members, in order, and the bytes of their arrays (of draws at most)."""
    return {POSITIONS_NAME: 4 * num_positions, **signal.member_bytes(num_positions)}


def most_sample_bytes(signal: SignalSpec, compression: Compression, num_positions: int) -> int:
    """A bound on a sample's bytes in its tar; reached without compression, and of draws where all differ."""
    sizes = member_bytes(signal, num_positions).values()
    contents = [most_stored_bytes(size, compression) for size in sizes]
    return sum(BLOCK + size + -size % BLOCK for size in contents)


def encode_cached_sample(key: str, positions: np.ndarray, members: Members, compression: Compression) -> bytes:
    """The sample's tar members: positions, then `members` (by file name, without the key) in their order."""
    arrays, suffix = {POSITIONS_NAME: positions, **members}, SUFFIXES[compression]
    return b"".join(
        tar_member(f"{key}.{name}{suffix}", encode_member(array, compression)) for name, array in arrays.items()
    )


def read_bytes(path: Path, row: np.void, info: TeacherInfo) -> bytes:
    """The bytes of the sample that `row` (INDEX_DTYPE) of the tar's index describes; fewer where the tar ends.

    Raises:
        DataError: they cannot be read, or are more than the signal of so many positions can take.
    """
    length, most = int(row["length"]), most_sample_bytes(info.signal, info.compression, int(row["tokens"]))
    if length > most:
        raise DataError(
            f"{path}: a sample of {length} bytes at byte {row['offset']}, where {row['tokens']} positions take at most "
            f"{most}; {REMEDY}"
        )
    with reading(path), open(path, "rb") as file:
        file.seek(int(row["offset"]))
        return file.read(length)


def check_digest(raw: bytes, row: np.void, digest_key: bytes, where: str) -> None:
    """Raises DataError, naming `where`, unless `raw` is what the cache with that key wrote of the index's `row`."""
    if sample_digest(raw, digest_key).tobytes() != row["digest"].tobytes():
        raise DataError(f"{where} is damaged or of another cache: its bytes do not match the index; {REMEDY}")


def decode_cached_sample(
    raw: bytes, info: TeacherInfo, num_positions: int, where: str
) -> tuple[str, np.ndarray, Members]:
    """Key, positions (int32 [M]) and the signal's arrays by file name of one sample, from its byte range in a tar.

    Takes the very members that the writer writes and nothing else a tar or an .npy may hold: no paths, no links, no
    pickled objects, no other dtype, no frame that becomes more than the signal takes. Without compression the arrays
    are read-only views of `raw`. Whether they make a signal is for `signal_from_members` to say.

    Args:
        raw: the sample's bytes.
        info: of its cache.
        num_positions: M, as the index says.
        where: names the sample in errors.

    Raises:
        DataError: members that do not make one sample, or positions that do not rise from 0.
    """
    sizes, suffix = member_bytes(info.signal, num_positions), SUFFIXES[info.compression]
    try:
        if suffix and sum(sizes.values()) > MAX_UNPACKED_BYTES:
            raise ValueError(f"{num_positions} positions take more than the {MAX_UNPACKED_BYTES} bytes of a sample")
        spans = split_members(raw, _MEMBER)
        key = spans[0][0].partition(".")[0]
        if [name for name, _, _ in spans] != [f"{key}.{name}{suffix}" for name in sizes]:
            raise ValueError(f"its members are {[name for name, _, _ in spans]}")
        members = {
            name: decode_member(raw, start, end, name, info.compression, size)
            for (name, size), (_, start, end) in zip(sizes.items(), spans, strict=True)
        }
        positions = members.pop(POSITIONS_NAME)
        if positions.dtype != np.int32 or positions.ndim != 1:
            raise ValueError(f"{POSITIONS_NAME} must be int32 [M], it is {positions.dtype} {list(positions.shape)}")
        if len(positions) != num_positions:
            raise ValueError(f"{POSITIONS_NAME} holds {len(positions)} positions, its index says {num_positions}")
        if len(positions) and (positions[0] < 0 or (positions[1:] <= positions[:-1]).any()):
            raise ValueError(f"{POSITIONS_NAME} does not rise from 0 or more")
    except ValueError as error:
        raise DataError(f"{where}: not a sample of a teacher cache ({error})") from error
    return key, positions, members


def is_framed_as_written(raw: bytes) -> bool:
    """Whether nothing but what the writer writes stands between the contents of a sample's members, and after them."""
    spans = split_members(raw, _MEMBER)
    return b"".join(tar_member(name, raw[start:end]) for name, start, end in spans) == raw
