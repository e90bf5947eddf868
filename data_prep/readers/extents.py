"""Parts of input files that can be read on their own: what work units are made of."""

import codecs
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from data_prep.inputs import InputFile, extension_of
from data_prep.readers import jsonl, tables
from data_prep.readers.columns import check_rows
from data_prep.readers.jsonl import LineCutter
from data_prep.readers.stored import CHUNK_BYTES, check_unchanged, file_version, open_stored, read_chunks, readable
from data_prep.sources import Source
from pipeline.data.shard_format import DataError


@dataclass(frozen=True)
class Extent:
    """A part of a file, `start` to `end` (None: to the file's end) in the format's own measure.

    Uncompressed JSONL: bytes, at line starts. Parquet: row groups. Arrow: record batches. Other files are one
    extent. `first_row` is the number of its first row in the file; `size` is about how many stored bytes it covers;
    `version` marks the file as it was when it was inspected (None: whatever is there is read).
    """

    file: InputFile
    start: int
    end: int | None
    first_row: int
    size: int
    version: str | None = None


@dataclass(frozen=True)
class Inspection:
    """A file that was read once: sha256 (hex) of what is stored, and its extents in order (none if it has no row)."""

    sha256: str
    extents: list[Extent]


def inspect_input(file: InputFile, source: Source, unit_bytes: int) -> Inspection:
    """Hashes the file, cuts it, and finds out what makes it unusable before the long work starts.

    The result depends on the file's content and `unit_bytes` alone: the size in bytes that extents have at most,
    unless a single line, row group or record batch is larger.

    Raises:
        DataError: unreadable, changing meanwhile, not of the format its name says, or without a column or field that
            the source needs.
    """
    if source.conversations is not None and file.format == "text":
        raise DataError(
            f"{file.url}: source {source.name!r} holds conversations, which are read from JSONL, parquet or Arrow, "
            "not from text"
        )
    digest = hashlib.sha256()
    cutter = LineCutter(unit_bytes) if file.format == "jsonl" and file.compression is None else None
    with readable(file):
        version = file_version(file)
        with open_stored(file) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                if cutter is not None:
                    cutter.feed(chunk)
        extents = [replace(extent, version=version) for extent in _extents(file, source, unit_bytes, cutter)]
        check_unchanged(file, version)
        return Inspection(digest.hexdigest(), extents)


def _extents(file: InputFile, source: Source, unit_bytes: int, cutter: LineCutter | None) -> list[Extent]:
    if file.format in ("parquet", "arrow"):
        parts, is_json = tables.describe_parts(file, source)
        if is_json:
            _check_rows(file, source)
        return list(_group(file, parts, unit_bytes))
    head = next(read_chunks(file), b"")
    if file.format == "jsonl":
        if not head:
            return []
        _check_lines(file, head)
        _check_rows(file, source)
    if cutter is None:
        return [Extent(file, 0, None, 0, file.size)]
    cutter.finish()
    return [Extent(file, start, end, row, end - start) for start, end, row in cutter.parts]


def _check_rows(file: InputFile, source: Source) -> None:
    """Refuses a file in which no row has a field that the source needs.

    A dataset is one stream of rows, which its files cut anywhere.
    """
    if source.dataset is not None:
        return
    dropped: Counter[str] = Counter()
    if file.format == "jsonl":
        rows = jsonl.read_rows(file, 0, None, 0, dropped)
    else:
        rows = tables.read_rows(file, 0, None, 0, source, dropped)
    check_rows(file.url, rows, source, dropped)


def _check_lines(file: InputFile, head: bytes) -> None:
    """Refuses a .json file that is one JSON array: its lines are no rows."""
    if extension_of(file.url) == ".json" and head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        raise DataError(
            f"{file.url} holds one JSON array, not an object a line; jq -c '.[]' FILE.json > FILE.jsonl converts it"
        )


def _group(file: InputFile, parts: list[tuple[int, int]], unit_bytes: int) -> Iterator[Extent]:
    """Joins row groups or record batches, each (rows, bytes), to extents of at most `unit_bytes`."""
    start, first_row, num_rows, size = 0, 0, 0, 0
    for number, (part_rows, part_bytes) in enumerate(parts):
        if num_rows and size + part_bytes > unit_bytes:
            yield Extent(file, start, number, first_row, size)
            start, first_row, num_rows, size = number, first_row + num_rows, 0, 0
        num_rows += part_rows
        size += part_bytes
    if num_rows:
        yield Extent(file, start, len(parts), first_row, size)
