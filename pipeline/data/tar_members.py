"""The tar members that a shard's samples are made of: written the same every time, read without trust. numpy only.

A sample is a run of plain members. Time, owner and mode of every member are constants. What reads them takes exactly
what this module writes: no path, no link, no pickled object.
"""

import io
import re
import tarfile
from collections.abc import Sequence

import numpy as np

BLOCK = tarfile.BLOCKSIZE
MAX_LENGTH = 1 << 40  # of a dimension, for numpy refuses some that no content goes with, such as (0, 2^64)
_TEMPLATE = tarfile.TarInfo()
_TEMPLATE.mode = 0o644
_EMPTY_HEADER = _TEMPLATE.tobuf(tarfile.USTAR_FORMAT)
# What all members have in common, which is all but name (100 bytes), size (12) and checksum (8).
_CONSTANT_FIELDS = _EMPTY_HEADER[100:124] + _EMPTY_HEADER[136:148] + _EMPTY_HEADER[156:]
_CONSTANT_SUM = sum(_CONSTANT_FIELDS) + 8 * ord(" ")  # the checksum field counts as blanks
_SIZE = re.compile(rb"[0-7]{11}\0")
_NPY_HEADER = re.compile(  # format version 1.0, as numpy writes it for an array that is not structured
    rb"\x93NUMPY\x01\0..\{'descr': '([^']*)', 'fortran_order': (?:False|True), 'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as an .npy file, the same bytes for the same array."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def tar_member(name: str, content: bytes) -> bytes:
    """Header, content and padding of a plain file, the same bytes for the same arguments."""
    info = tarfile.TarInfo(name)  # TarInfo's own defaults: mtime, uid and gid 0, no names
    info.size, info.mode = len(content), 0o644
    padding = bytes(-len(content) % BLOCK)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + padding


def split_members(raw: bytes, allowed: re.Pattern[bytes]) -> list[tuple[str, int, int]]:
    """Name and byte range [start, end) of each tar member of `raw`; names must match `allowed` in full.

    Raises:
        ValueError: there is none, or a header is not what `tar_member` writes (a plain file, nothing optional set).
    """
    members, position = [], 0
    while position < len(raw) or not members:
        header = raw[position : position + BLOCK]
        name = header[:100].rstrip(b"\0")
        size_field, checksum = header[124:136], header[148:156]
        constant = header[100:124] + header[136:148] + header[156:]
        expected = _CONSTANT_SUM + sum(name) + sum(size_field)
        if constant != _CONSTANT_FIELDS or checksum != b"%06o\0 " % expected or not _SIZE.fullmatch(size_field):
            raise ValueError(f"no header of a plain file at its byte {position}: {name.decode('ascii', 'replace')!r}")
        if not allowed.fullmatch(name):
            raise ValueError(f"member {name.decode('ascii', 'replace')!r} has no name of a sample's part")
        start = position + BLOCK
        end = start + int(size_field[:11], 8)
        position = end + -end % BLOCK
        if position > len(raw):
            raise ValueError(f"{name.decode()} is cut short")
        members.append((name.decode(), start, end))
    return members


def npy_view(raw: bytes, start: int, end: int, name: str, dtypes: Sequence[np.dtype], dims: int = 1) -> np.ndarray:
    """The array of the .npy in raw[start:end], a read-only view: of one of `dtypes`, of 1 to `dims` dimensions.

    Raises:
        ValueError: names `name`: another dtype or shape, or pickled objects.
    """
    header = _NPY_HEADER.match(raw, start, end)
    if header is None or header.end() - start - 10 != int.from_bytes(raw[start + 8 : start + 10], "little"):
        raise ValueError(f"{name} is not an .npy file of one plain array")
    found, shape_text = header[1].decode(), header[2].decode()
    dtype = next((dtype for dtype in dtypes if dtype.str == found), None)
    shape = tuple(int(size) for size in shape_text.split(",") if size.strip())
    num_bytes = end - header.end()
    # numpy writes (3,) and (3, 4) and nothing else; Python's integers make the product exact
    if (
        dtype is None
        or not 1 <= len(shape) <= dims
        or max(shape) > MAX_LENGTH
        or shape_text != (f"{shape[0]}," if len(shape) == 1 else ", ".join(map(str, shape)))
        or int(np.prod(shape, dtype=object)) * dtype.itemsize != num_bytes
        or (len(shape) > 1 and b"'fortran_order': True" in header[0])
    ):
        objects = "; pickled objects are never loaded" if "O" in found else ""
        legal, size = " or ".join(map(str, dtypes)), " or ".join(("[n]", "[n, m]")[:dims])
        raise ValueError(f"{name} must be {legal} {size}, its header says {found} ({shape_text}){objects}")
    return np.frombuffer(raw, dtype, num_bytes // dtype.itemsize, header.end()).reshape(shape)
