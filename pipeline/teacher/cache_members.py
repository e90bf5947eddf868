"""One array of a cached sample as the content of its tar member, and back. numpy and zstandard only.

Without compression it is an .npy file, `{name}.npy`. With zstd, `{name}.npy.zst`, it is one frame of that file in which
the bytes of equal significance stand together: the first byte of every item, then the second of every item, and so on.
Exponents and high bytes vary little, which the compressor then sees; without this a float32 or float16 hardly shrinks.
The arrays are the same for good, the frames only with the same version of zstandard.
"""

import io
from typing import Literal

import numpy as np
import zstandard

from pipeline.data.tar_members import npy_bytes, npy_view

Compression = Literal["none", "zstd"]
SUFFIXES: dict[str, str] = {"none": "", "zstd": ".zst"}
LEVEL = 1  # level 9: 2 to 23 times slower, hidden states no smaller, the others by 2 to 5 points
MEMBER_DTYPES = tuple(map(np.dtype, ("|u1", "|i1", "<u2", "<i4", "<f2", "<f4")))


def encode_member(array: np.ndarray, compression: Compression) -> bytes:
    """The member's content; `array` has 1 or 2 dimensions and one of MEMBER_DTYPES."""
    if compression == "none":
        return npy_bytes(array)
    return zstandard.compress(npy_header(array) + _group_bytes(array).tobytes(), LEVEL)


def decode_member(raw: bytes, start: int, end: int, name: str, compression: Compression, most_bytes: int) -> np.ndarray:
    """The array of the member whose content is raw[start:end]; without compression a read-only view.

    Args:
        raw: of a sample.
        start: where the content begins.
        end: where it ends.
        name: of the member, for errors.
        compression: how it was written.
        most_bytes: that the array may have. A frame that would become more is refused before anything is allocated.

    Raises:
        ValueError: names `name`: not an array as `encode_member` writes it, or a larger one.
    """
    if compression == "zstd":
        raw = _decompress(raw[start:end], name, HEADER_BYTES + most_bytes)
        start, end = 0, len(raw)
    array = npy_view(raw, start, end, name, MEMBER_DTYPES, dims=2)
    if raw[start : end - array.nbytes] != npy_header(array):
        raise ValueError(f"{name} has another header than numpy writes")
    return array if compression == "none" else _ungroup_bytes(array)


def most_stored_bytes(array_bytes: int, compression: Compression) -> int:
    """A bound on the content of a member whose array has so many bytes; without compression exactly its size."""
    size = HEADER_BYTES + array_bytes
    return size if compression == "none" else size + (size >> 8) + 64  # ZSTD_compressBound, rounded up


def _decompress(frame: bytes, name: str, most_bytes: int) -> bytes:
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            raise ValueError(f"{name}: a zstd frame that does not say its size")
        if size > most_bytes:
            raise ValueError(f"{name}: a zstd frame of {size} bytes where at most {most_bytes} are due")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"{name} is not one zstd frame ({error})") from error


def npy_header(array: np.ndarray) -> bytes:
    """What an .npy file of `array` begins with."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    return buffer.getvalue()


HEADER_BYTES = len(npy_header(np.empty(0, np.uint8)))  # of every array of a cache: numpy pads it


def _group_bytes(array: np.ndarray) -> np.ndarray:
    """uint8 [itemsize, number of items], the lowest byte of every item first."""
    bits = array.reshape(-1).view(f"<u{array.itemsize}")
    groups = np.empty((array.itemsize, bits.size), np.uint8)
    for number, group in enumerate(groups):
        group[:] = bits >> (8 * number)
    return groups


def _ungroup_bytes(grouped: np.ndarray) -> np.ndarray:
    """The inverse of `_group_bytes` for an array whose memory holds the groups."""
    *lower, highest = grouped.reshape(-1).view(np.uint8).reshape(grouped.itemsize, -1)
    bits = highest.astype(f"<u{grouped.itemsize}")
    for group in reversed(lower):
        bits <<= 8
        bits |= group
    return bits.view(grouped.dtype).reshape(grouped.shape)
