"""Reads small files whose size and owner may be anybody's: bounded, and with one line where they cannot be read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.shard_format import DataError


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around whatever looks at or reads `path`.

    Raises:
        DataError: in place of an OSError, with the file and the reason.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def read_file(path: Path, most_bytes: int) -> bytes:
    """The file's content.

    Raises:
        DataError: it cannot be read, or has more than `most_bytes` bytes, which are then not read.
    """
    with reading(path), open(path, "rb") as file:
        raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise DataError(f"{path} has more than the {most_bytes} bytes that it may have; restore the file")
    return raw
