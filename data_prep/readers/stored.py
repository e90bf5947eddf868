"""The bytes of an input file, decompressed as they are read; its errors name the file."""

import bz2
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import pyarrow
from fsspec.core import OpenFile
from fsspec.implementations.local import LocalFileSystem

from data_prep.inputs import ARCHIVES, InputFile, extension_of, open_file_system
from pipeline.data.shard_format import DataError

CHUNK_BYTES = 1 << 20
# Stored data that does not decompress or decode: each library has its own error.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)

STREAMS = {"bz2": bz2.BZ2Decompressor, "xz": partial(lzma.LZMADecompressor, format=lzma.FORMAT_XZ)}
# What file systems call the mark that changes with a file's content; not all have one.
VERSION_FIELDS = ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")


def file_version(file: InputFile) -> str:
    """A cheap mark of the stored file that differs once it was changed: its size and time of change, or its ETag.

    Raises:
        OSError: there is no such file any more.
    """
    fs, path = open_file_system(file.url)
    if isinstance(fs, LocalFileSystem):
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    fs.invalidate_cache(path)  # else the listing that found the file answers
    info = fs.info(path)
    return " ".join(str(info[name]) for name in ("size", *VERSION_FIELDS) if name in info)


def check_unchanged(file: InputFile, version: str | None) -> None:
    """Raises DataError if the file is not as it was when `file_version` gave `version` (None: not known)."""
    if version is not None and file_version(file) != version:
        raise DataError(f"input {file.url} changed while it was being read; run again")


@contextmanager
def readable(file: InputFile) -> Iterator[None]:
    """Turns the errors of file systems and decompressors into one line that names the file."""
    _check_kind(file)
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"input {file.url} cannot be read as {_description(file)}: {reason}") from error


def _check_kind(file: InputFile) -> None:
    """Refuses what no library would: archives of files, read as text, and nothing at all for some compressions."""
    if extension_of(file.url) in ARCHIVES:
        raise DataError(f"input {file.url} is an archive of files; unpack it and name the folder, or --exclude it")
    if file.size == 0 and (file.compression or file.format in ("parquet", "arrow")):
        raise DataError(
            f"input {file.url} cannot be read as {_description(file)}: it is empty (0 bytes); fetch or write it again, "
            "or leave it out with --exclude or --min_bytes 1"
        )


def _description(file: InputFile) -> str:
    return f"{file.compression}-compressed {file.format}" if file.compression else file.format


def open_stored(file: InputFile, compression: str | None = None) -> OpenFile:
    """The file as it is stored, or decompressed by fsspec, to be used in a `with`."""
    return OpenFile(*open_file_system(file.url), "rb", compression=compression)


def read_chunks(file: InputFile) -> Iterator[bytes]:
    """The file's decompressed bytes, at most CHUNK_BYTES at a time.

    Raises:
        OSError, EOFError and the other UNREADABLE: damaged, or ends in the middle of a compressed stream.
    """
    # fsspec's zstd ends quietly at the end of the first frame, and at a truncation; Arrow's does not.
    by_arrow = file.compression == "zstd"
    if file.compression in STREAMS:
        with open_stored(file) as stream:
            yield from _decompress(stream, file.compression)
        return
    with open_stored(file, None if by_arrow else file.compression) as stream:
        source = pyarrow.CompressedInputStream(stream, "zstd") if by_arrow else stream
        yield from iter(lambda: source.read(CHUNK_BYTES), b"")


def _decompress(stored: BinaryIO, compression: str) -> Iterator[bytes]:
    """The content of all streams (pbzip2 and xz -T write many), at most CHUNK_BYTES at a time.

    Python's BZ2File and LZMAFile take a damaged stream for rubbish after the last one and drop all from there on.
    """
    pending = b""
    while True:
        decompressor = STREAMS[compression]()
        while not decompressor.eof:
            if decompressor.needs_input and not pending:
                pending = stored.read(CHUNK_BYTES)
                if not pending:
                    raise EOFError("it ends before the end of its compressed stream")
            if chunk := decompressor.decompress(pending, CHUNK_BYTES):
                yield chunk
            pending = b""
        pending = decompressor.unused_data or stored.read(CHUNK_BYTES)
        if compression == "xz":
            pending = _skip_padding(pending, stored)
        if not pending:
            return


def _skip_padding(pending: bytes, stored: BinaryIO) -> bytes:
    """What follows the zeros that an xz stream may be padded with to a multiple of 4."""
    num_zeros = 0
    while pending:
        rest = pending.lstrip(b"\0")
        num_zeros += len(pending) - len(rest)
        pending = rest or stored.read(CHUNK_BYTES)
        if rest:
            break
    if num_zeros % 4:
        raise lzma.LZMAError(f"{num_zeros} zeros follow a stream, not a multiple of 4")
    return pending
