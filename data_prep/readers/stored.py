"""The bytes of an input file, decompressed as they are read; its errors name the file."""

import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pyarrow

from data_prep.inputs import InputFile
from pipeline.data.shard_format import DataError

CHUNK_BYTES = 1 << 20
# Stored data that does not decompress or decode: each library has its own error.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)


@contextmanager
def readable(file: InputFile) -> Iterator[None]:
    """Turns the errors of file systems and decompressors into one line that names the file."""
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"input {file.url} cannot be read as {_description(file)}: {reason}") from error


def _description(file: InputFile) -> str:
    return f"{file.compression}-compressed {file.format}" if file.compression else file.format


def open_stored(file: InputFile) -> fsspec.core.OpenFile:
    """The file as it is stored, to be used in a `with`."""
    return fsspec.open(file.url, "rb")


def read_chunks(file: InputFile) -> Iterator[bytes]:
    """The file's decompressed bytes, at most CHUNK_BYTES at a time.

    Raises:
        OSError, EOFError and the other UNREADABLE: damaged, or ends in the middle of a compressed stream.
    """
    # fsspec's zstd ends quietly at the end of the first frame, and at a truncation; Arrow's does not.
    by_arrow = file.compression == "zstd"
    with fsspec.open(file.url, "rb", compression=None if by_arrow else file.compression) as stream:
        source = pyarrow.CompressedInputStream(stream, "zstd") if by_arrow else stream
        yield from iter(lambda: source.read(CHUNK_BYTES), b"")
